"""The reading plan: which sample goes to which rank when, and the batches that come of it.

The plan is a pure function of (index, seed, epoch, cursor, rank, world). The epoch has one global order; batch b of
`batch_size` samples is cut from it at the cursor, and the ranks share each batch. So every sample counts exactly once
an epoch whatever the world, every rank has the same number of batches, and a run that resumes at a cursor, on any
number of ranks, sees exactly the samples it had not seen.

Axes: B batch, C channels, H W pixels, K classes, M channels of a map, N samples, G explanations, A attributes.
"""

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from xinv.data.attributes import Attribute, positions
from xinv.data.shards import Index, read_shard, shard_path
from xinv.errors import InputError

VICTIM = "victim"


@dataclass(frozen=True)
class RankBatch:
    """One rank's part of one global batch."""

    positions: np.ndarray  # int64 (rows,): positions in the epoch's order
    weight: np.ndarray  # float32 (rows,): 1 for a sample, 0 for a row that only fills the batch up
    samples: int  # samples in the global batch, all ranks together: what a sum of weighted losses is divided by
    cursor: int  # where the next global batch begins


@dataclass(frozen=True)
class Batch:
    """One rank's batch. Rows of weight 0 repeat a sample to give all ranks equally many rows: do not count them."""

    key: list[str]
    identity: list[str]
    image_BCHW: torch.Tensor  # float32 in [0, 1]
    label_B: torch.Tensor  # int64
    prediction_BK: torch.Tensor | None  # float32 logits; None when no releases are read
    maps: dict[str, torch.Tensor]  # method -> map_BMHW float32; in [0, 1] where the release format stores codes
    weight_B: torch.Tensor  # float32, 0 or 1
    samples: int  # in the global batch
    cursor: int  # after the global batch
    present_BG: torch.Tensor | None = None  # float32, 1: given, 0: withheld (train.presence); None: all given
    attribute_BA: torch.Tensor | None = None  # int64, positions in Attribute.values; None when none were asked for


def epoch_order(counts: Sequence[int], seed: int, epoch: int, window: int) -> np.ndarray:
    """The order of one epoch: int64 (N, 2) rows of (shard, sample), each sample once; a pure function of its arguments.

    Shards are permuted and dealt into blocks: as many whole shards as `window` samples hold, one at least. The samples
    of each block are shuffled. So a reader holds one block at a time, each shard is needed in one block only, and a
    window of a whole epoch is a full shuffle. `counts`: samples of each shard.
    """
    if window < 1:
        raise InputError(f"a shuffle window of {window} samples cannot be; give 1 (a shard at a time) or more.")
    generator = np.random.default_rng([seed, epoch])
    shards = generator.permutation(len(counts))
    order_N2 = _pairs(shards, counts)
    start = stop = 0
    for size in [counts[shard] for shard in shards] + [window + 1]:  # the last one is no shard: it ends the last block
        if stop + size - start > window:
            order_N2[start:stop] = generator.permutation(order_N2[start:stop])
            start = stop
        stop += size
    return order_N2


def _pairs(shards: Sequence[int] | np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """int64 (N, 2) of (shard, sample): the samples of `shards`, in that order, end to end."""
    sizes = np.asarray(counts, dtype=np.int64)[np.asarray(shards, dtype=np.int64)]
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    samples = np.arange(sizes.sum(), dtype=np.int64) - starts
    return np.stack([np.repeat(np.asarray(shards, dtype=np.int64), sizes), samples], axis=1)


def batches(total: int, batch_size: int, cursor: int = 0, rank: int = 0, world: int = 1) -> Iterator[RankBatch]:
    """The batches of `rank` from `cursor` to the end of an epoch of `total` samples.

    Global batch: positions [cursor, cursor + batch_size), the last one shorter. Rank r takes every `world`-th from the
    r-th on; a rank that comes out short repeats a position with weight 0. InputError when a number is out of its range.
    """
    if batch_size < 1 or not 0 <= cursor <= total or not 0 <= rank < world:
        raise InputError(
            f"no batches of {batch_size} from {cursor} of {total} samples for rank {rank} of {world}: expected a batch "
            "of at least 1, a cursor within the epoch and a rank below the world size."
        )
    while cursor < total:
        samples = min(batch_size, total - cursor)
        rows = -(-samples // world)
        offsets = rank + world * np.arange(rows, dtype=np.int64)
        weight = (offsets < samples).astype(np.float32)
        positions = cursor + np.where(offsets < samples, offsets, 0)
        cursor += samples
        yield RankBatch(positions, weight, samples, cursor)


@dataclass(frozen=True)
class _Rows:
    """Decoded samples of one shard, stacked; `place` finds a sample's row."""

    place: dict[int, int]
    key: list[str]
    identity: list[str]
    label: np.ndarray  # int64 (n,)
    attribute: np.ndarray  # int64 (n, A)
    arrays: dict[str, np.ndarray]  # field -> (n, ...): images as CHW uint8, predictions and maps as they are stored

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


def _limited(counts: list[int], limit: int | None, partition: str) -> list[int]:
    """`counts` of whole shards, cut to the first `limit` samples."""
    if limit is None:
        return counts
    if not 1 <= limit <= sum(counts):
        raise InputError(
            f"{limit} images of the partition {partition!r} are asked for, and it has {sum(counts)}; ask for as many "
            "at most, or for a larger partition."
        )
    found: list[int] = []
    for count in counts:
        found.append(min(count, limit - sum(found)))
        if sum(found) == limit:
            break
    return found


def as_float(stored: torch.Tensor) -> torch.Tensor:
    """What was stored as float32: pixels and other unsigned codes in [0, 1], floats as they are."""
    if stored.dtype in (torch.uint8, torch.uint16):
        return stored.to(torch.float32).div_(torch.iinfo(stored.dtype).max)
    return stored.to(torch.float32)


class Reader:
    """One partition of an image set, with the releases for it when `releases` is given, as batches of tensors.

    `methods`: the explanation maps to read. `window`: samples of the shuffle window at most; it shrinks to what
    `memory_bytes` of decoded samples can hold, so both are part of the plan: keep them when a run resumes.
    Shards stay decoded while they fit (least recently used go first); a set that fits is decoded once. One that does
    not is read one batch ahead by a thread, and each rank decodes its own share alone.
    `limit`: read only the first so many samples, a random part, because shards hold a partition in random order.
    `attributes`: those to deliver as `Batch.attribute_BA`.
    `purpose`: the victims are scored and serve nothing else, so the partition `victim` opens for "score" alone.
    InputError: a limit beyond the partition, unknown partition or method, sets that do not belong together, a shard
    that is not what its index says, an image without an attribute asked for, victims asked for without that purpose.
    """

    def __init__(
        self,
        images: Path,
        partition: str,
        releases: Path | None = None,
        methods: tuple[str, ...] = (),
        *,
        seed: int = 0,
        window: int = 4096,
        memory_bytes: int = 2 << 30,
        limit: int | None = None,
        purpose: Literal["train", "score"] = "train",
        attributes: Sequence[Attribute] = (),
    ) -> None:
        if partition.removesuffix("_validation") == VICTIM and purpose != "score":
            raise InputError(
                f"the partition {partition!r} of {images} is kept for scoring: nothing may be trained, selected or "
                "searched on it. Train on another partition, such as attack."
            )
        self.images, self.releases = images, releases
        self.partition, self.methods, self.seed = partition, tuple(methods), seed
        self.memory_bytes, self.attributes = memory_bytes, tuple(attributes)
        index = Index.load(images)
        if index.kind != "images":
            raise InputError(f"{images} is a set of {index.kind}; expected a set of images.")
        self._image_index, self._release_index = index, self._checked_releases(index)
        self._counts = _limited([entry.samples for entry in index.entries(partition)], limit, partition)
        self.samples: int = sum(self._counts)
        height, width, channels = index.fields["png"].shape
        self.image_shape: tuple[int, int, int] = (channels, height, width)
        self.classes: int = len(index.label_names)
        self.map_shapes: dict[str, tuple[int, int, int]] = {}
        self._stored: dict[str, tuple[tuple[int, ...], str]] = {
            "png": (self.image_shape, "uint8")
        }  # field -> shape and dtype of one decoded sample
        if self._release_index is not None:
            for name in ("prediction.npy", *(f"{method}.npy" for method in self.methods)):
                schema = self._release_index.fields[name]
                self._stored[name] = (schema.shape, schema.dtype)
            for method in self.methods:
                maps, map_height, map_width = self._release_index.fields[f"{method}.npy"].shape
                self.map_shapes[method] = (maps, map_height, map_width)
        sample_bytes = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self._stored.values())
        held = memory_bytes // sample_bytes
        self.fits: bool = self.samples <= held
        # A block that did not stay in memory would be decoded again and again, a whole shard for a handful of rows.
        self.window: int = window if self.fits else max(1, min(window, held))
        self._cache: OrderedDict[int, _Rows] = OrderedDict()
        self._lock = threading.Lock()

    def _checked_releases(self, index: Index) -> Index | None:
        """The index of the release set, which must belong to the image set and hold every method."""
        if self.releases is None:
            if self.methods:
                raise InputError(f"the maps {', '.join(self.methods)} need a release set; give its folder.")
            return None
        releases = Index.load(self.releases)
        if releases.kind != "releases":
            raise InputError(f"{self.releases} is a set of {releases.kind}; expected a set of releases.")
        known = [name.removesuffix(".npy") for name in releases.fields if name != "prediction.npy"]
        for method in self.methods:
            if method not in known:
                raise InputError(
                    f"{self.releases} holds no maps named {method!r}; it has {', '.join(known) or 'none'}."
                )
            if len(releases.fields[f"{method}.npy"].shape) != 3:
                raise InputError(f"{self.releases}: {method} is no map of shape (M, h, w), by its index.")
        if releases.fields["prediction.npy"].shape != (len(index.label_names),):
            raise InputError(
                f"{self.releases} predicts {releases.fields['prediction.npy'].shape} classes, and {self.images} has "
                f"{len(index.label_names)} labels; make the releases again, from these images."
            )
        counts = [[entry.samples for entry in known.entries(self.partition)] for known in (index, releases)]
        if counts[0] != counts[1]:
            raise InputError(
                f"{self.releases} does not belong to {self.images}: its shards of {self.partition} hold {counts[1]} "
                f"samples, the image shards {counts[0]}; make the releases again, from these images."
            )
        return releases

    def epoch(self, epoch: int, batch_size: int, cursor: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """This rank's batches of epoch `epoch`, shuffled, from `cursor` on. `batch_size` is of all ranks together."""
        order_N2 = epoch_order(self._counts, self.seed, epoch, self.window)
        return self._stream(order_N2, list(batches(self.samples, batch_size, cursor, rank, world)))

    def once(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Every sample once, in the order of the index. The end is an assertion that none was left out."""
        order_N2 = _pairs(np.arange(len(self._counts)), self._counts)
        plan = list(batches(self.samples, batch_size, 0, rank, world))

        def exact() -> Iterator[Batch]:
            seen = 0
            for batch in self._stream(order_N2, plan):
                seen += batch.samples
                yield batch
            assert seen == self.samples, (seen, self.samples)

        return exact()

    def at(self, places: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """The samples at `places`, int64 (N,) positions in the order of the index, in the order given."""
        order_N2 = _pairs(np.arange(len(self._counts)), self._counts)[places]
        return self._stream(order_N2, list(batches(len(places), batch_size)))

    def _stream(self, order_N2: np.ndarray, plan: list[RankBatch]) -> Iterator[Batch]:
        """Assemble the batches of `plan`; one ahead, in a thread, when shards must be decoded on the way."""
        if self.fits or not plan:
            for part in plan:
                yield self._assemble(part, order_N2, None)
            return
        mine = np.concatenate([order_N2[part.positions] for part in plan])
        wanted: dict[int, set[int]] = {}
        for shard, sample in mine.tolist():
            wanted.setdefault(shard, set()).add(sample)
        with ThreadPoolExecutor(1) as thread:
            ahead: deque[Future[Batch]] = deque()
            for part in plan:
                ahead.append(thread.submit(self._assemble, part, order_N2, wanted))
                if len(ahead) > 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _assemble(self, part: RankBatch, order_N2: np.ndarray, wanted: dict[int, set[int]] | None) -> Batch:
        """Gather the rows of one batch from decoded shards. `wanted`: what to decode of each shard; None for all."""
        pairs_B2 = order_N2[part.positions]
        size = len(pairs_B2)
        key, identity = [""] * size, [""] * size
        label_B = np.empty(size, dtype=np.int64)
        attribute_BA = np.empty((size, len(self.attributes)), dtype=np.int64)
        arrays = {name: np.empty((size, *shape), dtype) for name, (shape, dtype) in self._stored.items()}
        # Shards in memory first: reading one may push out another that this batch is about to need.
        for shard in sorted(np.unique(pairs_B2[:, 0]).tolist(), key=lambda shard: shard not in self._cache):
            here = np.flatnonzero(pairs_B2[:, 0] == shard)
            samples = pairs_B2[here, 1].tolist()
            rows = self._decoded(shard, samples, None if wanted is None else wanted[shard])
            at = [rows.place[sample] for sample in samples]
            label_B[here], attribute_BA[here] = rows.label[at], rows.attribute[at]
            for name, array in arrays.items():
                array[here] = rows.arrays[name][at]
            for place, row in zip(here.tolist(), at, strict=True):
                key[place], identity[place] = rows.key[row], rows.identity[row]
        tensors = {name: as_float(torch.from_numpy(array)) for name, array in arrays.items()}
        return Batch(
            key=key,
            identity=identity,
            image_BCHW=tensors["png"],
            label_B=torch.from_numpy(label_B),
            prediction_BK=tensors.get("prediction.npy"),
            maps={method: tensors[f"{method}.npy"] for method in self.methods},
            weight_B=torch.from_numpy(part.weight),
            samples=part.samples,
            cursor=part.cursor,
            attribute_BA=torch.from_numpy(attribute_BA) if self.attributes else None,
        )

    def _decoded(self, shard: int, samples: list[int], wanted: set[int] | None) -> _Rows:
        """The decoded rows of `shard`, from memory or from the disk; holds at least `samples`."""
        with self._lock:
            rows = self._cache.get(shard)
            if rows is None or not all(sample in rows.place for sample in samples):
                self._cache.pop(shard, None)
                rows = self._read(shard, wanted)
                self._cache[shard] = rows
                while len(self._cache) > 1 and sum(kept.bytes for kept in self._cache.values()) > self.memory_bytes:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(shard)
            return rows

    def _read(self, shard: int, wanted: set[int] | None) -> _Rows:
        """Read one shard, and the release shard of the same number, which must hold the same keys in the same order."""
        found = read_shard(self.images, self._image_index, self.partition, shard, wanted)
        keys = [sample["__key__"] for sample in found]
        arrays = {"png": np.stack([sample["png"].transpose(2, 0, 1) for sample in found])}
        if self.releases is not None and self._release_index is not None:
            names = [name for name in self._stored if name != "png"]
            released = read_shard(self.releases, self._release_index, self.partition, shard, wanted, names)
            for key, sample in zip(keys, released, strict=True):
                if sample["__key__"] != key:
                    raise InputError(
                        f"{shard_path(self.releases, self.partition, shard)} has the key {sample['__key__']!r} where "
                        f"the image shard of that number has {key!r}; make the releases again, from these images."
                    )
            arrays |= {name: np.stack([sample[name] for sample in released]) for name in names}
        numbers = sorted(wanted) if wanted is not None else range(len(found))
        return _Rows(
            place={sample: row for row, sample in enumerate(numbers)},
            key=keys,
            identity=[sample["json"]["identity"] for sample in found],
            label=np.array([sample["json"]["label"] for sample in found], dtype=np.int64),
            attribute=self._attributes(shard, found),
            arrays=arrays,
        )

    def _attributes(self, shard: int, found: list[dict[str, Any]]) -> np.ndarray:
        """int64 (n, A): the attributes asked for of the images of one shard."""
        path = shard_path(self.images, self.partition, shard)
        rows = [
            positions(self.attributes, sample["json"].get("attributes", {}), f"{path}: image {sample['__key__']}")
            for sample in found
        ]
        return np.array(rows, dtype=np.int64).reshape(len(found), len(self.attributes))
