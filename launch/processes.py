"""Processes of one job on one machine: known by a mark in their environment, so that nobody else's are touched."""

import contextlib
import time
from pathlib import Path

import psutil

MARK = "XINV_JOB_ID"
"""Environment variable that every process of a job inherits: job, start and node."""

READABLE = {"SPT_NOENV": "1"}
"""With it Ray's processes, which change their titles, leave their environment as /proc shows it."""


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that have MARK=`mark` in their environment, and whatever those have started."""
    wanted = f"{MARK}={mark}".encode()
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if wanted not in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                continue
            for member in (process, *process.children(recursive=True)):
                found[member.pid] = member
        except (OSError, psutil.Error):  # another user's, or ended meanwhile
            continue
    return [process for process in found.values() if _lives(process)]


def end(mark: str, patience: float = 6.0) -> int:
    """End them: asked first, killed after `patience` seconds. Returns how many there were."""
    ended: set[tuple[int, float]] = set()
    left = marked(mark)
    deadline = time.monotonic() + patience
    for process in left:
        _send(process, kill=False)
    while left and time.monotonic() < deadline:
        ended |= {(process.pid, process.create_time()) for process in left}
        time.sleep(0.1)
        left = [process for process in left if _lives(process)]
    # Looked for again: what was started meanwhile, or has lost its parent, is there too.
    while left := [*(process for process in left if _lives(process)), *marked(mark)]:
        ended |= {(process.pid, process.create_time()) for process in left}
        for process in left:
            _send(process, kill=True)
        time.sleep(0.1)
        if time.monotonic() > deadline + patience:
            break
    return len(ended)


def _send(process: psutil.Process, kill: bool) -> None:
    with contextlib.suppress(psutil.Error):
        if kill:
            process.kill()
        else:
            process.terminate()


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
