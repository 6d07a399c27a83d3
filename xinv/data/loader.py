"""A partition as batches of tensors, in the order of the reading plan, decoded once or ahead of whoever reads.

Axes: B batch, C channels, H W pixels, K classes, M channels of a map, N samples, G explanations, A attributes.
"""

import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from xinv.data.ahead import THREADS, fetched_ahead
from xinv.data.attributes import Attribute
from xinv.data.catalog import Catalog, Facts
from xinv.data.decoders import Decoders
from xinv.data.decoding import decoded_as
from xinv.data.index import Index
from xinv.data.reading_plan import RankBatch, batches, epoch_order, in_order
from xinv.errors import InputError

VICTIM = "victim"
WORTH = 256 << 20  # bytes of a decoded set that are worth the start of processes, where it is decoded once


@dataclass(frozen=True)
class Batch:
    """One rank's batch. Rows of weight 0 repeat a sample to give all ranks equally many rows: do not count them."""

    key: list[str]
    identity: list[str]
    image_BCHW: torch.Tensor  # float32 in [0, 1]; uint8 as stored (`Reader(as_stored=True)`)
    label_B: torch.Tensor  # int64
    prediction_BK: torch.Tensor | None  # float32 logits; None when no releases are read
    maps: dict[str, torch.Tensor]  # method -> map_BMHW float32 (or as stored); in [0, 1] where codes are stored
    weight_B: torch.Tensor  # float32, 0 or 1
    samples: int  # in the global batch
    cursor: int  # after the global batch
    present_BG: torch.Tensor | None = None  # float32, 1: given, 0: withheld (train.presence); None: all given
    attribute_BA: torch.Tensor | None = None  # int64, positions in Attribute.values; None when none were asked for


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


def floated(batch: Batch) -> Batch:
    """`batch` with pixels, predictions and maps as float32, where their tensors are."""
    return replace(
        batch,
        image_BCHW=as_float(batch.image_BCHW),
        prediction_BK=None if batch.prediction_BK is None else as_float(batch.prediction_BK),
        maps={method: as_float(stored) for method, stored in batch.maps.items()},
    )


class Reader:
    """One partition of an image set, with the releases for it when `releases` is given, as batches of tensors.

    `methods`: the explanation maps to read. `window`: samples of the shuffle window at most; it shrinks to what
    `memory_bytes` of decoded samples can hold, so both are part of the plan: keep them when a run resumes.
    A set that fits into `memory_bytes` is decoded once. Of one that does not, threads ahead of the reader decode the
    rows that the next batches of this rank need, and nothing else.
    `decoders`: processes that decode; 0: those threads do it themselves. `as_stored`: leave pixels and other codes as
    integers; `floated` makes of such a batch what a Reader gives otherwise, on any device.
    `limit`: read only the first so many samples, a random part, because shards hold a partition in random order.
    `attributes`: those to deliver as `Batch.attribute_BA`.
    `purpose`: the victims are scored and serve nothing else, so the partition `victim` opens for "score" alone.
    InputError: a limit beyond the partition, unknown partition or method, sets that do not belong together, a shard
    that is not what its index says, an image without an attribute asked for, victims asked for without that purpose.
    WorkError: a process that decodes died.
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
        decoders: int = 0,
        as_stored: bool = False,
    ) -> None:
        if partition.removesuffix("_validation") == VICTIM and purpose != "score":
            raise InputError(
                f"the partition {partition!r} of {images} is kept for scoring: nothing may be trained, selected or "
                "searched on it. Train on another partition, such as attack."
            )
        self.images, self.releases = images, releases
        self.partition, self.methods, self.seed = partition, tuple(methods), seed
        self.memory_bytes, self.as_stored = memory_bytes, as_stored
        index = Index.load(images)
        if index.kind != "images":
            raise InputError(f"{images} is a set of {index.kind}; expected a set of images.")
        released = self._checked_releases(index)
        self._counts = _limited([entry.samples for entry in index.entries(partition)], limit, partition)
        self.samples: int = sum(self._counts)
        height, width, channels = index.fields["png"].shape
        self.image_shape: tuple[int, int, int] = (channels, height, width)
        self.classes: int = len(index.label_names)
        self.map_shapes: dict[str, tuple[int, int, int]] = {}
        schemas = {"png": index.fields["png"]}
        if released is not None and releases is not None:
            for name in ("prediction.npy", *(f"{method}.npy" for method in self.methods)):
                schemas[name] = released.fields[name]
            for method in self.methods:
                maps, map_height, map_width = released.fields[f"{method}.npy"].shape
                self.map_shapes[method] = (maps, map_height, map_width)
        sets = [(images, index)] if released is None or releases is None else [(images, index), (releases, released)]
        self._catalog = Catalog(sets, partition, schemas, attributes)
        self._attributes = bool(attributes)
        self.sample_bytes: int = sum(
            math.prod(shape) * np.dtype(dtype).itemsize
            for dtype, shape in (decoded_as(name, schema) for name, schema in schemas.items())
        )
        held = memory_bytes // self.sample_bytes
        self.fits: bool = self.samples <= held
        # A block that did not stay in memory would be decoded again and again, a whole shard for a handful of rows.
        self.window: int = window if self.fits else max(1, min(window, held))
        # Where little is decoded, and once, processes would cost more than they give.
        small = self.fits and self.samples * self.sample_bytes < WORTH
        self._decoders = Decoders(0 if small else decoders)
        self._decoded: dict[int, dict[str, np.ndarray]] = {}  # of a set that fits: shard -> field -> (n, ...)
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
        order_N2 = in_order(np.arange(len(self._counts)), self._counts)
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
        order_N2 = in_order(np.arange(len(self._counts)), self._counts)[places]
        return self._stream(order_N2, list(batches(len(order_N2), batch_size)))

    def _stream(self, order_N2: np.ndarray, plan: list[RankBatch]) -> Iterator[Batch]:
        """The batches of `plan`: gathered in memory, or decoded ahead by threads."""
        parts = self._fetching(order_N2, plan)
        if self.fits:
            for part in parts:
                yield self._gathered(part, order_N2[part.positions])
            return
        threads = max(1, self._decoders.count)
        size = self.sample_bytes * max((len(part.positions) for part in plan), default=1)
        ahead = min(threads + 1, max(1, self.memory_bytes // size))
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for part in parts:
                    waiting.append(pool.submit(self._fetched, part, order_N2[part.positions]))
                    if len(waiting) > ahead:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _fetching(self, order_N2: np.ndarray, plan: list[RankBatch]) -> Iterator[RankBatch]:
        """`plan`; as it is gone through, shards that lie in a storage are fetched ahead, those of the next block."""
        depth = self._catalog.depth(max(THREADS, -(-self.window // max(self._counts, default=1))))
        if not depth:
            return iter(plan)
        needed = [np.unique(order_N2[part.positions, 0]).tolist() for part in plan]
        if self.fits:
            needed = [[shard for shard in shards if shard not in self._decoded] for shards in needed]
        return fetched_ahead(plan, needed, self._catalog.fetch, depth)

    def _fetched(self, part: RankBatch, pairs_B2: np.ndarray) -> Batch:
        """One batch, decoded for itself."""
        with self._catalog.holding(np.unique(pairs_B2[:, 0]).tolist()):
            request, facts = self._catalog.request(pairs_B2)
            return self._batch(part, pairs_B2, facts, self._decoders.decode(request))

    def _gathered(self, part: RankBatch, pairs_B2: np.ndarray) -> Batch:
        """One batch out of decoded shards."""
        shards = np.unique(pairs_B2[:, 0]).tolist()
        self._load(shards)
        facts = {shard: self._catalog.shard(shard) for shard in shards}
        arrays = {
            name: np.empty((len(pairs_B2), *array.shape[1:]), array.dtype)
            for name, array in self._decoded[shards[0]].items()
        }
        for shard in shards:
            here = np.flatnonzero(pairs_B2[:, 0] == shard)
            for name, array in arrays.items():
                array[here] = self._decoded[shard][name][pairs_B2[here, 1]]
        return self._batch(part, pairs_B2, facts, arrays)

    def _load(self, shards: list[int]) -> None:
        """Decode those of `shards` that are not in memory yet, as far as the limit goes."""
        with self._lock:
            missing = [shard for shard in shards if shard not in self._decoded]
            if not missing:
                return

            def decoded(shard: int) -> dict[str, np.ndarray]:
                with self._catalog.holding([shard]):
                    request, _ = self._catalog.request(in_order([shard], self._counts))
                    return self._decoders.decode(request)

            with ThreadPoolExecutor(max(1, self._decoders.count, self._catalog.depth(THREADS))) as pool:
                self._decoded |= dict(zip(missing, pool.map(decoded, missing), strict=True))

    def _batch(
        self, part: RankBatch, pairs_B2: np.ndarray, facts: dict[int, Facts], arrays: dict[str, np.ndarray]
    ) -> Batch:
        """Decoded rows, and what is known of them, as a batch."""
        rows = [(facts[shard], sample) for shard, sample in pairs_B2.tolist()]
        label_B = np.array([shard.label[sample] for shard, sample in rows], dtype=np.int64)
        stored = {name: torch.from_numpy(array) for name, array in arrays.items()}
        batch = Batch(
            key=[shard.key[sample] for shard, sample in rows],
            identity=[shard.identity[sample] for shard, sample in rows],
            image_BCHW=stored["png"],
            label_B=torch.from_numpy(label_B),
            prediction_BK=stored.get("prediction.npy"),
            maps={method: stored[f"{method}.npy"] for method in self.methods},
            weight_B=torch.from_numpy(part.weight),
            samples=part.samples,
            cursor=part.cursor,
            attribute_BA=torch.from_numpy(np.stack([shard.attribute[sample] for shard, sample in rows]))
            if self._attributes
            else None,
        )
        return batch if self.as_stored else floated(batch)
