"""Processes of a job, found by their mark and ended; nobody else's."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from launch import processes

OWN = 10**9 + os.getpid()
"""No Slurm job of this machine has this number."""

PARENT = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True, env={})
if "deaf" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(child.pid, flush=True)
time.sleep(600)
"""


def family(mark: str, *arguments: str) -> tuple[subprocess.Popen[str], int]:
    """A process with a mark, and its child in a session of its own, whose environment is empty."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments], env={**os.environ, processes.MARK: mark}, stdout=-1, text=True
    )
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("arguments", [(), ("deaf",)])
def test_a_jobs_processes_are_ended_and_no_others(arguments: tuple[str, ...]) -> None:
    mine, child = family(f"{OWN}.0.0", *arguments)
    other, other_child = family(f"{OWN}.0.1")
    try:
        assert {process.pid for process in processes.marked(f"{OWN}.0.0")} == {mine.pid, child}
        processes.end(f"{OWN}.0.0", patience=0.5)
        mine.wait(5)
        assert gone(child) and other.poll() is None and not gone(other_child)
        assert processes.marked(f"{OWN}.0.0") == []
    finally:
        processes.end(f"{OWN}.0.1")
        other.wait(5)


def test_a_child_that_lost_its_parent_is_found_by_its_own_mark() -> None:
    script = "import subprocess; print(subprocess.Popen(['sleep', '600'], stdout=-3, stderr=-3).pid)"
    variables = {**os.environ, processes.MARK: f"{OWN}.1.0"}
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=True)
    orphan = int(done.stdout)
    assert not gone(orphan)
    processes.end(f"{OWN}.1.0")
    assert gone(orphan)


def test_rays_processes_keep_their_environment() -> None:
    """Ray's processes change their titles, and with READABLE leave what /proc shows of their environment."""
    script = (
        "import ray._raylet as ray, time; ray.setproctitle('ray::' + 'x' * 500); print(1, flush=True); time.sleep(600)"
    )
    variables = {**os.environ, **processes.READABLE, processes.MARK: f"{OWN}.2.0"}
    process = subprocess.Popen([sys.executable, "-c", script], env=variables, stdout=-1, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        assert [one.pid for one in processes.marked(f"{OWN}.2.0")] == [process.pid]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(5)
