"""Shards: what is written is what is read, whatever happened to the file in between."""

import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from damage import Evil, believe, edit_index, refused, rewrite

from xinv.data.fields import schema_of
from xinv.data.index import Index, ShardEntry, shard_path
from xinv.data.shards import _Digesting, describe, read_shard, verify, write_shard
from xinv.errors import InputError


def sample(key: str, value: int = 7) -> dict:
    facts = {"label": 0, "identity": key, "attributes": {}}
    return {"__key__": key, "png": np.full((8, 8, 1), value, dtype=np.uint8), "json": facts}


# --- writing ---------------------------------------------------------------------------------------------------------


def test_written_is_what_is_read(tmp_path):
    generator = np.random.default_rng(0)
    written = [
        {
            "__key__": f"face_{i}-a",
            "png": generator.integers(0, 256, (9, 7, 3), dtype=np.uint8),
            "json": {"label": i, "identity": "Zoë", "attributes": {"age": 1.5}},
            "gradient.npy": generator.normal(size=(2, 3, 4)).astype(np.float32),
            "scale.npy": np.float32(i),
        }
        for i in range(3)
    ]
    entry = write_shard(shard_path(tmp_path, "victim", 0), written)
    index = Index(
        kind="images",
        made_by={},
        label_names=("a", "b", "c"),
        fields=schema_of(written[0], {"gradient.npy": "d logit / d pixel"}),
        partitions={"victim": (entry,)},
    )
    assert index.fields["gradient.npy"].units == "d logit / d pixel" and index.fields["scale.npy"].shape == ()
    found = read_shard(tmp_path, index, "victim", 0)
    for one, other in zip(written, found, strict=True):
        assert list(other) == ["__key__", *index.fields]
        assert one["__key__"] == other["__key__"] and one["json"] == other["json"]
        for name in ("png", "gradient.npy", "scale.npy"):
            assert other[name].dtype == one[name].dtype
            np.testing.assert_array_equal(other[name], one[name])


def test_gray_images_keep_their_channel_axis(tmp_path):
    flat = sample("a") | {"png": np.full((8, 8), 3, dtype=np.uint8)}
    entry = write_shard(tmp_path / "attack" / "000000.tar", [flat])
    index = Index(
        kind="images", made_by={}, label_names=("x",), fields=schema_of(flat), partitions={"attack": (entry,)}
    )
    assert read_shard(tmp_path, index, "attack", 0)[0]["png"].shape == (8, 8, 1)


def test_entry_describes_the_file(tmp_path):
    path = tmp_path / "attack" / "000000.tar"
    entry = write_shard(path, (sample(str(i)) for i in range(3)))
    data = path.read_bytes()
    assert entry == ShardEntry(samples=3, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def test_equal_samples_give_equal_bytes(tmp_path, monkeypatch):
    first = write_shard(tmp_path / "a" / "000000.tar", [sample("x"), sample("y")])
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    reordered = [dict(reversed(sample(key).items())) for key in ("x", "y")]
    assert write_shard(tmp_path / "b" / "000000.tar", reordered) == first
    assert write_shard(tmp_path / "c" / "000000.tar", [sample("x"), sample("y", 8)]) != first


def test_shards_are_plain_tars_without_a_trace_of_who_wrote_them(tmp_path):
    path = tmp_path / "attack" / "000000.tar"
    write_shard(path, [sample("x")])
    with tarfile.open(path, "r:") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == ["x.json", "x.png"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    assert path.read_bytes()[257:265] == b"ustar\x0000"
    assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no sample"),
        ([sample("a.b")], "no sample key"),
        ([sample("../a")], "no sample key"),
        ([sample("__meta__")], "no sample key"),
        ([sample("a"), sample("b"), sample("a")], "'a' occurs twice"),
        ([sample("a"), {"__key__": "b", "json": {}}], "'b' holds"),
        ([{"__key__": "a", "pkl": b""}], "no known kind"),
        ([{"__key__": "a", "png": np.zeros((8, 8, 1))}], "cannot be stored as PNG"),
        ([{"__key__": "a", "map.npy": np.array([object()])}], "Python objects"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, samples, message):
    with pytest.raises(InputError, match=message):
        write_shard(tmp_path / "attack" / "000000.tar", samples)
    assert list((tmp_path / "attack").iterdir()) == []


@pytest.mark.parametrize("moment", ["write", "fsync", "device"])
def test_full_disk_leaves_nothing(tmp_path, monkeypatch, moment):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "attack" / "000000.tar"
    old = write_shard(path, [sample("old")])
    if moment == "write":
        monkeypatch.setattr(_Digesting, "write", full)
    elif moment == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        # The kernel's own answer. Only for writing: to read /dev/full is to read zeros without end.
        monkeypatch.setattr(Path, "open", lambda self, mode: os.fdopen(os.open("/dev/full", os.O_WRONLY), mode))
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_shard(path, [sample("a") | {"png": noise}])
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    # The earlier shard is untouched, and no draft lies beside it.
    assert list(path.parent.iterdir()) == [path]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == old.sha256


def test_failure_in_the_samples_leaves_nothing(tmp_path):
    def broken():
        yield sample("a")
        raise RuntimeError("the explainer died")

    with pytest.raises(RuntimeError, match="explainer died"):
        write_shard(tmp_path / "attack" / "000000.tar", broken())
    assert list((tmp_path / "attack").iterdir()) == []


# --- reading ---------------------------------------------------------------------------------------------------------


def test_rows_and_fields_are_those_of_the_whole(tiny_releases):
    index = Index.load(tiny_releases)
    whole = read_shard(tiny_releases, index, "attack", 2)
    part = read_shard(tiny_releases, index, "attack", 2, rows={1, 3}, fields=["grad_cam.npy"])
    assert [found["__key__"] for found in part] == [whole[1]["__key__"], whole[3]["__key__"]]
    assert [set(found) for found in part] == [{"__key__", "grad_cam.npy"}] * 2
    np.testing.assert_array_equal(part[1]["grad_cam.npy"], whole[3]["grad_cam.npy"])


def test_flipped_byte(own_images):
    path = shard_path(own_images, "attack", 1)
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    refused(own_images, "another sha256 .* bytes have changed")


def test_missing_shard(own_images):
    shard_path(own_images, "attack", 1).unlink()
    refused(own_images, "is missing; index.json lists it with 5 samples")


def test_shard_that_the_index_does_not_list(own_images):
    index = Index.load(own_images)
    shutil.copy(shard_path(own_images, "attack", 1), shard_path(own_images, "attack", 5))
    with pytest.raises(InputError, match=r"000005\.tar is not listed in index\.json, which has 5 shards of attack"):
        read_shard(own_images, index, "attack", 5)
    (line,) = verify(own_images)
    assert "attack/000005.tar is not listed in index.json" in line


def test_pickled_array_in_an_npy_member_is_refused(tiny_releases, tmp_path):
    folder = Path(shutil.copytree(tiny_releases, tmp_path / "releases"))
    path, mark = shard_path(folder, "attack", 1), tmp_path / "pickle-was-loaded"
    stream = io.BytesIO()
    np.save(stream, np.array([Evil(mark)], dtype=object), allow_pickle=True)
    with tarfile.open(path) as tar:
        name = next(name for name in tar.getnames() if name.endswith(".gradient.npy"))
    key = name.partition(".")[0]
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    rewrite(
        path,
        [(member, stream.getvalue() if member.name == name else data) for member, data in members],
        keep=lambda _: False,
    )
    believe(folder, "attack", 1)
    refused(folder, rf"{key}\.gradient\.npy is not what the index says: an array of dtype object")
    assert not mark.exists()
    edit_index(folder, lambda index: index["fields"]["gradient.npy"].update(dtype="object"))
    with pytest.raises(InputError, match="has dtype object"):
        Index.load(folder)


def test_picture_of_another_size_is_refused(own_images):
    edit_index(own_images, lambda index: index["fields"]["png"].update(shape=[32, 32, 1]))
    with pytest.raises(
        InputError, match=r"\.png is not what the index says: a L picture of 16x16, not of shape \(32, 32"
    ):
        read_shard(own_images, Index.load(own_images), "attack", 0)


def test_array_of_another_shape_is_refused(tiny_releases, tmp_path):
    folder = Path(shutil.copytree(tiny_releases, tmp_path / "releases"))
    edit_index(folder, lambda index: index["fields"]["grad_cam.npy"].update(shape=[1, 2, 8]))
    with pytest.raises(InputError, match=r"shape \(1, 4, 4\), not float32 \(1, 2, 8\)"):
        read_shard(folder, Index.load(folder), "attack", 0)


def test_label_without_a_name_is_refused(own_images):
    edit_index(own_images, lambda index: index.update(label_names=["cross", "disc"]))
    with pytest.raises(InputError, match="needs a label from 0 to 1, or -1 for none"):
        read_shard(own_images, Index.load(own_images), "attack", 0)


def test_compressed_shard_is_not_opened(own_images):
    path = shard_path(own_images, "attack", 1)
    path.write_bytes(gzip.compress(path.read_bytes()))
    believe(own_images, "attack", 1)
    refused(own_images, "is no tar")


# --- the whole set ---------------------------------------------------------------------------------------------------


def test_sound_sets_verify(tiny_images, tiny_releases):
    calls = []
    assert verify(tiny_images, lambda done, total, note: calls.append((done, total, note))) == []
    assert calls[-1] == (23, 23, "gallery_validation")
    assert verify(tiny_releases) == []


def test_verify_reports_every_problem_and_goes_on(own_images):
    shard_path(own_images, "attack", 1).unlink()
    path = shard_path(own_images, "victim", 0)
    path.write_bytes(path.read_bytes()[:-1])
    shutil.copy(shard_path(own_images, "target", 0), shard_path(own_images, "target", 9))
    problems = verify(own_images)
    assert len(problems) == 3
    for problem, words in zip(problems, ("attack/000001", "victim/000000", "target/000009"), strict=True):
        assert words in problem


def test_verify_finds_an_image_in_two_partitions(own_images):
    shutil.copy(shard_path(own_images, "attack", 0), shard_path(own_images, "victim", 0))
    believe(own_images, "victim", 0)
    (line,) = verify(own_images)
    assert "is in attack and in victim" in line


def test_verify_holds_a_set_to_its_promise_of_disjoint_people(own_images):
    path = shard_path(own_images, "victim", 0)
    samples = read_shard(own_images, Index.load(own_images), "victim", 0)
    samples[0]["json"]["identity"] = "00000000"  # who is in target
    write_shard(path, samples)
    believe(own_images, "victim", 0)
    assert verify(own_images) == []
    edit_index(own_images, lambda index: index.update(made_by={"disjoint": "identity"}))
    (line,) = verify(own_images)
    assert "identity '00000000' is in target and in victim" in line


def test_describe_counts(tiny_images):
    found = describe(tiny_images)
    assert json.loads(json.dumps(found)) == found
    assert found["partitions"]["attack"]["samples"] == 23 and found["partitions"]["attack"]["shards"] == 5
    size = sum(path.stat().st_size for path in tiny_images.rglob("*.tar"))
    assert (found["samples"], found["shards"], found["bytes"]) == (92, 23, size)
    assert found["fields"]["png"]["shape"] == [16, 16, 1]


def test_importing_shards_imports_no_webdataset_and_no_torch():
    code = "import sys, xinv.data.shards; assert not {'torch', 'webdataset', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
