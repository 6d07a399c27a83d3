"""Finished work is never done again, unfinished work is never believed.

A stage is a function of its own settings and of the identities of what it reads. Its folder's name holds a hash of
both, so that two audits which share a step share its result. `stage.json`, written last, says that the folder is
complete.
"""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xinv.errors import InputError
from xinv.files import digest, make_private, read_json, write_json

MARK = "stage.json"


@dataclass(frozen=True)
class Finished:
    """A complete stage: its identity, its folder, what its work returned, and whether it was made just now."""

    id: str
    folder: Path
    result: Any
    fresh: bool


class Store:
    """The folder that holds the stages of all audits."""

    def __init__(self, root: Path) -> None:
        self.root = make_private(root)

    def name(self, kind: str, identity: dict[str, Any]) -> str:
        """The id of a stage, made or not, which is its folder's name."""
        return f"{kind}-{digest(identity)}"

    def finished(self, kind: str, identity: dict[str, Any]) -> Finished | None:
        """The stage if it is complete. InputError when its folder holds something else under the same name."""
        name = self.name(kind, identity)
        folder = self.root / name
        if not (folder / MARK).exists():
            return None
        mark = read_json(folder / MARK)
        if mark.get("identity") != identity:
            raise InputError(f"{folder / MARK} does not belong to this stage; remove the folder, and it is made again.")
        return Finished(name, folder, mark["result"], fresh=False)

    def make(self, kind: str, identity: dict[str, Any], work: Callable[[Path], Any]) -> Finished:
        """The complete stage, made by `work(folder)` where it is not there yet.

        `work` continues or replaces whatever an interrupted run left in the folder, and returns a JSON value. Another
        process that makes the same stage at the moment is waited for.
        """
        found = self.finished(kind, identity)
        if found is not None:
            return found
        name = self.name(kind, identity)
        with lock(self.root / f".{name}.lock"):
            found = self.finished(kind, identity)
            if found is not None:
                return found
            folder = make_private(self.root / name)
            begun = time.monotonic()
            result = work(folder)
            seconds = round(time.monotonic() - begun, 2)
            write_json(folder / MARK, {"identity": identity, "result": result, "seconds": seconds})
        (self.root / f".{name}.lock").unlink(missing_ok=True)
        return Finished(name, folder, result, fresh=True)


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
