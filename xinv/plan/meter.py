"""Looks at every operation of a training step as it goes by, on tensors that have shapes and no numbers."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xinv.plan.kernels import KERNELS, passing_bytes


class Meter(TorchDispatchMode):
    """Counts the FLOPs of what runs inside, and after each operation the bytes of the storages that were made there.

    What `network` holds already does not count, and gradients of its parameters are told apart from the rest: who
    keeps them, and how long, is DeepSpeed's affair (zero.py).

    Attributes:
        flops: a multiply-add is two; as in `torch.utils.flop_counter`, matrix products and convolutions alone count.
        held: for each operation, the bytes that were alive with it, gradients that had come to rest aside.
        arrivals: (number of operations before it, parameter) for each gradient that came to rest, in that order.
        uses: (operation, parameter) for each operation that read a parameter.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        from torch.utils.flop_counter import flop_registry

        self.flops = 0
        self.held: list[int] = []
        self.arrivals: list[tuple[int, int]] = []
        self.uses: list[tuple[int, int]] = []
        self._formulas: dict[Any, Callable[..., int]] = flop_registry
        self._bytes = 0
        self._alive: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._hooks = []
        for number, parameter in enumerate(network.parameters()):
            storage = parameter.untyped_storage()
            self._alive[storage._cdata] = storage
            self._numbers[storage._cdata] = number
            if parameter.requires_grad:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._arrived(number)))
        for buffer in network.buffers():
            self._alive[buffer.untyped_storage()._cdata] = buffer.untyped_storage()

    def __exit__(self, *error: Any) -> None:
        self.held.append(self._bytes)  # what outlives the step: the batch, the output
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)

    def _arrived(self, number: int) -> Callable[[Tensor], None]:
        def note(parameter: Tensor) -> None:
            self.arrivals.append((len(self.held), number))
            parameter.grad = None  # it is counted as arrived; nothing here needs it any more

        return note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = KERNELS.get(func, func)(*args, **(kwargs or {}))
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for leaf in args:
            if isinstance(leaf, Tensor):
                number = self._numbers.get(leaf.untyped_storage()._cdata)
                if number is not None:
                    self.uses.append((len(self.held), number))
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._hold(leaf.untyped_storage())
        self.held.append(self._bytes + passing_bytes(func, args))
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def freed(_: Any) -> None:
            del self._alive[key]
            self._bytes -= size

        self._alive[key] = weakref.ref(storage, freed)
        self._bytes += size
