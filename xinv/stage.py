"""Finished work is never done again, unfinished work is never believed.

A stage is a function of its own settings and of the identities of what it reads. Its folder's name holds a hash of
both, so that two audits which share a step share its result. `stage.json`, written last, says that the folder is
complete. Where there is a storage, finished stages are kept there as well, and one that is missing here is fetched: of
a set of shards what is beside them, and they themselves as they are read (`remote`).
"""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from xinv.bucket import local_path
from xinv.errors import InputError
from xinv.files import digest, make_private, read_json, write_atomic, write_json
from xinv.remote import REMOTE, SHARD, Remote
from xinv.storage import Storage

MARK = "stage.json"


def training_name(stage: str) -> str:
    """What the checkpoints of an unfinished stage are called in a storage."""
    return f"trainings/{stage}"


@dataclass(frozen=True)
class Finished:
    """A complete stage: its identity, its folder, what its work returned, and whether it was made just now."""

    id: str
    folder: Path
    result: Any
    fresh: bool


class Store:
    """The folder that holds the stages of all audits, and the storage that keeps them too."""

    def __init__(self, root: Path, storage: Storage | None = None, most: int | None = None) -> None:
        self.root, self.storage = make_private(root), storage
        self.most = most  # bytes of fetched shards on this disk; None: any

    def name(self, kind: str, identity: dict[str, Any]) -> str:
        """The id of a stage, made or not, which is its folder's name."""
        return f"{kind}-{digest(identity)}"

    def finished(self, kind: str, identity: dict[str, Any]) -> Finished | None:
        """The stage if it is complete, here or in the storage. InputError when its folder holds something else under
        the same name."""
        name = self.name(kind, identity)
        found = self._here(name, identity)
        if found is None and self.storage and self.storage.holds(f"stages/{name}"):
            with lock(self.root / f".{name}.lock"):
                found = self._here(name, identity) or self._fetched(name, identity)
        if found is not None:
            self._keep(found)
        return found

    def make(self, kind: str, identity: dict[str, Any], work: Callable[[Path], Any]) -> Finished:
        """The complete stage, made by `work(folder)` where it is not there yet.

        `work` continues or replaces whatever an interrupted run left in the folder, and returns a JSON value. Another
        process that makes the same stage at the moment is waited for.

        Raises:
            WorkError: the stage is made, and the storage did not take it; the next call tries again.
        """
        name = self.name(kind, identity)
        found = self._here(name, identity)
        if found is None:
            with lock(self.root / f".{name}.lock"):
                found = self._here(name, identity) or self._fetched(name, identity)
                if found is None:
                    folder = make_private(self.root / name)
                    self._note(name).unlink(missing_ok=True)  # what it says is of a folder that somebody has removed
                    (folder / REMOTE).unlink(missing_ok=True)
                    begun = time.monotonic()
                    result = work(folder)
                    seconds = round(time.monotonic() - begun, 2)
                    write_json(folder / MARK, {"identity": identity, "result": result, "seconds": seconds})
                    found = Finished(name, folder, result, fresh=True)
            (self.root / f".{name}.lock").unlink(missing_ok=True)
        self._keep(found)
        return found

    def _here(self, name: str, identity: dict[str, Any]) -> Finished | None:
        folder = self.root / name
        if not (folder / MARK).exists():
            return None
        mark = read_json(folder / MARK)
        if mark.get("identity") != identity:
            raise InputError(f"{folder / MARK} does not belong to this stage; remove the folder, and it is made again.")
        if self._is_kept(name) and (folder / REMOTE).exists():
            self._remote(name).save(folder)
        return Finished(name, folder, mark["result"], fresh=False)

    def _fetched(self, name: str, identity: dict[str, Any]) -> Finished | None:
        """The stage from the storage; whatever an interrupted run left in its folder gives way."""
        draft, folder = self.root / f".{name}.fetched", self.root / name
        found = self.storage.get(f"stages/{name}", draft, later=SHARD) if self.storage else None
        if self.storage is None or found is None:
            return None
        if any(path.endswith(SHARD) for path in found["files"]):
            self._remote(name).save(draft)
        rmtree(folder, ignore_errors=True)
        write_atomic(self._note(name), self.storage.id)
        draft.replace(folder)
        return self._here(name, identity)

    def _remote(self, name: str) -> Remote:
        """Where the shards of a stage come from, by the settings of now."""
        assert self.storage is not None
        url = self.storage.url
        return Remote(url=str(local_path(url) or url), name=f"stages/{name}", most=self.most)

    def _keep(self, stage: Finished) -> None:
        """Put a finished stage into the storage, once; its checkpoints there are not needed any more."""
        if self.storage is None or self._is_kept(stage.id):
            return
        remote = Remote.of(stage.folder)
        if remote is not None:
            raise InputError(
                f"{stage.folder} has its shards in storage {remote.url}, so storage {self.storage.url} cannot be given "
                "them. Name the former as storage; or remove the folder, and it is made again."
            )
        files = sorted(path for path in stage.folder.rglob("[!.]*") if path.is_file())
        self.storage.put(f"stages/{stage.id}", {path.relative_to(stage.folder).as_posix(): path for path in files})
        self.storage.drop(training_name(stage.id))
        write_atomic(self._note(stage.id), self.storage.id)

    def _is_kept(self, name: str) -> bool:
        """Whether the storage is known to have a stage."""
        note = self._note(name)
        return self.storage is not None and note.exists() and note.read_text() == self.storage.id

    def _note(self, name: str) -> Path:
        """Says which storage has a stage."""
        return self.root / f".{name}.kept"


@contextmanager
def lock(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold `path` for this process alone; it is free again when the process ends, however it ends.

    Waits for its turn, or raises InputError with the message `busy` where one is given.
    """
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise InputError(busy or "") from None
        yield
