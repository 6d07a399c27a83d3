"""How much memory a training process has where it will run."""

import contextlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from xinv.errors import InputError
from xinv.parallel import WorkerSettings
from xinv.plan.memory import Device

GIB = 2**30
PROCESS_BYTES = 1_200 << 20
"""Memory of one worker process before it trains: Python, torch, DeepSpeed and Ray (1.1 GB measured on a CPU)."""
CONTEXT_BYTES = 600 << 20
"""Of a GPU's memory, what CUDA's context and the libraries' handles take before the first tensor."""
HEADROOM = 0.1
"""Share of the rest that is left alone: the allocator's waste, the work space of convolutions."""
UNITS = {"": GIB, "g": GIB, "gb": 10**9, "gib": GIB, "m": 2**20, "mb": 10**6, "mib": 2**20, "t": 2**40, "tib": 2**40}


@dataclass(frozen=True)
class Room:
    """The memory of one rank: a GPU's own, or its part of a machine's. `words` say what it is."""

    bytes: int
    device: Device
    words: str

    @property
    def usable(self) -> int:
        """Bytes of tensors that a recommended setting may fill."""
        taken = CONTEXT_BYTES if self.device == "cuda" else PROCESS_BYTES
        return max(0, int((self.bytes - taken) * (1 - HEADROOM)))


def bytes_of(text: str) -> int:
    """80GiB, 80G, 80 (GiB), 24000MiB in bytes. InputError for anything else."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].lower() not in UNITS or float(found[1]) == 0:
        raise InputError(f"{text!r} is no amount of memory; expected a number and a unit, such as 80GiB or 24000MiB.")
    return int(float(found[1]) * UNITS[found[2].lower()])


def gpu_room(memory: int) -> Room:
    """A GPU with so much memory."""
    return Room(memory, "cuda", f"a GPU of {memory / GIB:.4g} GiB")


def share_of(memory: int, ranks: int) -> Room:
    """A machine's memory, of which each of its ranks has a part."""
    each = f", divided among {ranks} ranks" if ranks > 1 else ""
    return Room(memory // ranks, "cpu", f"{memory / GIB:.3g} GiB of memory{each}")


def room_here(workers: WorkerSettings) -> Room | None:
    """What a rank has if the training runs on this machine; None where that cannot be known: a GPU that is not here,
    or ranks that a cluster places somewhere."""
    if workers.gpus:
        memory = smallest_gpu()
        return None if memory is None else gpu_room(memory)
    return None if workers.address is not None else share_of(machine_memory(), workers.count)


def smallest_gpu() -> int | None:
    """Bytes of the smallest GPU of this machine, asked of its driver: torch would take a part of it to find out."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        sizes = [int(line) << 20 for line in told.split() if line.isdigit()]
        return min(sizes, default=None)
    return None


def machine_memory() -> int:
    """Bytes that this process may have: the machine's, or what its cgroup or Slurm job is limited to."""
    limits = [psutil.virtual_memory().total, *_cgroup_limits()]
    for name, factor in (
        ("SLURM_MEM_PER_NODE", 1),
        ("SLURM_MEM_PER_CPU", int(os.environ.get("SLURM_CPUS_ON_NODE", 0))),
    ):
        if os.environ.get(name, "").isdigit() and factor:
            limits.append(int(os.environ[name]) * factor << 20)
    return min(limit for limit in limits if limit > 0)


def _cgroup_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """The limits of this process's cgroup and of those around it, of either version."""
    lines = []
    with contextlib.suppress(OSError):
        lines = own.read_text().splitlines()
    files = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base = root / "memory" if "memory" in controllers else root
        name = "memory.limit_in_bytes" if "memory" in controllers else "memory.max"
        here = base / path.strip("/")
        files += [folder / name for folder in (here, *here.parents) if folder.is_relative_to(base)]
    found = []
    for file in files:
        with contextlib.suppress(OSError, ValueError):  # no such cgroup, or the word "max"
            found.append(int(file.read_text()))
    return found
