"""Where the values of a shard lie in its file: plain USTAR headers, one file a member, end to end.

webdataset and tarfile read such files too, and take three times as long to find the members as it takes to decode a
small picture. They also pass over folders, links and `__meta__` members, and over a missing end, without a word. Here
nothing is passed over: what is not a field of a sample that the index lists is refused, unopened.
"""

import re
import tarfile
from collections.abc import Callable, Collection
from pathlib import Path

from xinv.errors import InputError

Read = Callable[[int, int], bytes]
"""read(offset, size) -> so many bytes of the file, fewer at its end."""

Sample = tuple[str, dict[str, tuple[int, int]]]
"""A sample's key, and of each field (offset, bytes) of its value in the file."""

# No dot (all after the first one is the field), no slash, no underscore in front (webdataset skips __meta__ members).
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
BLOCK = tarfile.BLOCKSIZE
FILE = (b"0", b"\0")  # types of a plain file


def samples(path: Path, read: Read, size: int, count: int, fields: Collection[str], mend: str) -> list[Sample]:
    """The `count` samples of a shard file of `size` bytes, in its order, each with exactly these `fields`.

    InputError, with `path` and `mend`: anything else in the file, a member twice or missing, no end.
    """
    found: list[Sample] = []
    seen: set[str] = set()
    end = 0
    while (header := read(end, BLOCK)).strip(b"\0"):
        key, name, length = _member(path, header, mend)
        if name not in fields:
            raise InputError(
                f"{path} holds a foreign member {key}.{name}, which was not opened: the index lists none such. Do not "
                f"use this set unless you know who made it. {mend}"
            )
        if not found or found[-1][0] != key:
            if key in seen:
                raise InputError(f"{path} is damaged (the key {key!r} comes twice). {mend}")
            _complete(path, found, fields, mend)
            seen.add(key)
            found.append((key, {}))
        places = found[-1][1]
        if name in places:
            raise InputError(f"{path} is damaged (duplicate file name {key}.{name}). {mend}")
        places[name] = (end + BLOCK, length)
        end += BLOCK + -(-length // BLOCK) * BLOCK
    _complete(path, found, fields, mend)
    if len(found) != count:
        raise InputError(f"{path} holds {len(found)} samples, the index says {count}. {mend}")
    # A tar ends in two blocks of zeros at least, and fills its last record with them.
    records = -(-(end + 2 * BLOCK) // tarfile.RECORDSIZE)
    if size != records * tarfile.RECORDSIZE or read(end, size - end).strip(b"\0"):
        raise InputError(_beside(path, mend))
    return found


def _member(path: Path, header: bytes, mend: str) -> tuple[str, str, int]:
    """(key, field, bytes) of the member behind `header`."""
    if header[257:262] != b"ustar" or header[156:157] not in FILE or header[345:346] != b"\0":
        raise InputError(_beside(path, mend))
    try:
        key, dot, name = header[:100].rstrip(b"\0").decode("ascii").partition(".")
        length = int(header[124:135], 8)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}). {mend}") from None
    if not dot or length < 0:
        raise InputError(_beside(path, mend))
    if not KEY.fullmatch(key):
        raise InputError(f"{path} holds a sample with the key {key!r}, which is no sample key. {mend}")
    return key, name, length


def _complete(path: Path, found: list[Sample], fields: Collection[str], mend: str) -> None:
    """The last sample has all of `fields`."""
    if found and len(found[-1][1]) < len(fields):
        key, places = found[-1]
        missing = sorted(set(fields) - places.keys())
        raise InputError(f"{path}: sample {key} has no .{missing[0]}. {mend}")


def _beside(path: Path, mend: str) -> str:
    return f"{path} holds something beside its samples, or ends before the end of a tar. {mend}"
