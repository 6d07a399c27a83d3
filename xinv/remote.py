"""Shards of a finished set that lie in a storage and come here as they are read.

    SET/remote.json                       where they lie, and how many bytes of such shards may be on this disk
    SET/PARTITION/NNNNNN.tar              one that has come
    SET/PARTITION/.NNNNNN.tar.lock        locked by who fetches or removes it; its time is that of the last use
    SET/PARTITION/.NNNNNN.tar.PID.partial on its way

The folder alone says all of it, so ranks, Ray's workers and other audits need no more than its path, and share what is
here. Who reads a shard holds a shared lock on the file itself: nobody removes it meanwhile. Locks end with their
process, however it ends, and what it was fetching then has no name that anybody reads.
"""

import contextlib
import fcntl
import io
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from xinv.errors import InputError
from xinv.files import aside, make_private, read_json, write_json
from xinv.storage import reading

REMOTE = "remote.json"
SHARD = ".tar"
"""What the names of files end in that are fetched when they are read, and not before."""

_OVERFULL: set[Path] = set()  # folders of sets where this process found all in use that had to go


class Remote(BaseModel):
    """remote.json: from where the shards beside it come. No credentials: those are in the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(description="of the storage, absolute where it is a folder")
    name: str = Field(description="of the set in the storage")
    most: int | None = Field(description="bytes of fetched shards on this disk, of all sets beside this one; null: any")

    @classmethod
    def of(cls, folder: Path) -> "Remote | None":
        """That of the set in `folder`; None for a set that was made or fetched whole."""
        path = folder / REMOTE
        return cls.model_validate(read_json(path)) if path.exists() else None

    def save(self, folder: Path) -> None:
        """Write it into `folder`, where it says something new."""
        if Remote.of(folder) != self:
            write_json(folder / REMOTE, self.model_dump(mode="json"))


class _Held(io.BufferedReader):
    """A fetched shard that stays until it is closed. Then it may go, where room was wanting while it was in use."""

    def __init__(self, file: io.FileIO, sets: Path, most: int | None) -> None:
        super().__init__(file)
        self._sets, self._most = sets, most
        fcntl.flock(file, fcntl.LOCK_SH)  # waits for no more than a removal

    def close(self) -> None:
        super().close()
        if self._most is not None and self._sets in _OVERFULL:
            _make_room(self._sets, self._most)


def opened(path: Path, size: int, sha256: str) -> io.BufferedReader:
    """The shard `path` for reading, fetched first where it is missing here and its set is in a storage. It stays where
    it is until it is closed. What was just fetched has this size and hash; what was here is the caller's to check.

    Raises:
        FileNotFoundError: it is missing, and its set is in no storage. InputError: the storage has lost or changed it.
        WorkError: the storage does not give it, however often it was tried. OSError: the disk here.
    """
    folder = path.parent.parent
    remote = Remote.of(folder)
    if remote is None:
        return path.open("rb")
    make_private(path.parent)
    found = _held(path, remote.most)
    if found is not None:
        return found
    with _lock_of(path).open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        found = _held(path, remote.most) or _fetched(remote, folder, path, size, sha256)
    if remote.most is not None:
        _make_room(folder.parent, remote.most)  # others came at the same time
    return found


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _held(path: Path, most: int | None) -> _Held | None:
    """The file at `path`; None where there is none."""
    try:
        stream = _Held(io.FileIO(path), path.parent.parent.parent, most)
    except FileNotFoundError:
        return None
    if os.fstat(stream.fileno()).st_nlink:
        _lock_of(path).touch()
        return stream
    stream.close()  # it was removed between
    return None


def _fetched(remote: Remote, folder: Path, path: Path, size: int, sha256: str) -> _Held:
    """The shard from the storage. For who has the lock of `path`."""
    for left in path.parent.glob(f".{path.name}.*.partial"):
        left.unlink(missing_ok=True)  # by a fetch that was killed
    if remote.most is not None:
        _make_room(folder.parent, remote.most - size)
    with aside(path) as draft:
        if not reading(remote.url).fetch(remote.name, path.relative_to(folder).as_posix(), size, sha256, draft):
            raise InputError(
                f"{path} is not here, and storage {remote.url} has lost it, or gave other bytes than {folder.name} was "
                f"kept with. Remove {folder}: the same command makes the set again, and keeps it."
            )
        # A lock is of the file, whatever its name: this one is held before anybody else sees it.
        stream = _Held(io.FileIO(draft), folder.parent, remote.most)
    _lock_of(path).touch()
    return stream


def _make_room(sets: Path, most: int) -> None:
    """Remove fetched shards of the sets in the folder `sets`, the longest unused first, until `most` bytes of them are
    left; or only such as somebody reads or waits for, and then it is tried again when this process closes one."""
    found: list[tuple[int, int, Path]] = []
    for remote in sets.glob(f"*/{REMOTE}"):
        for path in remote.parent.glob(f"*/[!.]*{SHARD}"):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                found.append((_lock_of(path).stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total > most and _removed(path):
            total -= size
    (_OVERFULL.add if total > most else _OVERFULL.discard)(sets)


def _removed(path: Path) -> bool:
    """Remove a shard, unless somebody fetches it, waits for it or reads it."""
    try:
        # For writing: on NFS nothing else can be locked for one alone.
        with _lock_of(path).open("a") as turn, path.open("r+b") as stream:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True
