"""Finished work kept at a URL as well: a bucket of an object store, or any other place that fsspec writes to.

    URL/xinv-storage.json              id of the storage, fingerprint of the key that signs what is kept
    URL/stages/NAME/kept.json          a finished stage: its files with sizes and SHA-256, signed
    URL/stages/NAME/HASH/weights.safetensors ...
    URL/trainings/NAME/...             the newest checkpoint of an unfinished training
    URL/runs/NAME/...                  a run folder

A file's address holds its hash, so no upload ever changes a file that a reader may be at, and one that was interrupted
goes on where it stopped. `kept.json`, written last, says which files make up the folder.

What is believed. Whoever may write to the bucket is not trusted as you are: a checkpoint holds pickles, and
network.json of an imported target names a function that is called, so a forged file would run code with your rights.
Therefore every kept.json is signed (HMAC-SHA256 over the folder's name and its files' names, sizes and hashes) with a
key that only your own machines have, and what does not agree with a signature is not read: a line in the log says so,
and the work is done again. It does not help against somebody who has the key or your account, nor against one who
deletes, or who puts back an older folder of the same name: that costs time and changes no result. Nothing is encrypted.
"""

import contextlib
import errno
import functools
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar

from xinv.bucket import check, local_path, open_url, reason
from xinv.errors import InputError, WorkError
from xinv.files import make_private, sha256_of_file, write_atomic
from xinv.signing import KEY_FILE, agrees, fingerprint, key_path, make_key, read_key, signature

Item = TypeVar("Item")
Result = TypeVar("Result")

KEPT, MARKER = "kept.json", "xinv-storage.json"
TRIES, FIRST_WAIT = 6, 0.5  # half a minute in all before an operation counts as failed
WIDTH = 8  # files at once
ABSENT = 30.0  # seconds for which what was not there is not asked for again


@functools.cache
def opened(url: str | None) -> "Storage | None":
    """The storage at `url`, checked; None without one. Once a process.

    Raises:
        InputError: as `check`; or the storage was begun with another key.
    """
    if url is None:
        return None
    check(url)
    storage = Storage(url)
    storage.begin()
    return storage


@functools.cache
def reading(url: str) -> "Storage":
    """The storage at `url` for `fetch` alone, which needs no key and asks nothing beforehand. Once a process."""
    return Storage(url)


class Storage:
    """Folders kept below a URL that `check` has passed."""

    id: str
    _secret: bytes

    def __init__(self, url: str) -> None:
        self.url = url
        self._files, self._root = open_url(url)
        self._local = local_path(url) is not None
        self._hashes: dict[tuple[int, int, int, int], str] = {}
        self._absent: dict[str, float] = {}
        self._failed: dict[str, tuple[float, WorkError]] = {}

    def begin(self) -> None:
        """Find out its id and the key; a storage that is new gets its id. InputError as `opened`."""
        self.id, self._secret = self._begun()

    def _begun(self) -> tuple[str, bytes]:
        try:
            found = json.loads(self._again("read", lambda: self._files.cat_file(f"{self._root}/{MARKER}")))
            ident, begun_with = str(found["id"]), str(found["key"])
        except FileNotFoundError:
            own, ident = make_key(), secrets.token_hex(8)
            self._write(f"{self._root}/{MARKER}", {"id": ident, "key": fingerprint(own)})
            return ident, own
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{self.url}/{MARKER} is not as xinv writes it; name another folder as storage.") from None
        key = read_key()
        if key is None or fingerprint(key) != begun_with:
            here = f"the one in {key_path()}" if key else f"there is none in {key_path()}"
            raise InputError(
                f"storage {self.url} was begun with another key than this machine's ({here}), so nothing in it can be "
                f"believed here. Copy the key of the machine that began it, or name it by {KEY_FILE}; or name another "
                "folder as storage."
            )
        return ident, key

    def holds(self, name: str) -> bool:
        """Whether a folder is kept under `name`. A no is remembered for half a minute."""
        if time.monotonic() - self._absent.get(name, -ABSENT) < ABSENT:
            return False
        return self.read(name) is not None

    def read(self, name: str) -> dict[str, Any] | None:
        """kept.json of a folder: {"name", "files": {path: [bytes, sha256]}, "hmac"}. None where there is none, or none
        that this key has signed."""
        try:
            content = self._again("read", lambda: self._files.cat_file(f"{self._root}/{name}/{KEPT}"))
        except FileNotFoundError:
            self._absent[name] = time.monotonic()
            return None
        try:
            found: dict[str, Any] = json.loads(content)
            signed = signature(self._secret, {"name": name, "files": found["files"]})
            if agrees(signed, str(found["hmac"])):
                return found
        except (ValueError, KeyError, TypeError):
            pass  # no kept.json of ours
        self._say(f"{name} was not signed with the key in {key_path()}: ignored, and made again")
        self._absent[name] = time.monotonic()
        return None

    def put(self, name: str, files: Mapping[str, Path], tidy: bool = False) -> str:
        """Keep files under `name`, by their paths in it; they must not change meanwhile.

        Args:
            tidy: remove what else is there: older files, and what interrupted uploads left.

        Returns:
            The signature.

        Raises:
            WorkError: the storage did not take them, however often it was tried.
        """
        hashes = dict(zip(files, _each(self._hash, files.values()), strict=True))
        described = {path: [file.stat().st_size, hashes[path]] for path, file in files.items()}
        there, keys = self._sizes(name), {path: self._address(name, path, hashes[path]) for path in files}
        missing = [path for path in files if there.get(keys[path]) != described[path][0]]
        try:
            _each(lambda path: self._upload(files[path], keys[path]), missing)
            signed = signature(self._secret, {"name": name, "files": described})
            self._write(f"{self._root}/{name}/{KEPT}", {"name": name, "files": described, "hmac": signed})
        except FileNotFoundError as error:
            raise WorkError(f"storage {self.url} does not take files any more: {reason(error)}") from error
        self._absent.pop(name, None)
        if tidy:
            wanted = {*keys.values(), f"{self._root}/{name}/{KEPT}"}
            self._remove([path for path in there if path not in wanted])
        return signed

    def get(self, name: str, folder: Path, later: str | None = None) -> dict[str, Any] | None:
        """Fetch what is kept under `name` into `folder`, which is made anew; its kept.json, or None where nothing is
        kept that this key has signed, or a file is not what was signed.

        Args:
            later: end of the names of files that are left for `fetch`; here it is only seen that they are there.

        Raises:
            WorkError: the storage did not give it, however often it was tried. OSError: the disk here.
        """
        found = self.read(name)
        if found is None:
            return None
        rmtree(folder, ignore_errors=True)
        make_private(folder)
        for parent in {(folder / path).parent for path in found["files"]}:
            make_private(parent)

        left = {path for path in found["files"] if later is not None and path.endswith(later)}
        there = self._sizes(name) if left else {}

        def fetch(path: str) -> bool:
            size, sha256 = found["files"][path]
            if path in left:
                return there.get(self._address(name, path, sha256)) == size
            return self.fetch(name, path, size, sha256, folder / path)

        sound = dict(zip(found["files"], _each(fetch, found["files"]), strict=True))
        damaged = [path for path, is_sound in sound.items() if not is_sound]
        if not damaged:
            return found
        self._say(f"{name}/{damaged[0]} is not what was kept ({len(damaged)} such files): ignored, and made again")
        self._absent[name] = time.monotonic()
        rmtree(folder)
        return None

    def fetch(self, name: str, path: str, size: int, sha256: str, file: Path) -> bool:
        """Fetch one file of what is kept under `name` into `file`, where it is kept with this size and hash. (One of
        other bytes is removed there: the next upload would take it for its own.)

        Raises:
            WorkError: the storage does not answer, however often it was tried, or is gone. OSError: the disk here.
        """
        key = self._address(name, path, sha256)
        failed, error = self._failed.get(key, (-ABSENT, None))
        if error is not None and time.monotonic() - failed < ABSENT:
            raise error  # several threads want one file: those that waited do not begin again
        try:
            self._again("read", lambda: self._files.get_file(key, str(file)))
        except FileNotFoundError:
            if self._again("read", lambda: self._files.exists(f"{self._root}/{MARKER}")):
                return False
            raise WorkError(f"storage {self.url} is gone: there is no {MARKER} any more.") from None
        except WorkError as failure:
            self._failed[key] = time.monotonic(), failure
            raise
        if file.stat().st_size == size and sha256_of_file(file) == sha256:
            return True
        self._remove([key])
        return False

    def drop(self, name: str) -> None:
        """Forget what is kept under `name`."""
        mark = f"{self._root}/{name}/{KEPT}"
        there = sorted(self._sizes(name), key=lambda path: path != mark)
        self._remove(there[:1])  # what is no longer whole must not look so
        self._remove(there[1:])

    def _address(self, name: str, path: str, sha256: str) -> str:
        return f"{self._root}/{name}/{sha256[:16]}/{path}"

    def _hash(self, file: Path) -> str:
        status = file.stat()
        known = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if known not in self._hashes:
            self._hashes[known] = sha256_of_file(file)
        return self._hashes[known]

    def _upload(self, file: Path, key: str) -> None:
        if self._local:
            make_private(Path(key).parent)
        self._again("take files", lambda: self._files.put_file(str(file), key))

    def _write(self, path: str, value: Any) -> None:
        """A small JSON file, whole or not at all."""
        content = (json.dumps(value, indent=1) + "\n").encode()
        if self._local:
            make_private(Path(path).parent)
            write_atomic(Path(path), content)
        else:
            self._again("take files", lambda: self._files.pipe_file(path, content))

    def _sizes(self, name: str) -> dict[str, int]:
        """{path: bytes} of all that lies under `name`."""
        folder = f"{self._root}/{name}"
        try:
            found = self._again("be listed", lambda: self._files.find(folder, detail=True))
        except FileNotFoundError:
            return {}
        return {path: int(entry["size"]) for path, entry in found.items()}

    def _remove(self, paths: Iterable[str]) -> None:
        def remove(path: str) -> None:
            try:
                self._again("have files removed", lambda: self._files.rm_file(path))
            except FileNotFoundError:
                return  # another process was faster
            if self._local:
                with contextlib.suppress(OSError):  # until a folder that holds something else
                    for folder in Path(path).parents:
                        folder.rmdir()

        _each(remove, list(paths))

    def _again(self, doing: str, action: Callable[[], Result]) -> Result:
        """`action`, tried again after what may pass. FileNotFoundError and a full disk are the caller's matter."""
        wait = FIRST_WAIT
        for left in reversed(range(TRIES)):
            try:
                return action()
            except FileNotFoundError:
                raise
            except Exception as error:  # every object store's client has exceptions of its own
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    raise
                if not left or isinstance(error, PermissionError) or "credential" in type(error).__name__.lower():
                    raise WorkError(
                        f"storage {self.url} could not {doing}: {reason(error)} What was done is safe on this "
                        "machine; the same command continues and uploads what is missing."
                    ) from error
            time.sleep(wait)
            wait *= 2
        raise AssertionError("the last try returns or raises")

    def _say(self, words: str) -> None:
        print(f"storage {self.url}: {words}.", file=sys.stderr, flush=True)


def _each(action: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`action` on every item, several at a time; the first error ends it."""
    with ThreadPoolExecutor(WIDTH) as pool:
        futures = [pool.submit(action, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
