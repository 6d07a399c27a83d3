"""What works on this machine, and the mend for what does not. Data only: `cli.py` prints it.

Each check stands alone and reads what it needs itself, so that one broken library does not hide another. DeepSpeed and
Ray are asked through their installed metadata or in a process of their own, never imported here.
"""

import concurrent.futures
import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from xinv.extension import (
    AIO_MEND,
    COMPILER_MEND,
    aio_possible,
    built_here,
    op_library,
    op_needed,
    prepare,
    search_path,
    stale_lock,
)
from xinv.track import key_source

__all__ = ["Check", "diagnose", "prepare"]

GIB = 2**30
GLOO_LIMIT_S = 40.0
# What Ray's dashboard imports; without it stopped trials never give their resources back (Ray 2.60).
DASHBOARD_NEEDS = ("aiohttp", "aiohttp_cors", "grpc", "opencensus", "opentelemetry", "prometheus_client")


@dataclass(frozen=True)
class Check:
    """One finding. `mend` is what to do about it, empty when there is nothing to do."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""


def diagnose(folder: Path = Path()) -> list[Check]:
    """Every check, in a fixed order; about five seconds, most of them the two processes of the gloo check.

    `folder`: where runs will be written; its disk is the one looked at. Needs no network; starts neither Ray nor W&B.
    """
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        meeting = thread.submit(gloo)  # other processes, meanwhile the rest is looked at
        checks: list[Callable[[], Check]] = [
            python_version,
            torch_version,
            processor,
            gpu,
            meeting.result,
            compiler,
            ninja,
            partial(package, "deepspeed"),
            deepspeed_op,
            deepspeed_aio,
            partial(package, "ray"),
            ray_dashboard,
            ray_token,
            shared_memory,
            partial(disk, folder),
            file_descriptors,
            memory,
            partial(package, "webdataset"),
            partial(package, "captum"),
            partial(package, "wandb"),
            wandb_key,
        ]
        return [check() for check in checks]


# --------------------------------------------------------------------------------------------------- Python, packages


def python_version() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    try:
        wanted = SpecifierSet(importlib.metadata.metadata("xinv")["Requires-Python"])
    except (importlib.metadata.PackageNotFoundError, KeyError):
        wanted = SpecifierSet()
    if platform.python_version() not in wanted:
        return Check("python", "fail", f"{found}, made for {wanted}", "make clean, then make PYTHON=python3.11 demo")
    return Check("python", "ok", found)


def package(name: str) -> Check:
    """Whether `name` is installed in a version that xinv was made for. It is not imported."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "fail", "missing", "set up the environment: make demo")
    wanted = _requirement(name)
    if wanted is not None and not wanted.specifier.contains(version, prereleases=True):
        mend = f"pip install '{wanted.name}{wanted.specifier}', or set up the environment anew: make clean demo"
        return Check(name, "warn", f"{version}, made for {wanted.specifier}", mend)
    return Check(name, "ok", version)


def _requirement(name: str) -> Requirement | None:
    """What xinv's own metadata asks of `name`; None when it is not installed as a package."""
    try:
        wanted = importlib.metadata.requires("xinv") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((entry for entry in map(Requirement, wanted) if entry.name == name and entry.marker is None), None)


def torch_version() -> Check:
    base = package("torch")
    if base.state == "fail":
        return base
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", "fail", f"{base.found}, cannot be imported: {_first_line(error)}", "make clean demo")
    return Check("torch", base.state, f"{torch.__version__}, {torch.get_num_threads()} threads", base.mend)


# ------------------------------------------------------------------------------------------------------------ hardware


def processor() -> Check:
    """Processors that this process may use, and whether they calculate in bfloat16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        flags = set(re.findall(r"\b(?:avx512_bf16|amx_bf16|bf16)\b", Path("/proc/cpuinfo").read_text()))
        kind = f"bf16 by {', '.join(sorted(flags))}" if flags else "no bf16 instructions: fp32 is the faster precision"
    except OSError:
        kind = "instructions unknown"
    if cores < 2:
        mend = "an audit runs two workers on a CPU; give the machine two cores, or set the number of workers to 1"
        return Check("processor", "warn", f"{cores} core, {kind}", mend)
    return Check("processor", "ok", f"{cores} cores, {kind}")


def gpu() -> Check:
    driver = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()
    try:
        import torch
        import torch.distributed

        names = _gpu_names()
    except (ImportError, OSError, RuntimeError) as error:  # (RuntimeError: a driver that answers and then fails)
        return Check("gpu", "fail", f"torch cannot ask for it: {_first_line(error)}", "run nvidia-smi; make clean demo")
    if not names and driver and torch.version.cuda is None:
        mend = "install a CUDA build of torch in this environment; see Get Started on pytorch.org"
        return Check("gpu", "warn", "there is an NVIDIA driver, but this torch is built for CPUs only", mend)
    if not names and driver:
        found = f"there is an NVIDIA driver, but torch (CUDA {torch.version.cuda}) sees no GPU"
        return Check("gpu", "warn", found, "compare the CUDA version of nvidia-smi; look at CUDA_VISIBLE_DEVICES")
    if not names:
        return Check("gpu", "ok", "none; training runs on the CPU")
    found = f"{len(names)}: {'; '.join(dict.fromkeys(names))}"
    if not torch.distributed.is_nccl_available():
        return Check("gpu", "warn", f"{found}; no NCCL", "install a torch built with NCCL, or train on one GPU")
    return Check("gpu", "ok", f"{found}; NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}")


def _gpu_names() -> list[str]:
    """Name and memory of every GPU that torch sees."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns where the check says it in one line
        if not torch.cuda.is_available():
            return []
        seen = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{one.name}, {one.total_memory / GIB:.0f} GiB" for one in seen]


_GLOO = """
import datetime, sys, torch, torch.distributed as dist
torch.set_num_threads(1)
store, rank = dist.FileStore(sys.argv[1], 2), int(sys.argv[3])
limit = datetime.timedelta(seconds=float(sys.argv[2]))
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=limit)
value = torch.tensor([rank + 1.0])
dist.all_reduce(value)
assert value.item() == 3.0, value
dist.destroy_process_group()
"""


def gloo(limit_s: float = GLOO_LIMIT_S) -> Check:
    """Two processes add a number over gloo, as two ranks on CPUs do at every step."""
    mend = "name this machine's network interface in GLOO_SOCKET_IFNAME (lo is enough for one machine)"
    deadline = time.monotonic() + limit_s
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-c", _GLOO, str(Path(folder) / "store"), str(limit_s)]
        ranks = [
            subprocess.Popen([*command, str(rank)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        try:
            while None in (states := [rank.poll() for rank in ranks]) and time.monotonic() < deadline:
                if any(states):  # one has failed: the other would wait for it
                    break
                time.sleep(0.05)
        finally:
            for rank in ranks:
                rank.kill()
            errors = [rank.communicate()[1] for rank in ranks]
    if not any(states) and None in states:
        return Check("gloo", "fail", f"two processes could not meet within {limit_s:g} s", mend)
    for state, error in zip(states, errors, strict=True):
        if state:
            return Check("gloo", "fail", (error.strip().splitlines() or [f"exit code {state}"])[-1], mend)
    return Check("gloo", "ok", "two processes added a number")


def shared_memory(path: Path = Path("/dev/shm")) -> Check:
    mend = "give the container more: docker run --shm-size=2g; Kubernetes: an emptyDir of medium Memory at /dev/shm"
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return Check("shared memory", "warn", f"no {path}; Ray would keep its objects on the disk", mend)
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free at {path}"
    return Check("shared memory", "ok", found) if usage.free >= GIB else Check("shared memory", "warn", found, mend)


def disk(folder: Path) -> Check:
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    usage = shutil.disk_usage(there)
    found = f"{usage.free / GIB:.1f} GiB free at {there}"
    if not os.access(there, os.W_OK):
        return Check("disk", "fail", f"{there} cannot be written to", "run from a folder of your own")
    if usage.free < 5 * GIB:
        return Check("disk", "warn", found, "free some, or run from a larger disk; a demo run takes under 1 GiB")
    return Check("disk", "ok", found)


def file_descriptors() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} open files allowed" + ("" if soft == hard else f", up to {hard} on request")
    # Ray raises its own limit to the hard one; it asks for thousands on machines with many cores.
    if hard != resource.RLIM_INFINITY and hard < 4096:
        return Check(
            "file descriptors", "warn", found, "raise the limit: ulimit -n 65536, or LimitNOFILE of the service"
        )
    return Check("file descriptors", "ok", found.replace("-1", "any number"))


def memory() -> Check:
    machine = psutil.virtual_memory()
    limit = machine.total
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # (no cgroup, or the word "max")
            limit = min(limit, int(path.read_text()))
    available = min(machine.available, limit)
    found = f"{available / GIB:.1f} of {limit / GIB:.1f} GiB available"
    if available < 8 * GIB:
        return Check("memory", "warn", found, "close other programs; the demo takes up to 8 GiB in all its processes")
    return Check("memory", "ok", found)


# ------------------------------------------------------------------------------------------------------------ DeepSpeed


def compiler() -> Check:
    command = os.environ.get("CXX") or "c++"
    needed: Literal["warn", "fail"] = "fail" if not op_library().exists() and op_needed() else "warn"
    try:
        done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("c++ compiler", needed, f"{command} does not run: {_first_line(error)}", COMPILER_MEND)
    return Check("c++ compiler", "ok", done.stdout.splitlines()[0] if done.stdout else command)


def ninja() -> Check:
    """DeepSpeed calls the program ninja by name, also when its operations are built already."""
    command = shutil.which("ninja", path=search_path())
    if command is None:
        return Check("ninja", "fail", "missing", "pip install ninja, or set up the environment: make demo")
    try:
        done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check(
            "ninja", "fail", f"{command} does not run: {_first_line(error)}", "pip install --force-reinstall ninja"
        )
    return Check("ninja", "ok", f"{done.stdout.strip()} at {command}")


def deepspeed_op() -> Check:
    """Whether DeepSpeed's communication between the processes of one CPU machine is compiled already."""
    name = "deepspeed cpu communication"
    if not op_needed():
        return Check(name, "ok", "not needed here")
    library = op_library()
    lock = stale_lock()
    if lock is not None:
        mend = f"remove {lock}, or run: xinv doctor --prepare (it was left by a build that was killed)"
        return Check(name, "fail", "every training would wait for ever for the build that left a lock file", mend)
    if not library.exists():
        mend = "run: xinv doctor --prepare"
        return Check(name, "warn", "not built; the first training will spend about half a minute building it", mend)
    if not built_here(library):
        mend = "run: xinv doctor --prepare"
        return Check(name, "warn", "built by another environment; the first training will build it anew", mend)
    return Check(name, "ok", f"built, in {library.parent}")


def deepspeed_aio() -> Check:
    """Whether weights can be offloaded to an NVMe disk, which most trainings never do."""
    name = "deepspeed nvme"
    if aio_possible():
        return Check(name, "ok", "weights can be offloaded to a disk")
    return Check(name, "ok", f"no libaio; only training.offload_weights: nvme needs it: {AIO_MEND}")


# ------------------------------------------------------------------------------------------------------------ Ray, W&B


def ray_dashboard() -> Check:
    missing = [name for name in DASHBOARD_NEEDS if importlib.util.find_spec(name) is None]
    spec = importlib.util.find_spec("ray")
    places = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    if not any(Path(place, "dashboard", "head.py").exists() for place in places):
        missing.append("ray.dashboard")
    if missing:
        found = f"{', '.join(missing)} missing: without the dashboard, stopped trials never free their resources"
        return Check("ray dashboard", "fail", found, "pip install 'ray[default]' in the version installed")
    return Check("ray dashboard", "ok", "what it needs is installed")


def ray_token() -> Check:
    """How Ray will authenticate. A cluster without a token runs whatever anyone who reaches its ports sends it."""
    name, mode = "ray authentication", os.environ.get("RAY_AUTH_MODE")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if mode is not None and mode.lower() not in ("token", "disabled"):
        return Check(
            name, "warn", f"RAY_AUTH_MODE={mode} is unknown", "set RAY_AUTH_MODE to token or disabled, or unset it"
        )
    if mode is not None and mode.lower() == "disabled":
        mend = "unset RAY_AUTH_MODE, or keep the ports of this machine closed"
        return Check(name, "warn", "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports can run code as you", mend)
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Check(name, "ok", "token from RAY_AUTH_TOKEN")
    try:
        open_to_others = path.stat().st_mode & 0o077
    except OSError:
        home = next(parent for parent in path.parents if parent.exists())
        if os.access(home, os.W_OK):
            return Check(name, "ok", f"Ray will make a token at {path}")
        mend = "set RAY_AUTH_TOKEN_PATH to a file that you can write, or RAY_AUTH_TOKEN"
        return Check(name, "fail", f"no token, and {home} cannot be written to", mend)
    if open_to_others:
        return Check(name, "warn", f"token at {path}, which other users can read", f"chmod 600 {path}")
    return Check(name, "ok", f"token at {path}")


def wandb_key() -> Check:
    """Whether track.mode=online can work. The key itself is never shown."""
    source = key_source()
    found = f"API key from {source}" if source else "no API key: offline files only (track.mode=offline, the default)"
    mode = os.environ.get("WANDB_MODE")
    if mode and mode != "offline":
        found += f"; WANDB_MODE={mode} is not followed, track.mode decides"
    return Check("w&b account", "ok", found)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
