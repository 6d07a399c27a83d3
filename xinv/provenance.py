"""Where numbers come from: the code, the libraries and the machine that made them."""

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from xinv import __version__

PACKAGES = ("torch", "deepspeed", "ray", "webdataset", "captum", "wandb", "numpy")


def versions() -> dict[str, str]:
    """Versions of this project, of Python and of the libraries that compute."""
    return {
        "xinv": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def git_revision() -> str:
    """The commit this code comes from, with "+changes" where the tree differs from it; "unknown" outside a checkout."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        dirty = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def machine() -> str:
    """Operating system, processor and number of cores; no host name, which nobody else should read."""
    name = platform.processor() or "CPU"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{platform.system()} {platform.machine()}, {name}, {os.cpu_count()} cores"
