"""What is done to finished sets of shards to see it refused."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from xinv.data.index import Index, shard_path
from xinv.data.shards import read_shard, verify
from xinv.errors import InputError


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
