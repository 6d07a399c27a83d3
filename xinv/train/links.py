"""The process group of the ranks, over the network that the cluster itself uses.

gloo binds to the address that the host's name resolves to, on many machines 127.0.0.1, and ranks on two hosts then
never meet; NCCL takes the first interface that it likes. Ray knows an address of each machine that the others reach.

Ray Train makes the process group before any code of ours runs in the ranks, so this is part of its set-up.
"""

import os
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from xinv.interface import interface_of


class Links(TorchConfig):
    """As TorchConfig; each rank talks over its own machine's interface to the cluster."""

    @property
    def backend_cls(self) -> Any:
        return _LinksBackend


class _LinksBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Name the interface to gloo and NCCL, unless the user has; nothing where Ray's address is on none (behind NAT)."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    address = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == own)
    found = interface_of(address)
    if found is None:
        return
    for variable, value in (("GLOO_SOCKET_IFNAME", found), ("NCCL_SOCKET_IFNAME", f"={found}")):
        os.environ[variable] = os.environ.get(variable) or value
