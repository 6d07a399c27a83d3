"""Folders that are still being written to, kept in a storage meanwhile: run folders, checkpoints of trainings.

A thread looks now and then, and uploads what is new. Nobody waits for it: it works on a snapshot of its own, taken by
hard links where files do not change any more, so that a training may replace its checkpoint meanwhile.
"""

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

from xinv.errors import InputError, WorkError
from xinv.files import make_private, write_atomic
from xinv.stage import lock, training_name
from xinv.storage import Storage, opened

NOTE = ".kept"
"""In a run folder: the signature of what the storage has of it, or what it was brought up to."""

LEFT_OUT = ("ray", "jobs")
"""In a run folder: Ray's own files, and those of jobs, among them the tokens of their clusters. Hidden files are locks
and drafts."""

STEP = "step-"
UNCHANGING = (".safetensors", ".npz", ".tar")
"""Files that are written aside and renamed. So are whole checkpoints (STEP); any other file may grow."""

RUN_EVERY, TRAINING_EVERY = 30.0, 5.0  # seconds between two looks


class Keeper:
    """Keeps `folder` under `name` while the context lasts, and once more at its end.

    Raises (at the end):
        WorkError: the storage did not take it; unless the body raised, which is then what is told.
    """

    def __init__(self, storage: Storage, name: str, folder: Path, every: float, note: Path | None = None) -> None:
        """`every`: seconds between two looks. `note`: file that gets the signature of what was kept last."""
        self.storage, self.name, self.folder, self._every, self._note = storage, name, folder, every, note
        self._seen: dict[Path, tuple[int, int, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Keeper":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(*((WorkError, OSError) if kind else ())):
            self.push()

    def _watch(self) -> None:
        while not self._over.wait(self._every):
            try:
                self.push()
            except (WorkError, OSError) as error:  # the next look tries again, and the end of the context tells
                print(f"storage: {self.name} is not up to date yet: {error}", file=sys.stderr, flush=True)

    def push(self) -> None:
        """Upload what has changed since the last time."""
        steps, others = _look(self.folder)
        seen = {path: _state(path) for path in (*steps, *others)}
        if seen == self._seen:
            return
        draft = self.folder.parent / f".{self.folder.name}.kept"
        try:
            files = snapshot(self.folder, draft)
            if not files:
                return
            signed = self.storage.put(self.name, files, tidy=True)
        finally:
            rmtree(draft, ignore_errors=True)
        self._seen = seen
        if self._note is not None:
            write_atomic(self._note, signed)


def _state(path: Path) -> tuple[int, int, int]:
    """What changes when a file does, or a folder gives way to another of its name. Zeros: it is gone."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0, 0
    return status.st_ino, status.st_size, status.st_mtime_ns


def _look(folder: Path) -> tuple[list[Path], list[Path]]:
    """(checkpoints: of each training below `folder` the newest, other files) of all that is kept of it."""
    newest, others = [], []
    for place, folders, files in os.walk(folder):
        here = Path(place)
        steps = [name for name in folders if name.startswith(STEP)]
        newest += [here / max(steps)] if steps else []
        left_out = LEFT_OUT if here == folder else ()
        folders[:] = [name for name in folders if not name.startswith((".", STEP)) and name not in left_out]
        others += [here / name for name in files if not name.startswith(".")]
    return sorted(newest), sorted(others)


def snapshot(folder: Path, out: Path) -> dict[str, Path]:
    """Put what is kept of `folder` into `out`, made anew on the same disk. A checkpoint is in it whole or not at all.

    Checkpoints come first: a training that is behind the record of its validations repeats some steps, and one that is
    before it would leave a gap.

    Returns:
        {path below `folder`: file in `out`}.
    """
    rmtree(out, ignore_errors=True)
    steps, _ = _look(folder)
    for step in steps:
        place, before = out / step.relative_to(folder), _state(step)[0]
        for file in _visible(step):
            _take(file, place / file.relative_to(step), unchanging=True)
        if _state(step)[0] != before:  # a checkpoint goes by one rename, so until then it was whole
            rmtree(place, ignore_errors=True)
    for file in _look(folder)[1]:
        _take(file, out / file.relative_to(folder), file.suffix in UNCHANGING)
    return {file.relative_to(out).as_posix(): file for file in sorted(_visible(out))}


def _visible(folder: Path) -> Iterator[Path]:
    """The files below a folder, without what is hidden. (`rglob` raises where a folder goes meanwhile.)"""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place) / name for name in files if not name.startswith("."))


def _take(file: Path, place: Path, unchanging: bool) -> None:
    make_private(place.parent)
    with contextlib.suppress(FileNotFoundError):  # gone meanwhile
        if unchanging:
            with contextlib.suppress(PermissionError, NotImplementedError):
                os.link(file, place)
                return
        shutil.copyfile(file, place)


@contextlib.contextmanager
def kept_run(url: str | None, folder: Path) -> Iterator[None]:
    """Keep a run folder while the context lasts; nothing without a storage."""
    storage = opened(url)
    if storage is None:
        yield
        return
    with Keeper(storage, f"runs/{folder.name}", folder, RUN_EVERY, folder / NOTE):
        yield


@contextlib.contextmanager
def kept_training(storage: Storage | None, folder: Path) -> Iterator[None]:
    """Keep the newest checkpoint of the training in `folder`, a stage's; at first fetch the one that is kept, where
    this machine has none, or an older one. `Store.make` forgets it when the stage is finished."""
    if storage is None:
        yield
        return
    name, checkpoints = training_name(folder.name), folder / "checkpoints"
    if not (folder / "summary.json").exists():
        _fetch_checkpoint(storage, name, checkpoints)
    with Keeper(storage, name, checkpoints, TRAINING_EVERY):
        yield


def _fetch_checkpoint(storage: Storage, name: str, checkpoints: Path) -> None:
    found = storage.read(name)
    if found is None:
        return
    here = max((path.name for path in checkpoints.glob(f"{STEP}*")), default="")
    kept = max(path.partition("/")[0] for path in found["files"])
    draft = checkpoints.parent / ".checkpoint.fetched"
    if kept > here and storage.get(name, draft) is not None:
        make_private(checkpoints)
        (draft / kept).replace(checkpoints / kept)
    rmtree(draft, ignore_errors=True)


def fetch_run(url: str | None, folder: Path) -> None:
    """Bring a run folder up to what the storage has of it, where another machine has kept it since; a folder that is
    not there is fetched. Nothing where it is in use, without a storage, or where nothing is kept.

    Raises:
        InputError: as `storage.opened`. WorkError: the storage does not give it.
    """
    storage = opened(url)
    if storage is None:
        return
    name, note = f"runs/{folder.name}", folder / NOTE
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock(make_private(folder) / ".lock", "in use"))
        except InputError:
            return  # nothing changes under another process's hands; the verb itself will say so
        found = storage.read(name)
        if found is None or (note.exists() and note.read_text() == found["hmac"]):
            return
        draft = folder.parent / f".{folder.name}.fetched"
        got = storage.get(name, draft)
        if got is None:
            return
        for path in got["files"]:
            make_private((folder / path).parent)
            (draft / path).replace(folder / path)
        rmtree(draft, ignore_errors=True)
        write_atomic(note, got["hmac"])
