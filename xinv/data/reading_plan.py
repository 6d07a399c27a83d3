"""The reading plan: which sample goes to which rank when.

The plan is a pure function of (index, seed, epoch, cursor, rank, world). The epoch has one global order; batch b of
`batch_size` samples is cut from it at the cursor, and the ranks share each batch. So every sample counts exactly once
an epoch whatever the world, every rank has the same number of batches, and a run that resumes at a cursor, on any
number of ranks, sees exactly the samples it had not seen. `data.loader` reads by it.

Axis: N samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xinv.errors import InputError


@dataclass(frozen=True)
class RankBatch:
    """One rank's part of one global batch."""

    positions: np.ndarray  # int64 (rows,): positions in the epoch's order
    weight: np.ndarray  # float32 (rows,): 1 for a sample, 0 for a row that only fills the batch up
    samples: int  # samples in the global batch, all ranks together: what a sum of weighted losses is divided by
    cursor: int  # where the next global batch begins


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
    order_N2 = in_order(shards, counts)
    start = stop = 0
    for size in [counts[shard] for shard in shards] + [window + 1]:  # the last one is no shard: it ends the last block
        if stop + size - start > window:
            order_N2[start:stop] = generator.permutation(order_N2[start:stop])
            start = stop
        stop += size
    return order_N2


def in_order(shards: Sequence[int] | np.ndarray, counts: Sequence[int]) -> np.ndarray:
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
