"""Shards: plain USTAR tars of samples as webdataset writes and reads them, believed only as far as an index vouches.

webdataset alone is silent about a tar cut at a member boundary, a shard that is missing, a member it must not open.
So `index.json` holds each shard's count, bytes and sha256; it is written last, and whoever reads checks all of it.

A sample is a dict: "__key__" (letters, digits, _ and -), and one value per field, named by its extension:
"png" image (H, W, C) uint8; "json" {label, identity, attributes}; "prediction.npy" (K,) float32 logits;
"<method>.npy" (M, h, w) float32 maps. webdataset is imported inside functions: it brings torch with it (seconds).
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from xinv import remote
from xinv.data.fields import decode, encode
from xinv.data.index import INDEX_NAME, MEND, Index, ShardEntry, shard_path
from xinv.data.members import KEY, Read, Sample, samples
from xinv.data.splits import check_disjoint
from xinv.errors import InputError
from xinv.files import make_private

if TYPE_CHECKING:
    from xinv.progress import Progress

Stamp = tuple[int, int, int]
"""Of a file: inode, bytes, time of its last change."""


class _Digesting:
    """The file a TarWriter writes into: passes bytes on, counts them and hashes them."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.bytes = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self.stream.write(data)


def write_shard(path: Path, samples: Iterable[Mapping[str, Any]]) -> ShardEntry:
    """Write `samples` as the tar `path`, and return its line for the index. Equal samples give equal bytes.

    Written aside, flushed to the disk and renamed: a reader, or a run after a kill, sees the whole shard or none.
    OSError (a full disk: errno ENOSPC) passes through and leaves nothing behind. InputError: no samples, a key twice or
    with a dot, a sample with other fields than the first, a value of no known kind.
    """
    from webdataset.writer import TarWriter

    make_private(path.parent)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with aside.open("wb") as stream:
            sink = _Digesting(stream)
            with TarWriter(sink, encoder=False, compress=False, mtime=0, user="", group="") as tar:
                count = 0
                for encoded in _encoded(samples):
                    tar.write(encoded)
                    count += 1
            if not count:
                raise InputError(f"{path} would hold no sample; write a shard only where there is something to write.")
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return ShardEntry(samples=count, bytes=sink.bytes, sha256=sink.sha256.hexdigest())


def _encoded(samples: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """`samples` with every value as bytes; refuses what a reader could not tell apart afterwards."""
    keys: set[str] = set()
    fields: set[str] | None = None
    for sample in samples:
        key = sample["__key__"]
        if not KEY.fullmatch(key):
            raise InputError(f"{key!r} is no sample key; a key is letters, digits, _ and -, at most 100 of them.")
        if key in keys:
            raise InputError(f"the key {key!r} occurs twice in one shard; keys must be unique.")
        keys.add(key)
        names = set(sample) - {"__key__"}
        fields = names if fields is None else fields
        if names != fields or not names:
            raise InputError(f"sample {key!r} holds {sorted(names)}, the first sample of its shard {sorted(fields)}.")
        yield {"__key__": key, **{name: encode(name, sample[name]) for name in names}}


def read_shard(
    folder: Path,
    index: Index,
    partition: str,
    number: int,
    rows: Collection[int] | None = None,
    fields: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """The samples of one shard in the order of the file, as `write_shard` was given them (png always with its C axis).

    A shard of a set that lies in a storage is fetched first (errors of that: `remote.opened`).
    `rows`, `fields`: decode and return these positions and fields alone; the file as a whole is checked all the same.
    InputError names the file and what is wrong: missing, not in the index, cut short, changed, other members or shapes
    than the index lists. A member that the index does not list is refused unopened; nothing is ever unpickled.
    """
    path, entry = _listed(folder, index, partition, number)
    data = _checked_bytes(path, entry, index)
    found = _samples(path, lambda offset, size: data[offset : offset + size], index, entry)
    chosen = found if rows is None else [sample for row, sample in enumerate(found) if row in rows]
    wanted = index.fields if fields is None else fields
    view = memoryview(data)
    return [
        {"__key__": key}
        | {name: value_of(path, index, key, name, view[slice(*_span(places[name]))]) for name in wanted}
        for key, places in chosen
    ]


def look_into(folder: Path, index: Index, partition: str, number: int) -> tuple[list[Sample], Stamp]:
    """Where the values of one shard lie in its file, after all the checks of `read_shard` that need no decoding
    (`value_of` has those); and the file's stamp. It is never in memory as a whole. InputError as `read_shard`."""
    path, entry = _listed(folder, index, partition, number)
    with _opened(path, entry) as stream:
        if os.fstat(stream.fileno()).st_size != entry.bytes:
            raise InputError(_wrong_size(path, entry, index))
        if hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:
            raise InputError(_wrong_hash(path, entry, index))
        descriptor = stream.fileno()
        found = _samples(path, lambda offset, size: os.pread(descriptor, size, offset), index, entry)
        return found, stamp_of(descriptor)


def open_shard(folder: Path, index: Index, partition: str, number: int) -> io.BufferedReader:
    """The file of one shard, unchecked but for what was fetched just now; until it is closed, it stays. Errors: as
    `read_shard` where it is missing or cannot be fetched."""
    return _opened(*_listed(folder, index, partition, number))


def stamp_of(descriptor: int) -> Stamp:
    """What is no longer true of an open file once it was written to or gave way to another of its name."""
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size, status.st_mtime_ns


def value_of(path: Path, index: Index, key: str, name: str, data: bytes | memoryview) -> Any:
    """The value in the bytes of the member KEY.NAME of the shard `path`. InputError: it is not what the index says."""
    try:
        value = decode(name, data, index.fields[name])
    except ValueError as error:
        raise InputError(damaged(path, key, name, error)) from None
    if index.kind == "images" and name == "json":
        labels = len(index.label_names)
        label, identity = value.get("label"), value.get("identity")
        # (-1: an image of the attacker's that shows none of what the target tells apart)
        if not isinstance(label, int) or not -1 <= label < labels or not isinstance(identity, str):
            raise InputError(
                f"{path}: {key}.json needs a label from 0 to {labels - 1}, or -1 for none, and an identity, "
                f"and has {label!r} and {identity!r}. {MEND}"
            )
    return value


def damaged(path: Path | str, key: str, name: str, error: ValueError) -> str:
    """What to say of a member whose bytes `fields.decode` does not take."""
    return f"{path}: {key}.{name} is not what the index says: {error}. {MEND}"


def _listed(folder: Path, index: Index, partition: str, number: int) -> tuple[Path, ShardEntry]:
    path, entries = shard_path(folder, partition, number), index.entries(partition)
    if not 0 <= number < len(entries):
        raise InputError(
            f"{path} is not listed in {INDEX_NAME}, which has {len(entries)} shards of {partition}. {MEND}"
        )
    return path, entries[number]


def _opened(path: Path, entry: ShardEntry) -> io.BufferedReader:
    try:
        return remote.opened(path, entry.bytes, entry.sha256)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {INDEX_NAME} lists it with {entry.samples} samples. {MEND}") from None


def _checked_bytes(path: Path, entry: ShardEntry, index: Index) -> bytes:
    """The content of a shard file whose size and sha256 are what the index says."""
    with _opened(path, entry) as stream:
        data = stream.read()
    if len(data) != entry.bytes:
        raise InputError(_wrong_size(path, entry, index))
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise InputError(_wrong_hash(path, entry, index))
    return data


def _wrong_size(path: Path, entry: ShardEntry, index: Index) -> str:
    seen = _diagnosis(path, entry, index)
    return f"{path} has {path.stat().st_size} bytes, {INDEX_NAME} says {entry.bytes}: {seen}. {MEND}"


def _wrong_hash(path: Path, entry: ShardEntry, index: Index) -> str:
    return f"{path} has another sha256 than {INDEX_NAME} says: {_diagnosis(path, entry, index)}. {MEND}"


def _diagnosis(path: Path, entry: ShardEntry, index: Index) -> str:
    """What seems to have happened to a shard that is not what was written. Looks at names, opens nothing."""
    keys: dict[str, None] = {}
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                key, _, name = member.name.partition(".")
                if name not in index.fields:
                    return f"it holds a foreign member {member.name!r}, which was not opened"
                keys[key] = None
    except (tarfile.TarError, OverflowError, ValueError):  # a damaged header may hold any number as a size
        return f"it is cut or damaged after {len(keys)} of {entry.samples} samples"
    if len(keys) != entry.samples:
        return f"it was cut short or added to, {len(keys)} of {entry.samples} samples are there"
    return "the samples are there, but bytes have changed"


def _samples(path: Path, read: Read, index: Index, entry: ShardEntry) -> list[Sample]:
    """Where the values of a shard lie whose bytes are what the index says."""
    if read(257, 5) != b"ustar":
        raise InputError(f"{path} is no tar. {MEND}")
    return samples(path, read, entry.bytes, entry.samples, index.fields, MEND)


def _span(place: tuple[int, int]) -> tuple[int, int]:
    offset, size = place
    return offset, offset + size


def people(folder: Path, partitions: Sequence[str]) -> tuple[str, ...]:
    """The identities that occur in some partitions of an image set, sorted."""
    index = Index.load(folder)
    return tuple(
        sorted(
            {
                sample["json"]["identity"]
                for partition in partitions
                for number in range(len(index.entries(partition)))
                for sample in read_shard(folder, index, partition, number, fields=("json",))
            }
        )
    )


def verify(folder: Path, progress: "Progress | None" = None) -> list[str]:
    """Read every shard of the set in `folder`; return every problem found, one line each, and nothing for a sound set.

    Beside what `read_shard` checks: shard files that the index does not list, and keys (where the set promises it,
    identities) that are in two partitions.
    """
    try:
        index = Index.load(folder)
    except InputError as error:
        return [str(error)]
    problems: list[str] = []
    keys: dict[str, list[str]] = {partition: [] for partition in index.partitions}
    identities: dict[str, list[str]] = {partition: [] for partition in index.partitions}
    total, done = sum(map(len, index.partitions.values())), 0
    for partition, entries in index.partitions.items():
        for number in range(len(entries)):
            try:
                samples = read_shard(folder, index, partition, number)
            except (InputError, OSError) as error:
                problems.append(str(error))
                samples = []
            keys[partition] += [sample["__key__"] for sample in samples]
            identities[partition] += [sample["json"]["identity"] for sample in samples if "json" in sample]
            done += 1
            if progress:
                progress(done, total, partition)
    problems += [f"{path} is not listed in {INDEX_NAME}. Move it out of the set." for path in _unlisted(folder, index)]
    try:
        check_disjoint(keys, identities, "identity" if index.made_by.get("disjoint") == "identity" else "image")
    except InputError as error:
        problems.append(str(error))
    return problems


def _unlisted(folder: Path, index: Index) -> list[Path]:
    """Tars in the set's folder that are no part of the set."""
    listed = {shard_path(folder, name, i) for name, entries in index.partitions.items() for i in range(len(entries))}
    return sorted(set(folder.rglob("*.tar")) - listed)


def describe(folder: Path) -> dict[str, Any]:
    """What the set in `folder` holds, from its index alone, as JSON can hold it."""
    index = Index.load(folder)
    partitions = {
        name: {"samples": index.samples(name), "shards": len(entries), "bytes": sum(entry.bytes for entry in entries)}
        for name, entries in index.partitions.items()
    }
    totals = {unit: sum(counts[unit] for counts in partitions.values()) for unit in ("samples", "shards", "bytes")}
    return {
        "kind": index.kind,
        "synthetic": index.synthetic,
        **totals,
        "partitions": partitions,
        "fields": {name: schema.model_dump(mode="json") for name, schema in index.fields.items()},
        "label_names": list(index.label_names),
        "made_by": index.made_by,
    }
