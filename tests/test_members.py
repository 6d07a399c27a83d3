"""Members of a shard file: what is cut, foreign, twice or missing is refused, whatever the index vouches for."""

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from damage import Evil, believe, refused, rewrite

from xinv.data.index import shard_path
from xinv.data.shards import read_shard
from xinv.errors import InputError


def member_boundary(path: Path, samples: int) -> int:
    """Offset in the tar at which its sample number `samples` begins."""
    with tarfile.open(path) as tar:
        return tar.getmembers()[2 * samples].offset


def test_cut_at_a_member_boundary(own_images):
    path = shard_path(own_images, "attack", 1)
    path.write_bytes(path.read_bytes()[: member_boundary(path, 3)])
    refused(own_images, "cut short or added to, 3 of 5 samples are there")


def test_cut_at_a_member_boundary_with_an_index_that_vouches_for_the_bytes(own_images):
    path = shard_path(own_images, "attack", 1)
    path.write_bytes(path.read_bytes()[: member_boundary(path, 3)])
    believe(own_images, "attack", 1)
    refused(own_images, "holds 3 samples, the index says 5")
    believe(own_images, "attack", 1, samples=3)
    refused(own_images, "ends before the end of a tar")


def test_cut_inside_a_member(own_images):
    path = shard_path(own_images, "attack", 1)
    path.write_bytes(path.read_bytes()[: member_boundary(path, 3) + 600])
    refused(own_images, "cut or damaged after 3 of 5 samples|3 of 5 samples are there|4 of 5 samples")


@pytest.mark.parametrize("vouched", [False, True])
def test_pickle_in_a_shard_is_refused_and_never_loaded(own_images, tmp_path, vouched):
    mark = tmp_path / "pickle-was-loaded"
    payload = pickle.dumps(Evil(mark))
    path = shard_path(own_images, "attack", 1)
    with tarfile.open(path) as tar:
        last = tar.getnames()[-1].partition(".")[0]
    rewrite(path, [(tarfile.TarInfo(f"{last}.pkl"), payload)])
    if vouched:
        believe(own_images, "attack", 1)
    refused(own_images, rf"foreign member '?{last}\.pkl'?, which was not opened")
    assert not mark.exists()
    pickle.loads(payload)
    assert mark.exists(), "the payload does what the test believes it does"


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
def test_members_that_webdataset_passes_over_in_silence(own_images, kind, first):
    path = shard_path(own_images, "attack", 1)
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    rewrite(path, [foreign(kind), *members] if first else [*members, foreign(kind)], keep=lambda _: False)
    believe(own_images, "attack", 1)
    refused(own_images, "holds something beside its samples")


def test_key_that_points_elsewhere(own_images):
    path = shard_path(own_images, "attack", 1)
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    for member, _ in members[:2]:
        member.name = "../../" + member.name
    rewrite(path, members, keep=lambda _: False)
    believe(own_images, "attack", 1)
    refused(own_images, "no sample key")


def test_missing_field(own_images):
    path = shard_path(own_images, "attack", 1)
    with tarfile.open(path) as tar:
        gone = tar.getnames()[-1]
    rewrite(path, [], keep=lambda name: name != gone)
    believe(own_images, "attack", 1)
    refused(own_images, f"sample {gone.partition('.')[0]} has no .png")


def test_member_twice(own_images):
    path = shard_path(own_images, "attack", 1)
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
        data = tar.extractfile(last).read()
    rewrite(path, [(last, data)])
    believe(own_images, "attack", 1)
    refused(own_images, "duplicate file name")


def test_any_damage_under_a_vouching_index_is_one_input_error_or_a_sound_sample(own_images):
    path = shard_path(own_images, "attack", 1)
    good = path.read_bytes()
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(100):
        data = bytearray(good)
        place, size = generator.integers(0, 5 * 2048), generator.integers(1, 40)
        data[place : place + size] = generator.bytes(int(size))
        path.write_bytes(data)
        index = believe(own_images, "attack", 1)
        try:
            samples = read_shard(own_images, index, "attack", 1)
        except InputError as error:
            outcomes.add("refused")
            assert str(path) in str(error)
        else:
            outcomes.add("read")
            assert len(samples) == 5 and all(found["png"].shape == (16, 16, 1) for found in samples)
    assert outcomes == {"refused", "read"}
