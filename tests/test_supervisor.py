"""The temporary folder of a supervisor, and what killed ones have left of theirs. (What it does: test_node.py.)"""

import fcntl
import os
from pathlib import Path

import pytest

from launch.supervisor import STALE, _own_folder


def left_behind(folder: Path, age: float) -> Path:
    folder.mkdir()
    (folder / "lock").touch()
    then = folder.stat().st_mtime - age
    os.utime(folder, (then, then))
    return folder


def test_the_folder_is_private_and_goes_with_its_supervisor(tmp_path: Path) -> None:
    folder = tmp_path / f"xr-{os.getuid()}-1-0-0"
    with pytest.raises(ZeroDivisionError), _own_folder(folder):
        assert folder.stat().st_mode & 0o777 == 0o700
        raise ZeroDivisionError
    assert not folder.exists()


def test_what_a_killed_supervisor_has_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    start = f"xr-{os.getuid()}-"
    dead = left_behind(tmp_path / f"{start}2-0-0", age=STALE + 5)
    fresh = left_behind(tmp_path / f"{start}3-0-0", age=STALE / 2)
    other = left_behind(tmp_path / f"xr-{os.getuid() + 1}-4-0-0", age=STALE + 5)
    alive = left_behind(tmp_path / f"{start}5-0-0", age=STALE + 5)
    with (alive / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _own_folder(tmp_path / f"{start}6-0-0"):
            assert not dead.exists()
            assert fresh.exists() and other.exists() and alive.exists()
