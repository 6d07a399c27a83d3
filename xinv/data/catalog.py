"""What is known of the samples of a partition before their pixels and maps are decoded, and where those lie.

Each shard is checked once, at its first use: its bytes against the index, its members, its keys against those of the
release shard of the same number. From then on single samples are read from where they lie, as long as the file stays
as it was.

Axes: N samples of a shard, A attributes.
"""

import contextlib
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xinv.data.attributes import Attribute, positions
from xinv.data.decoding import Request
from xinv.data.fields import FieldSchema
from xinv.data.index import Index, shard_path
from xinv.data.shards import Stamp, look_into, open_shard, stamp_of, value_of
from xinv.errors import InputError
from xinv.remote import Remote

REMEMBERED = 1 << 18  # samples, a few hundred bytes each: shards beyond them are checked again when they are used again


@dataclass(frozen=True)
class Facts:
    """One shard, checked."""

    files: list[tuple[str, Stamp]]  # of the image shard, and of the release shard
    key: list[str]
    identity: list[str]
    label: np.ndarray  # int64 (N,)
    attribute: np.ndarray  # int64 (N, A)
    places: dict[str, np.ndarray]  # field -> int64 (N, 3): position in `files`, offset, bytes


class Catalog:
    """The shards of one partition of an image set, with those of a release set beside them.

    Args:
        sets: the image set and its index; then, where releases are read, theirs.
        schemas: the fields to decode; of the images `png`, all others of the releases.
        attributes: those to know of each image.
    """

    def __init__(
        self,
        sets: Sequence[tuple[Path, Index]],
        partition: str,
        schemas: dict[str, FieldSchema],
        attributes: Sequence[Attribute] = (),
    ) -> None:
        self._sets, self._partition = list(sets), partition
        self._schemas, self._attributes = schemas, tuple(attributes)
        self._known: OrderedDict[int, Facts] = OrderedDict()
        self._samples = 0  # of the shards in `_known`
        self._lock = threading.Lock()
        self._checking: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)
        remotes = [found for folder, _ in sets if (found := Remote.of(folder))]
        self.remote = bool(remotes)
        self._most = min((found.most for found in remotes if found.most is not None), default=None)

    def shard(self, number: int) -> Facts:
        """The facts of one shard. InputError as `read_shard`, and where images and releases differ in their keys."""
        with self._lock:
            turn = self._checking[number]
        with turn:  # several threads check several shards, but none twice
            with self._lock:
                found = self._known.get(number)
                if found is not None:
                    self._known.move_to_end(number)
                    return found
            found = self._checked(number)
            with self._lock:
                self._known[number] = found
                self._samples += len(found.key)
                while len(self._known) > 1 and self._samples > REMEMBERED:
                    self._samples -= len(self._known.popitem(last=False)[1].key)
        return found

    def request(self, pairs_B2: np.ndarray) -> tuple[Request, dict[int, Facts]]:
        """What to decode for rows (shard, sample), and the facts of those shards."""
        shards = np.unique(pairs_B2[:, 0]).tolist()
        facts = {shard: self.shard(shard) for shard in shards}
        files: list[tuple[str, Stamp]] = []
        place_B3 = {name: np.empty((len(pairs_B2), 3), dtype=np.int64) for name in self._schemas}
        for shard, found in facts.items():
            here = pairs_B2[:, 0] == shard
            for name, rows_B3 in place_B3.items():
                rows_B3[here] = found.places[name][pairs_B2[here, 1]] + [len(files), 0, 0]
            files += found.files
        keys = [facts[shard].key[sample] for shard, sample in pairs_B2.tolist()]
        return Request(files, keys, self._schemas, {name: rows.tolist() for name, rows in place_B3.items()}), facts

    def depth(self, wanted: int) -> int:
        """How many shards to fetch before they are needed: `wanted`, in half of the room that there is for them; none
        where they lie here."""
        if not self.remote or self._most is None:
            return wanted if self.remote else 0
        largest = sum(
            max((entry.bytes for entry in index.entries(self._partition)), default=1) for _, index in self._sets
        )
        return min(wanted, self._most // 2 // largest)

    def fetch(self, number: int) -> None:
        """Get the files of one shard here. Errors: as `read_shard`."""
        with self.holding([number]):
            pass

    @contextlib.contextmanager
    def holding(self, shards: Iterable[int]) -> Iterator[None]:
        """While the context lasts, the files of `shards` are here, fetched where they lie in a storage, and stay."""
        with contextlib.ExitStack() as held:
            for number in shards if self.remote else ():
                streams = [
                    held.enter_context(open_shard(folder, index, self._partition, number))
                    for folder, index in self._sets
                ]
                stamps = [stamp_of(stream.fileno()) for stream in streams]
                with self._lock:
                    known = self._known.get(number)
                    if known is not None and [stamp for _, stamp in known.files] != stamps:
                        del self._known[number]  # it was removed and fetched since: what is there now is checked again
                        self._samples -= len(known.key)
            yield

    def _checked(self, number: int) -> Facts:
        with self.holding([number]):
            return self._looked_at(number)

    def _looked_at(self, number: int) -> Facts:
        looks = [look_into(folder, index, self._partition, number) for folder, index in self._sets]
        paths = [shard_path(folder, self._partition, number) for folder, _ in self._sets]
        (samples, _), *released = looks
        keys = [key for key, _ in samples]
        for path, (others, _) in zip(paths[1:], released, strict=True):
            for key, (other, _) in zip(keys, others, strict=True):
                if other != key:
                    raise InputError(
                        f"{path} has the key {other!r} where the image shard of that number has {key!r}; make the "
                        "releases again, from these images."
                    )
        facts = self._facts(paths[0], samples)
        attributes = [
            positions(self._attributes, fact.get("attributes", {}), f"{paths[0]}: image {key}")
            for key, fact in zip(keys, facts, strict=True)
        ]
        return Facts(
            files=[(str(path), stamp) for path, (_, stamp) in zip(paths, looks, strict=True)],
            key=keys,
            identity=[fact["identity"] for fact in facts],
            label=np.array([fact["label"] for fact in facts], dtype=np.int64),
            attribute=np.array(attributes, dtype=np.int64).reshape(len(keys), len(self._attributes)),
            places={
                name: np.array([(file, *places[name]) for _, places in looks[file][0]], dtype=np.int64)
                for name in self._schemas
                for file in [0 if name == "png" else 1]
            },
        )

    def _facts(self, path: Path, samples: Sequence[tuple[str, dict[str, tuple[int, int]]]]) -> list[dict[str, Any]]:
        """The JSON member of every image of the shard `path`."""
        index = self._sets[0][1]
        with path.open("rb") as stream:
            found = []
            for key, places in samples:
                offset, size = places["json"]
                stream.seek(offset)
                found.append(value_of(path, index, key, "json", stream.read(size)))
            return found
