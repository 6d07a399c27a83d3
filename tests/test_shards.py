import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from xinv.data.shards import (
    Index,
    ShardEntry,
    _Digesting,
    describe,
    read_shard,
    schema_of,
    shard_path,
    verify,
    write_shard,
)
from xinv.errors import InputError


@pytest.fixture
def images(tiny_images: Path, tmp_path: Path) -> Path:
    """A copy of the image set that a test may damage."""
    return Path(shutil.copytree(tiny_images, tmp_path / "images"))


def sample(key: str, value: int = 7) -> dict:
    facts = {"label": 0, "identity": key, "attributes": {}}
    return {"__key__": key, "png": np.full((8, 8, 1), value, dtype=np.uint8), "json": facts}


def believe(folder: Path, partition: str, number: int, *, samples: int | None = None) -> Index:
    """Make the index vouch for a shard file as it is now, as an attacker who controls the whole folder would."""
    index = json.loads((folder / "index.json").read_text())
    data = shard_path(folder, partition, number).read_bytes()
    entry = index["partitions"][partition][number]
    entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if samples is not None:
        entry["samples"] = samples
    (folder / "index.json").write_text(json.dumps(index))
    return Index.load(folder)


def edit_index(folder: Path, change) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def rewrite(path: Path, extra: list[tuple[tarfile.TarInfo, bytes]], keep=lambda name: True) -> None:
    """Copy a tar with members left out or added."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar if keep(member.name)]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in [*members, *extra]:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


class Evil:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def refused(folder: Path, match: str, partition: str = "attack", number: int = 1) -> None:
    """read_shard raises one InputError with the shard's name, and verify has it as its only line."""
    path = shard_path(folder, partition, number)
    with pytest.raises(InputError, match=match) as caught:
        read_shard(folder, Index.load(folder), partition, number)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert verify(folder) == [str(caught.value)]


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


def test_sound_sets_verify(tiny_images, tiny_releases):
    calls = []
    assert verify(tiny_images, lambda done, total, note: calls.append((done, total, note))) == []
    assert calls[-1] == (23, 23, "gallery_validation")
    assert verify(tiny_releases) == []


def test_rows_and_fields_are_those_of_the_whole(tiny_releases):
    index = Index.load(tiny_releases)
    whole = read_shard(tiny_releases, index, "attack", 2)
    part = read_shard(tiny_releases, index, "attack", 2, rows={1, 3}, fields=["grad_cam.npy"])
    assert [found["__key__"] for found in part] == [whole[1]["__key__"], whole[3]["__key__"]]
    assert [set(found) for found in part] == [{"__key__", "grad_cam.npy"}] * 2
    np.testing.assert_array_equal(part[1]["grad_cam.npy"], whole[3]["grad_cam.npy"])


def member_boundary(path: Path, samples: int) -> int:
    """Offset in the tar at which its sample number `samples` begins."""
    with tarfile.open(path) as tar:
        return tar.getmembers()[2 * samples].offset


def test_cut_at_a_member_boundary(images):
    path = shard_path(images, "attack", 1)
    path.write_bytes(path.read_bytes()[: member_boundary(path, 3)])
    refused(images, "cut short or added to, 3 of 5 samples are there")


def test_cut_at_a_member_boundary_with_an_index_that_vouches_for_the_bytes(images):
    path = shard_path(images, "attack", 1)
    path.write_bytes(path.read_bytes()[: member_boundary(path, 3)])
    believe(images, "attack", 1)
    refused(images, "holds 3 samples, the index says 5")
    believe(images, "attack", 1, samples=3)
    refused(images, "ends before the end of a tar")


def test_cut_inside_a_member(images):
    path = shard_path(images, "attack", 1)
    path.write_bytes(path.read_bytes()[: member_boundary(path, 3) + 600])
    refused(images, "cut or damaged after 3 of 5 samples|3 of 5 samples are there|4 of 5 samples")


def test_flipped_byte(images):
    path = shard_path(images, "attack", 1)
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    refused(images, "another sha256 .* bytes have changed")


def test_missing_shard(images):
    shard_path(images, "attack", 1).unlink()
    refused(images, "is missing; index.json lists it with 5 samples")


def test_shard_that_the_index_does_not_list(images):
    index = Index.load(images)
    shutil.copy(shard_path(images, "attack", 1), shard_path(images, "attack", 5))
    with pytest.raises(InputError, match=r"000005\.tar is not listed in index\.json, which has 5 shards of attack"):
        read_shard(images, index, "attack", 5)
    (line,) = verify(images)
    assert "attack/000005.tar is not listed in index.json" in line


def test_unknown_partition(tiny_images):
    with pytest.raises(InputError, match="no partition 'test' in this set; it has target, "):
        read_shard(tiny_images, Index.load(tiny_images), "test", 0)


@pytest.mark.parametrize("vouched", [False, True])
def test_pickle_in_a_shard_is_refused_and_never_loaded(images, tmp_path, vouched):
    mark = tmp_path / "pickle-was-loaded"
    payload = pickle.dumps(Evil(mark))
    path = shard_path(images, "attack", 1)
    with tarfile.open(path) as tar:
        last = tar.getnames()[-1].partition(".")[0]
    rewrite(path, [(tarfile.TarInfo(f"{last}.pkl"), payload)])
    if vouched:
        believe(images, "attack", 1)
    refused(images, rf"foreign member '?{last}\.pkl'?, which was not opened")
    assert not mark.exists()
    pickle.loads(payload)
    assert mark.exists(), "the payload does what the test believes it does"


def test_index_cannot_ask_for_pickles(images):
    edit_index(images, lambda index: index["fields"].update(pkl={"dtype": "float32", "shape": [1], "units": ""}))
    with pytest.raises(InputError, match=r"index\.json is no valid index: .*\.pkl is of no known kind"):
        Index.load(images)
    assert len(verify(images)) == 1


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


def foreign(kind: str) -> tuple[tarfile.TarInfo, bytes]:
    if kind == "link":
        member = tarfile.TarInfo("link.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        return member, b""
    if kind == "folder":
        member = tarfile.TarInfo("folder")
        member.type = tarfile.DIRTYPE
        return member, b""
    return tarfile.TarInfo({"meta": "__secret__", "no extension": "README"}[kind]), b"text"


@pytest.mark.parametrize("kind", ["link", "folder", "meta", "no extension"])
@pytest.mark.parametrize("first", [False, True])
def test_members_that_webdataset_passes_over_in_silence(images, kind, first):
    path = shard_path(images, "attack", 1)
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    rewrite(path, [foreign(kind), *members] if first else [*members, foreign(kind)], keep=lambda _: False)
    believe(images, "attack", 1)
    refused(images, "holds something beside its samples")


def test_key_that_points_elsewhere(images):
    path = shard_path(images, "attack", 1)
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    for member, _ in members[:2]:
        member.name = "../../" + member.name
    rewrite(path, members, keep=lambda _: False)
    believe(images, "attack", 1)
    refused(images, "no sample key")


def test_missing_field(images):
    path = shard_path(images, "attack", 1)
    with tarfile.open(path) as tar:
        gone = tar.getnames()[-1]
    rewrite(path, [], keep=lambda name: name != gone)
    believe(images, "attack", 1)
    refused(images, f"sample {gone.partition('.')[0]} has no .png")


def test_member_twice(images):
    path = shard_path(images, "attack", 1)
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
        data = tar.extractfile(last).read()
    rewrite(path, [(last, data)])
    believe(images, "attack", 1)
    refused(images, "duplicate file name")


def test_picture_of_another_size_is_refused(images):
    edit_index(images, lambda index: index["fields"]["png"].update(shape=[32, 32, 1]))
    with pytest.raises(
        InputError, match=r"\.png is not what the index says: a L picture of 16x16, not of shape \(32, 32"
    ):
        read_shard(images, Index.load(images), "attack", 0)


def test_array_of_another_shape_is_refused(tiny_releases, tmp_path):
    folder = Path(shutil.copytree(tiny_releases, tmp_path / "releases"))
    edit_index(folder, lambda index: index["fields"]["grad_cam.npy"].update(shape=[1, 2, 8]))
    with pytest.raises(InputError, match=r"shape \(1, 4, 4\), not float32 \(1, 2, 8\)"):
        read_shard(folder, Index.load(folder), "attack", 0)


def test_label_without_a_name_is_refused(images):
    edit_index(images, lambda index: index.update(label_names=["cross", "disc"]))
    with pytest.raises(InputError, match="needs a label from 0 to 1, or -1 for none"):
        read_shard(images, Index.load(images), "attack", 0)


def test_any_damage_under_a_vouching_index_is_one_input_error_or_a_sound_sample(images):
    path = shard_path(images, "attack", 1)
    good = path.read_bytes()
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(100):
        data = bytearray(good)
        place, size = generator.integers(0, 5 * 2048), generator.integers(1, 40)
        data[place : place + size] = generator.bytes(int(size))
        path.write_bytes(data)
        index = believe(images, "attack", 1)
        try:
            samples = read_shard(images, index, "attack", 1)
        except InputError as error:
            outcomes.add("refused")
            assert str(path) in str(error)
        else:
            outcomes.add("read")
            assert len(samples) == 5 and all(found["png"].shape == (16, 16, 1) for found in samples)
    assert outcomes == {"refused", "read"}


def test_compressed_shard_is_not_opened(images):
    import gzip

    path = shard_path(images, "attack", 1)
    path.write_bytes(gzip.compress(path.read_bytes()))
    believe(images, "attack", 1)
    refused(images, "is no tar")


def test_verify_reports_every_problem_and_goes_on(images):
    shard_path(images, "attack", 1).unlink()
    path = shard_path(images, "victim", 0)
    path.write_bytes(path.read_bytes()[:-1])
    shutil.copy(shard_path(images, "target", 0), shard_path(images, "target", 9))
    problems = verify(images)
    assert len(problems) == 3
    for problem, words in zip(problems, ("attack/000001", "victim/000000", "target/000009"), strict=True):
        assert words in problem


def test_verify_finds_an_image_in_two_partitions(images):
    shutil.copy(shard_path(images, "attack", 0), shard_path(images, "victim", 0))
    believe(images, "victim", 0)
    (line,) = verify(images)
    assert "is in attack and in victim" in line


def test_verify_holds_a_set_to_its_promise_of_disjoint_people(images):
    path = shard_path(images, "victim", 0)
    samples = read_shard(images, Index.load(images), "victim", 0)
    samples[0]["json"]["identity"] = "00000000"  # who is in target
    write_shard(path, samples)
    believe(images, "victim", 0)
    assert verify(images) == []
    edit_index(images, lambda index: index.update(made_by={"disjoint": "identity"}))
    (line,) = verify(images)
    assert "identity '00000000' is in target and in victim" in line


# --- index -----------------------------------------------------------------------------------------------------------


def test_folder_without_an_index(tmp_path):
    (line,) = verify(tmp_path)
    assert "holds no finished set of shards" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.update(version=2), "version"),
        (lambda index: index.update(surprise=1), "surprise"),
        (lambda index: index["partitions"].update({"../up": []}), "no name for a partition"),
        (lambda index: index["partitions"]["attack"][0].update(sha256="00"), "sha256"),
        (lambda index: index["partitions"]["attack"][0].update(samples=0), "samples"),
        (lambda index: index["fields"].pop("json"), "needs the fields json"),
    ],
)
def test_index_that_makes_no_sense(images, change, message):
    edit_index(images, change)
    with pytest.raises(InputError, match=message):
        Index.load(images)


def test_index_that_is_no_json(images):
    (images / "index.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        Index.load(images)


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
