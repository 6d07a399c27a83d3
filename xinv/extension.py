"""DeepSpeed's compiled operation for processes that talk on one CPU machine: is it built, and building it early.

DeepSpeed has torch compile `deepspeed_shm_comm` at the first training on a machine without a GPU (half a minute), and
loads it from a cache afterwards: one of this Python environment's own, because torch's cache serves one user, and two
environments in it would build over each other at every turn. DeepSpeed itself runs in a process of its own here.
"""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from xinv.errors import WorkError
from xinv.files import digest
from xinv.progress import Progress, silent

OP = "deepspeed_shm_comm"
BUILD_LIMIT_S = 900.0
BUILD_USUAL_S = 30.0
AIO_OPS = ("async_io", "pin_memory")
"""Operations that DeepSpeed compiles at the first training with weights on an NVMe disk; they take minutes."""
AIO_MEND = "install libaio's headers (Debian, Ubuntu: apt-get install libaio-dev)"
COMPILER_MEND = "install g++ (Debian, Ubuntu: apt-get install g++), or name a compiler in CXX"


def prepare(progress: Progress = silent) -> str:
    """Build DeepSpeed's CPU communication operation now, so that the first training need not; a line on the outcome.

    A lock file that a killed build left is removed: torch would wait for it for ever. WorkError when the build fails.
    """
    if not op_needed():
        return f"{OP} is not needed here."
    before_loading()
    built = op_library().exists() and built_here(op_library())
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        build = subprocess.Popen(
            [sys.executable, "-P", "-c", _BUILD],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a group of its own: an interrupt ends the compilers too
        )
        try:
            while build.poll() is None:
                passed = time.monotonic() - started
                if passed > BUILD_LIMIT_S:
                    raise WorkError(f"building {OP} took more than {BUILD_LIMIT_S / 60:.0f} minutes and was given up.")
                progress(min(passed, BUILD_USUAL_S), BUILD_USUAL_S, f"building {OP}")
                time.sleep(0.2)
        finally:
            if build.poll() is None:
                os.killpg(build.pid, signal.SIGKILL)
                build.wait()
                lock = stale_lock()
                if lock is not None:
                    lock.unlink(missing_ok=True)
        output.seek(0)
        said = output.read().decode(errors="replace")
    progress(BUILD_USUAL_S, BUILD_USUAL_S, "")
    if build.returncode:
        tail = "\n".join(said.strip().splitlines()[-12:])
        raise WorkError(f"{OP} could not be built. If the compiler is missing: {COMPILER_MEND}. Last lines:\n{tail}")
    if built:
        return f"{OP} was built already."
    return f"{OP} is built ({time.monotonic() - started:.0f} s)."


def before_loading() -> None:
    """What every process must do before DeepSpeed loads the operation: find ninja and the cache of this environment,
    and not wait for a dead build."""
    os.environ["PATH"] = search_path()
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(_own_cache()))
    for name in (OP, *AIO_OPS):
        lock = stale_lock(name)
        if lock is not None:
            lock.unlink(missing_ok=True)


def aio_possible() -> bool:
    """Whether DeepSpeed's operation for NVMe disks is built, or libaio is there to build it with."""
    if op_library(AIO_OPS[0]).exists():
        return True
    program = "#include <libaio.h>\nint main() { return io_setup(0, nullptr); }\n"
    command = [os.environ.get("CXX") or "c++", "-x", "c++", "-", "-laio", "-o", os.devnull]
    try:
        return subprocess.run(command, input=program, text=True, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


_BUILD = """
from deepspeed.accelerator import get_accelerator
builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
if builder is not None and builder.is_compatible():
    builder.load()
"""


def stale_lock(name: str = OP) -> Path | None:
    """The lock file that a killed build of the operation `name` left, if there is one.

    torch takes the lock at every load and holds it open while it builds; nobody holding it open on this machine means
    that its owner is gone. (A home shared by several machines: the owner may be on another one.)
    """
    lock = op_library(name).with_name("lock")
    seen = None
    for pause in (0.2, 0.0):  # looked at twice: its owner lets go of it just before removing it
        try:
            identity = lock.stat().st_ino
        except OSError:
            return None
        if _held(lock) or seen not in (None, identity):
            return None
        seen = identity
        time.sleep(pause)
    return lock


def _held(path: Path) -> bool:
    """Whether a process of this machine has `path` open."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # (ended meanwhile, or another user's)
            if any(file.path == str(path) for file in process.open_files()):
                return True
    return False


def op_needed() -> bool:
    """DeepSpeed loads the operation on Linux without a GPU; on a GPU NCCL does its work."""
    if sys.platform != "linux":
        return False
    try:
        import torch
    except (ImportError, OSError):
        return True
    return not torch.cuda.is_available()


def op_library(name: str = OP) -> Path:
    """Where a compiled operation is kept: in TORCH_EXTENSIONS_DIR where the user sets it, else in our cache."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    return (Path(root).resolve() if root else _own_cache()) / name / f"{name}.so"


def _own_cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "xinv"
    return cache.resolve() / f"torch-extensions-{digest(sys.prefix)}"


def built_here(library: Path) -> bool:
    """Whether `library` was built from this environment's torch; else ninja will build it again."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return True
    try:
        return str(Path(spec.origin).parent) in library.with_name("build.ninja").read_text()
    except OSError:
        return False


def search_path() -> str:
    """PATH with this environment's programs (ninja) first: it may run by its full path, without being activated."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
