"""Finished stages are kept, unfinished ones are not believed, and one process at a time works on each."""

import json
import multiprocessing
import stat
import time
from pathlib import Path

import pytest

from xinv.errors import InputError
from xinv.stage import MARK, Store, lock


def test_a_finished_stage_is_not_made_again(tmp_path: Path) -> None:
    store, made = Store(tmp_path / "stages"), []

    def work(folder: Path) -> dict[str, int]:
        made.append(folder)
        return {"images": 3}

    first = store.make("images", {"size": 32}, work)
    second = store.make("images", {"size": 32}, work)
    assert (first.fresh, second.fresh) == (True, False)
    assert first.folder == second.folder == made[0] and len(made) == 1
    assert second.result == {"images": 3}
    assert store.make("images", {"size": 64}, work).folder != first.folder


def test_a_stage_that_failed_is_continued_in_its_folder(tmp_path: Path) -> None:
    store = Store(tmp_path / "stages")

    def fail(folder: Path) -> None:
        (folder / "half").write_text("so far")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        store.make("images", {"size": 32}, fail)
    assert store.finished("images", {"size": 32}) is None
    assert store.make("images", {"size": 32}, lambda folder: (folder / "half").read_text()).result == "so far"


def test_a_folder_of_another_identity_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "stages")
    done = store.make("images", {"size": 32}, lambda folder: None)
    mark = json.loads((done.folder / MARK).read_text())
    (done.folder / MARK).write_text(json.dumps({**mark, "identity": {"size": 33}}))
    with pytest.raises(InputError, match="remove the folder"):
        store.finished("images", {"size": 32})


def test_stage_folders_are_private(tmp_path: Path) -> None:
    done = Store(tmp_path / "stages").make("images", {}, lambda folder: None)
    for folder in (done.folder, done.folder.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def _hold(path: Path, held: "multiprocessing.synchronize.Event") -> None:
    with lock(path):
        held.set()
        time.sleep(60)


def test_a_lock_is_busy_while_its_holder_lives_and_free_once_it_was_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "lock", held), daemon=True)
    holder.start()
    assert held.wait(30)
    with pytest.raises(InputError, match="in use"), lock(tmp_path / "lock", "in use"):
        pass
    holder.kill()
    holder.join()
    with lock(tmp_path / "lock", "in use"):
        pass
