"""Shards that come from a storage as they are read: the same bytes, once, within their room, and every trouble said.

The storage is S3 over HTTP (moto's server in a thread of this process), where the place does not matter a folder.
"""

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from audits import audit, scores_of
from ranks import run_on_ranks
from storages import own_key, s3, server
from test_train import job_for

from xinv import remote
from xinv import storage as storages
from xinv.data.index import Index, shard_path
from xinv.data.loader import Reader
from xinv.data.shards import open_shard, read_shard, verify
from xinv.errors import InputError, WorkError
from xinv.remote import REMOTE, Remote
from xinv.stage import MARK, Finished, Store
from xinv.storage import Storage, opened, reading
from xinv.train.loop import train

__all__ = ["own_key", "s3", "server"]  # fixtures

METHODS = ("gradient", "grad_cam")
MOST = 70_000
"""Bytes: of a partition's ten shards, images and releases, some three pairs; all sets have 270,000."""


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    reading.cache_clear()
    yield
    reading.cache_clear()


def store(machine: Path, url: str, most: int | None = None) -> Store:
    """The stages of one machine; a new process as it were."""
    opened.cache_clear()
    reading.cache_clear()
    return Store(machine / "stages", opened(url), most)


def copy_of(source: Path) -> Callable[[Path], None]:
    return lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True) and None


def never(folder: Path) -> None:
    raise AssertionError("made again")


def made(machine: Path, url: str, **sets: Path) -> list[Finished]:
    """Stages that hold copies of finished sets, made on one machine and kept."""
    return [store(machine, url).make(kind, {}, copy_of(source)) for kind, source in sets.items()]


def found(machine: Path, url: str, kind: str = "images", most: int | None = None) -> Path:
    """Where another machine has the stage, none of its shards there yet."""
    return store(machine, url, most).make(kind, {}, never).folder


def here(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*.tar")}


def bytes_here(stages: Path) -> int:
    return sum(path.stat().st_size for path in stages.rglob("[!.]*.tar"))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are fetched from now on, in this process."""
    names: list[str] = []
    real = Storage.fetch

    def noting(self: Storage, name: str, path: str, *rest: Any) -> bool:
        if path.endswith(".tar"):
            names.append(path)
        return real(self, name, path, *rest)

    monkeypatch.setattr(Storage, "fetch", noting)
    return names


# ------------------------------------------------------------------------------------------------------ the same bytes


def test_what_is_beside_the_shards_comes_at_once_and_a_shard_when_it_is_read(
    s3: str, tiny_images: Path, tmp_path: Path, fetched: list[str]
) -> None:
    (original,) = made(tmp_path / "a", s3, images=tiny_images)
    folder = found(tmp_path / "b", s3)
    assert here(folder) == set() and not fetched
    assert not (original.folder / REMOTE).exists(), "what was made here is never fetched, nor removed"
    text = (folder / REMOTE).read_text()
    assert json.loads(text) == {"url": s3, "name": f"stages/{original.id}", "most": None}
    index = Index.load(folder)
    assert [sample["__key__"] for sample in read_shard(folder, index, "attack", 1)] == [
        sample["__key__"] for sample in read_shard(tiny_images, index, "attack", 1)
    ]
    assert here(folder) == {"attack/000001.tar"} and fetched == ["attack/000001.tar"]
    assert verify(folder) == [] and here(folder) == here(tiny_images)
    assert len(fetched) == len(set(fetched)) == len(here(tiny_images))


@pytest.mark.parametrize("decoders", [0, 2])
@pytest.mark.parametrize("memory_bytes", [2 << 30, 20_000])
def test_batches_are_those_of_local_shards_in_less_room_than_the_set_takes(
    decoders: int,
    memory_bytes: int,
    s3: str,
    tiny_images: Path,
    tiny_releases: Path,
    tmp_path: Path,
    fetched: list[str],
) -> None:
    made(tmp_path / "a", s3, images=tiny_images, releases=tiny_releases)
    images, releases = (found(tmp_path / "b", s3, kind, MOST) for kind in ("images", "releases"))
    options: dict[str, Any] = {"seed": 3, "memory_bytes": memory_bytes, "decoders": decoders}
    expected = Reader(tiny_images, "attack", tiny_releases, METHODS, **options)
    seen = Reader(images, "attack", releases, METHODS, **options)
    for epoch in range(3):
        for one, other in zip(expected.epoch(epoch, 6), seen.epoch(epoch, 6), strict=True):
            assert one.key == other.key and one.cursor == other.cursor
            torch.testing.assert_close(one.image_BCHW, other.image_BCHW, rtol=0, atol=0)
            for method in METHODS:
                torch.testing.assert_close(one.maps[method], other.maps[method], rtol=0, atol=0)
    shards = 2 * len(Index.load(tiny_images).entries("attack"))
    assert set(fetched) == {f"attack/{number:06d}.tar" for number in range(shards // 2)}
    if not seen.fits:
        assert len(fetched) > shards, "some were removed, and fetched again"
    deadline = time.monotonic() + 60
    while bytes_here(tmp_path / "b" / "stages") > MOST:  # a fetch ahead may be ending
        assert time.monotonic() < deadline, "nothing is read any more, and the room is not kept"
        time.sleep(0.02)


def weights(images: Path, folder: Path) -> bytes:
    train(job_for(images, folder, epochs=2, memory_mib=1))
    return (folder / "weights.safetensors").read_bytes()


def test_two_ranks_that_share_fetched_shards_train_the_same_weights(s3: str, tiny_images: Path, tmp_path: Path) -> None:
    made(tmp_path / "a", s3, images=tiny_images)
    images = found(tmp_path / "b", s3, most=MOST // 2)
    local, _ = run_on_ranks(weights, 2, tmp_path, tiny_images, tmp_path / "local")
    streamed, _ = run_on_ranks(weights, 2, tmp_path, images, tmp_path / "streamed")
    assert streamed == local
    assert here(images), "they were read from here"


@pytest.mark.slow
def test_an_audit_whose_sets_are_fetched_comes_to_the_same_scores(s3: str, tmp_path: Path) -> None:
    for machine in ("a", "b"):
        (tmp_path / machine).mkdir()
    first = audit(tmp_path / "a" / "runs", f"storage={s3}")
    assert first.returncode == 0, first.stderr
    kept = opened(s3)
    assert kept is not None
    for stage in (tmp_path / "a" / "runs" / "stages").iterdir():
        if stage.name.startswith(("target", "evaluator", "inverter", "scores")):
            kept.drop(f"stages/{stage.name}")
    kept.drop("runs/demo")
    second = audit(tmp_path / "b" / "runs", f"storage={s3}", "cache_gib=0.0002")
    assert second.returncode == 0, second.stderr
    assert scores_of(tmp_path / "b" / "runs")["rows"] == scores_of(tmp_path / "a" / "runs")["rows"]
    sets = [path.parent for path in (tmp_path / "b" / "runs" / "stages").glob(f"*/{REMOTE}")]
    assert {folder.name.split("-")[0] for folder in sets} == {"images", "releases"}
    assert sum(map(bytes_here, sets)) < sum(entry.bytes for folder in sets for entry in _entries(folder))


def _entries(folder: Path) -> list[Any]:
    return [entry for entries in Index.load(folder).partitions.values() for entry in entries]


# ------------------------------------------------------------------------------------------------------------- trouble


def object_of(url: str, path: str) -> tuple[Any, str]:
    kept = opened(url)
    assert kept is not None
    return kept._files, next(name for name in kept._files.find(kept._root) if name.endswith(path))


@pytest.mark.parametrize("change", ["other bytes", "lost"])
def test_a_shard_that_was_changed_there_ends_in_one_error_and_its_mend_mends(
    change: str, s3: str, tiny_images: Path, tmp_path: Path
) -> None:
    made(tmp_path / "a", s3, images=tiny_images)
    folder = found(tmp_path / "b", s3)
    files, name = object_of(s3, "attack/000002.tar")
    if change == "lost":
        files.rm_file(name)
    else:
        files.pipe_file(name, bytes(len(files.cat_file(name))))
    with pytest.raises(InputError, match=r"attack/000002.tar is not here, and storage .* Remove .*makes the set again"):
        list(Reader(folder, "attack").epoch(0, 6))
    assert "attack/000002.tar" not in here(folder) and not list(folder.rglob("*.partial"))
    problems = verify(folder)
    assert len(problems) == 1 and "attack/000002.tar is not here" in problems[0]
    shutil.rmtree(folder)
    again = store(tmp_path / "b", s3).make("images", {}, copy_of(tiny_images))
    assert again.fresh and verify(found(tmp_path / "c", s3)) == []


def test_a_server_that_went_away_ends_in_one_error(
    s3: str, server: Any, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the client's own tries, beneath ours, take seconds each
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    S3FileSystem.clear_instance_cache()
    made(tmp_path / "a", s3, images=tiny_images)
    folder = found(tmp_path / "b", s3)
    _, server._port = server.get_host_and_port()
    server.stop()
    tried: list[str] = []
    files = reading(s3)._files
    real = files.get_file
    monkeypatch.setattr(files, "get_file", lambda key, file: (tried.append(key), real(key, file)))
    try:
        with pytest.raises(WorkError, match=r"could not read: .*same command continues"):
            list(Reader(folder, "attack", memory_bytes=2000, decoders=2).epoch(0, 6))
        assert max(map(tried.count, tried)) == storages.TRIES, "who waited does not begin again"
    finally:
        server.start()
    reading.cache_clear()
    assert verify(folder) == [], "what came meanwhile, ahead, is sound as well"


def test_a_folder_that_went_away_is_no_loss_of_a_shard(tiny_images: Path, tmp_path: Path) -> None:
    made(tmp_path / "a", f"{tmp_path}/kept", images=tiny_images)
    folder = found(tmp_path / "b", f"{tmp_path}/kept")
    (tmp_path / "kept").rename(tmp_path / "unmounted")
    with pytest.raises(WorkError, match="is gone"):
        list(Reader(folder, "attack").epoch(0, 6))


def test_another_storage_cannot_be_given_what_is_not_here(tiny_images: Path, tmp_path: Path) -> None:
    made(tmp_path / "a", f"{tmp_path}/one", images=tiny_images)
    folder = found(tmp_path / "b", f"{tmp_path}/one")
    with pytest.raises(InputError, match=r"has its shards in storage .*/one.*remove the folder"):
        found(tmp_path / "b", f"{tmp_path}/other")
    (folder / MARK).unlink()
    assert store(tmp_path / "b", f"{tmp_path}/other").make("images", {}, copy_of(tiny_images)).fresh
    assert not (folder / REMOTE).exists(), "its shards were made here now"


# ----------------------------------------------------------------------------------------------- several at one shard


def _slowly(folder: Path, log: Path, ready: Any) -> None:
    """Read a shard, and note every fetch of this process."""
    real = Storage.fetch

    def fetch(self: Storage, *given: Any) -> bool:
        with log.open("a") as lines:
            lines.write(f"{os.getpid()}\n")
        ready.wait(2)  # the other one waits for the shard by then, or would be fetching it too
        return real(self, *given)

    Storage.fetch = fetch  # type: ignore[method-assign]
    read_shard(folder, Index.load(folder), "attack", 0)


def test_two_processes_fetch_a_shard_once(tiny_images: Path, tmp_path: Path) -> None:
    made(tmp_path / "a", f"{tmp_path}/kept", images=tiny_images)
    folder = found(tmp_path / "b", f"{tmp_path}/kept")
    context = multiprocessing.get_context("spawn")
    never_set = context.Event()
    readers = [context.Process(target=_slowly, args=(folder, tmp_path / "log", never_set)) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(120)
        assert reader.exitcode == 0
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def _killed(folder: Path) -> None:
    """Begin to fetch a shard, and die half-way."""

    def half(self: Storage, name: str, path: str, size: int, sha256: str, file: Path) -> bool:
        file.write_bytes(b"\0" * (size // 2))
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    Storage.fetch = half  # type: ignore[method-assign]
    read_shard(folder, Index.load(folder), "attack", 0)


def test_a_fetch_that_was_killed_leaves_nothing_that_is_believed(tiny_images: Path, tmp_path: Path) -> None:
    made(tmp_path / "a", f"{tmp_path}/kept", images=tiny_images)
    folder = found(tmp_path / "b", f"{tmp_path}/kept")
    victim = multiprocessing.get_context("spawn").Process(target=_killed, args=(folder,))
    victim.start()
    victim.join(120)
    assert victim.exitcode == -signal.SIGKILL
    assert here(folder) == set() and len(list(folder.rglob("*.partial"))) == 1
    index = Index.load(folder)
    assert len(read_shard(folder, index, "attack", 0)) == 5
    assert not list(folder.rglob("*.partial"))


# ------------------------------------------------------------------------------------------------------------- removal


def test_the_longest_unused_go_and_none_that_is_read_waited_for_or_made_here(
    tiny_images: Path, tiny_releases: Path, tmp_path: Path
) -> None:
    url = f"{tmp_path}/kept"
    made(tmp_path / "a", url, images=tiny_images)
    local = store(tmp_path / "b", url).make("releases", {}, copy_of(tiny_releases)).folder
    index = Index.load(tiny_images)
    size = max(entry.bytes for entry in index.entries("attack"))
    folder = found(tmp_path / "b", url, most=3 * size)

    def read(number: int) -> None:
        read_shard(folder, index, "attack", number)

    def numbers() -> set[int]:
        return {int(Path(name).stem) for name in here(folder)}

    for number in (0, 1, 2):
        read(number)
        os.utime(remote._lock_of(shard_path(folder, "attack", number)), (number + 1, number + 1))
    read(0)
    read(3)
    assert numbers() == {0, 2, 3}, "0 was used since"
    with open_shard(folder, index, "attack", 2), remote._lock_of(shard_path(folder, "attack", 0)).open("a") as turn:
        remote.fcntl.flock(turn, remote.fcntl.LOCK_EX)  # as who waits for it would
        read(4)
        assert numbers() == {0, 2, 4}
        with open_shard(folder, index, "attack", 4):
            with open_shard(folder, index, "attack", 1):
                assert numbers() == {0, 1, 2, 4}, "more than there is room for, where all of it is in use"
            assert numbers() == {0, 2, 4}, "and no longer than that"
    read(3)
    assert len(numbers()) == 3 and 3 in numbers()
    assert here(local) == here(tiny_releases)


def test_the_room_and_the_address_are_those_of_the_settings_of_now(
    tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "a", f"{tmp_path}/kept", images=tiny_images)
    folder = found(tmp_path / "b", f"{tmp_path}/kept", most=5)
    (tmp_path / "kept").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert found(tmp_path / "b", "moved", most=MOST) == folder
    assert Remote.of(folder) == Remote(url=f"{tmp_path}/moved", name=f"stages/{folder.name}", most=MOST)
    monkeypatch.chdir("/")
    assert verify(folder) == []
