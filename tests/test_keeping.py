"""Folders that are written to while they are kept: checkpoints are whole or not there, and the newest one counts."""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ranks import run_on_ranks
from storages import own_key, s3, server
from test_train import job_for

from xinv import keeping
from xinv import storage as storages
from xinv.errors import WorkError
from xinv.keeping import Keeper, fetch_run, kept_run, kept_training, snapshot
from xinv.stage import Store, lock
from xinv.storage import KEPT, Storage, opened
from xinv.train.checkpoint import _remove
from xinv.train.loop import train, validations

__all__ = ["own_key", "s3", "server"]  # fixtures


def write(folder: Path, **files: str) -> Path:
    """Files of a folder; two underscores stand for a slash, and one after a letter x for a dash."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("step_", "step-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def kept_at(url: str) -> Storage:
    """The storage as another process finds it."""
    opened.cache_clear()
    found = opened(url)
    assert found is not None
    return found


def listed(url: str, name: str) -> set[str]:
    found = kept_at(url).read(name)
    return set() if found is None else set(found["files"])


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------------------------- trainings


def interrupted_and_kept(images: Path, machine: Path, url: str) -> list[int]:
    """Two epochs on a machine that is then lost."""
    epochs = []
    job = job_for(images, machine / "stages" / "target-1", zero_stage=1)
    with kept_training(opened(url), job.folder), contextlib.closing(validations(job)) as records:
        for record in records:
            epochs.append(record["epoch"])
            if record["epoch"] == 2:
                break
    return epochs


def continued_and_kept(images: Path, machine: Path, url: str) -> dict[str, Any]:
    epochs: list[int] = []
    job = job_for(images, machine / "stages" / "target-1", zero_stage=1)
    with kept_training(opened(url), job.folder):
        train(job, events=lambda record: epochs.append(record["epoch"]))
    left = [path.name for path in job.folder.iterdir() if path.name.startswith(".")]
    return {"epochs": epochs, "weights": (job.folder / "weights.safetensors").read_bytes(), "left": left}


def test_a_training_goes_on_where_a_lost_machine_left_it(tiny_images: Path, tmp_path: Path) -> None:
    url = f"{tmp_path}/kept"
    (whole,) = run_on_ranks(continued_and_kept, 1, tmp_path, tiny_images, tmp_path / "whole", f"{tmp_path}/other")
    assert whole["epochs"] == [1, 2, 3, 4]
    (first,) = run_on_ranks(interrupted_and_kept, 1, tmp_path, tiny_images, tmp_path / "a", url)
    assert first == [1, 2]
    (rest,) = run_on_ranks(continued_and_kept, 1, tmp_path, tiny_images, tmp_path / "b", url)
    assert rest["epochs"] == [2, 3, 4] and rest["weights"] == whole["weights"] and rest["left"] == []
    assert len({path.split("/")[0] for path in listed(url, "trainings/target-1")}) == 1


def test_a_checkpoint_that_others_could_have_written_is_not_loaded(
    tmp_path: Path, s3: str, capfd: pytest.CaptureFixture[str]
) -> None:
    made = write(tmp_path / "a" / "target-1", checkpoints__step_00000002__engine__model="weights").resolve()
    with kept_training(kept_at(s3), made):
        pass
    kept = kept_at(s3)
    path = next(path for path in kept._files.find(f"{kept._root}/trainings") if path.endswith("/model"))
    kept._files.pipe_file(path, b"pickle!")
    with kept_training(kept_at(s3), tmp_path / "b" / "target-1"):
        assert not (tmp_path / "b" / "target-1" / "checkpoints").exists()
    assert "trainings/target-1/step-00000002/engine/model is not what was kept" in capfd.readouterr().err
    # A list that names the forged file, signed by another.
    with kept_training(kept_at(s3), made):
        pass
    mark = f"{kept._root}/trainings/target-1/{KEPT}"
    found = json.loads(kept._files.cat_file(mark))
    found["files"]["step-00000003/engine/model"] = found["files"].pop("step-00000002/engine/model")
    kept._files.pipe_file(mark, json.dumps(found).encode())
    with kept_training(kept_at(s3), tmp_path / "b" / "target-1"):
        assert not (tmp_path / "b" / "target-1" / "checkpoints").exists()
    assert "was not signed with the key" in capfd.readouterr().err


@pytest.mark.parametrize(("here", "there", "used"), [(4, 8, 8), (8, 4, 8), (8, 8, 8), (None, 8, 8)])
def test_the_newer_checkpoint_counts(here: int | None, there: int, used: int, tmp_path: Path) -> None:
    url = f"{tmp_path}/kept"
    with kept_training(kept_at(url), write(tmp_path / "a" / "t", **{f"checkpoints__step_{there:08d}__x": "there"})):
        pass
    folder = tmp_path / "b" / "t"
    folder.mkdir(parents=True)
    if here is not None:
        write(folder, **{f"checkpoints__step_{here:08d}__x": "here"})
    with kept_training(kept_at(url), folder):
        newest = max((folder / "checkpoints").glob("step-*"))
        assert newest.name == f"step-{used:08d}"
        assert (newest / "x").read_text() == ("here" if used == here else "there")
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoints"]


def test_the_newest_checkpoint_is_kept_under_way_and_forgotten_when_the_stage_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "TRAINING_EVERY", 0.01)
    url = f"{tmp_path}/kept"
    store = Store(tmp_path / "a" / "stages", kept_at(url))

    def work(folder: Path) -> str:
        name = f"trainings/{folder.name}"
        with kept_training(store.storage, folder):
            for step in (1, 2):
                write(folder, **{f"checkpoints__step_{step:08d}__x": str(step)})
                until(lambda step=step: listed(url, name) == {f"step-{step:08d}/x"})
        return "trained"

    made = store.make("target", {}, work)
    assert listed(url, f"trainings/{made.id}") == set()
    assert not list((tmp_path / "kept" / "trainings").rglob("*")) and listed(url, f"stages/{made.id}")


def test_a_snapshot_has_a_checkpoint_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"checkpoints__step_00000002__{name}": name for name in ("a", "b", "c")}
    folder = write(tmp_path / "run", record="so far", **files)
    whole = {"record", *(f"checkpoints/step-00000002/{name}" for name in ("a", "b", "c"))}
    assert set(snapshot(folder, tmp_path / "out")) == whole
    real = os.link

    def link(source: Path, place: Path) -> None:
        real(source, place)
        write(folder, checkpoints__step_00000003__a="newer")
        _remove(folder / "checkpoints" / "step-00000002")

    monkeypatch.setattr(os, "link", link)
    assert set(snapshot(folder, tmp_path / "out")) == {"record"}


def test_a_file_that_grows_is_copied(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", log="one\n")
    taken = snapshot(folder, tmp_path / "out")
    with (folder / "log").open("a") as stream:
        stream.write("two\n")
    assert taken["log"].read_text() == "one\n"


# -------------------------------------------------------------------------------------------------------- run folders


def test_a_run_folder_is_kept_without_tokens_locks_and_drafts(tmp_path: Path, s3: str) -> None:
    run = write(
        tmp_path / "a" / "demo",
        events="x", resolved="y", trials__0001__weights="z", jobs__demo_1__token="secret", ray__session="s",
        trials__0001__checkpoints__step_00000001__x="1", trials__0001__checkpoints__step_00000002__x="2",
    )  # fmt: skip
    (run / ".lock").touch()
    (run / "trials" / ".draft.partial").touch()
    with kept_run(s3, run):
        pass
    kept = {"events", "resolved", "trials/0001/weights", "trials/0001/checkpoints/step-00000002/x"}
    assert listed(s3, "runs/demo") == kept
    fetch_run(s3, tmp_path / "b" / "demo")
    assert {path: (tmp_path / "b" / "demo" / path).read_text() for path in kept} == {
        path: (run / path).read_text() for path in kept
    }
    assert (tmp_path / "b" / "demo").stat().st_mode & 0o077 == 0


def test_a_run_folder_is_brought_up_to_what_another_machine_has_kept_since(tmp_path: Path) -> None:
    url, a, b = f"{tmp_path}/kept", tmp_path / "a" / "demo", tmp_path / "b" / "demo"
    with kept_run(url, write(a, events="1")):
        pass
    write(a, events="1 and what was not kept any more")
    fetch_run(url, a)
    assert (a / "events").read_text() == "1 and what was not kept any more", "nobody else was there"
    fetch_run(url, b)
    with kept_run(url, write(b, events="1, 2")):
        pass
    with lock(a / ".lock"):
        fetch_run(url, a)
        assert (a / "events").read_text().startswith("1 and"), "not under the hands of who is at work in it"
    fetch_run(url, a)
    assert (a / "events").read_text() == "1, 2"


def test_a_storage_that_fails_ends_the_run_in_an_error_unless_it_ends_in_one_anyway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, run = f"{tmp_path}/kept", write(tmp_path / "demo", events="1")
    kept = kept_at(url)

    def fail(*given: Any) -> None:
        raise OSError("gone")

    monkeypatch.setattr(storages, "TRIES", 2)
    with monkeypatch.context() as patch:
        patch.setattr(kept._files, "put_file", fail)
        with pytest.raises(WorkError, match="could not take files"), kept_run(url, run):
            pass
        with pytest.raises(KeyboardInterrupt), kept_run(url, run):
            raise KeyboardInterrupt
    with kept_run(url, run):
        pass
    assert listed(url, "runs/demo") == {"events"}


def test_trouble_under_way_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    url, run = f"{tmp_path}/kept", write(tmp_path / "demo", events="1")
    kept, failures = kept_at(url), [OSError("gone")] * 3
    real = kept._files.put_file

    def failing(*given: Any) -> None:
        if failures:
            raise failures.pop()
        real(*given)

    monkeypatch.setattr(storages, "TRIES", 1)
    monkeypatch.setattr(kept._files, "put_file", failing)
    with Keeper(kept, "runs/demo", run, every=0.01):
        until(lambda: bool(listed(url, "runs/demo")))
    assert "runs/demo is not up to date yet" in capfd.readouterr().err


def test_nothing_is_kept_without_a_storage(tmp_path: Path) -> None:
    run = write(tmp_path / "demo", events="1")
    with kept_run(None, run), kept_training(None, run):
        fetch_run(None, run)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert [path.name for path in run.iterdir()] == ["events"]
