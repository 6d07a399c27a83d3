"""Sets made one shard at a time: what is finished is believed, what is not is made again, whatever came between."""

import re
from pathlib import Path

import pytest
from explaining import SETTINGS, Tasks, content, load, make, make_target

from xinv.data.entries import entry_path
from xinv.data.index import Index, shard_path
from xinv.errors import InputError, WorkError
from xinv.release.precompute import Explainer, ReleaseSettings, all_tasks, finish


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return make_target(tmp_path / "target")


def test_a_finished_set_is_not_made_again(tiny_images: Path, target: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(tiny_images, target, out)
    before = content(out)
    # A kill between the index and the removal of the entries leaves some behind.
    entry_path(out, ("victim", 0)).write_text("{}")
    assert make(tiny_images, target, out).ran == []
    assert content(out) == before


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_continued_equals_uninterrupted(tiny_images: Path, target: Path, tmp_path: Path, limit: int) -> None:
    make(tiny_images, target, tmp_path / "whole")
    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        make(tiny_images, target, out, tasks=Tasks(limit))
    assert not (out / "index.json").exists()
    rest = make(tiny_images, target, out)
    everything = all_tasks(Index.load(tiny_images))
    assert rest.ran == everything[limit:]
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["flipped", "cut", "no tar", "no entry", "broken entry", "another's entry"])
def test_what_is_not_whole_is_made_again(tiny_images: Path, target: Path, tmp_path: Path, damage: str) -> None:
    make(tiny_images, target, tmp_path / "whole")
    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        make(tiny_images, target, out, tasks=Tasks(3))
    tar, entry = shard_path(out, "attack", 1), entry_path(out, ("attack", 1))
    if damage == "flipped":
        data = bytearray(tar.read_bytes())
        data[700] ^= 1
        tar.write_bytes(data)
    elif damage == "cut":
        tar.write_bytes(tar.read_bytes()[:-512])
    elif damage == "no tar":
        tar.unlink()
    elif damage == "no entry":
        entry.unlink()
    elif damage == "broken entry":
        entry.write_text("{")
    else:
        entry.write_text(entry_path(out, ("attack", 0)).read_text())
    rest = make(tiny_images, target, out)
    assert rest.ran[0] == ("attack", 1)
    assert len(rest.ran) == len(all_tasks(Index.load(tiny_images))) - 2
    assert content(out) == content(tmp_path / "whole")


def test_shards_of_another_target_are_not_believed(tiny_images: Path, target: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = make_target(tmp_path / "other", seed=1)
    with pytest.raises(KeyboardInterrupt):
        make(tiny_images, other, out, tasks=Tasks(4))
    assert len(make(tiny_images, target, out).ran) == len(all_tasks(Index.load(tiny_images)))
    with pytest.raises(InputError, match="holds another set"):
        make(tiny_images, other, out)
    more = ReleaseSettings(methods=("gradient",))
    with pytest.raises(InputError, match="holds another set"):
        make(tiny_images, target, out, more)


def test_a_finished_set_with_a_shard_missing_is_named(tiny_images: Path, target: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(tiny_images, target, out)
    shard_path(out, "attack", 2).unlink()
    with pytest.raises(InputError, match=r"attack/000002\.tar is missing or cut"):
        make(tiny_images, target, out)


def test_a_worker_does_not_remake_a_finished_shard(tiny_images: Path, target: Path, tmp_path: Path) -> None:
    explainer = Explainer(target, tiny_images, tmp_path / "out", SETTINGS, load)
    first = explainer(("victim", 0))
    written = shard_path(tmp_path / "out", "victim", 0).stat().st_mtime_ns
    assert explainer(("victim", 0)) == first
    assert shard_path(tmp_path / "out", "victim", 0).stat().st_mtime_ns == written
    with pytest.raises(WorkError, match=r"attack/000000\.tar is not finished"):
        finish(tiny_images, target, tmp_path / "out", SETTINGS)


def test_progress_counts_images_with_those_already_there(tiny_images: Path, target: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make(tiny_images, target, out, tasks=Tasks(2))
    seen: list[tuple[float, float, str]] = []
    make(tiny_images, target, out, progress=lambda *told: seen.append(told))
    # attack has shards of 5, 5, 5, 5, 3, attack_validation of 5, 1, victim of 5, 5, 1
    assert [(done, total) for done, total, _ in seen] == [(done, 40) for done in (15, 20, 23, 28, 29, 34, 39, 40)]
    assert all(re.fullmatch(rf"{done} images, [\d.,]+ a second", note) for done, _, note in seen[1:])
