"""The reading plan: every sample once, whatever the window, the world and the cursor."""

from collections import Counter

import numpy as np
import pytest

from xinv.data.reading_plan import batches, epoch_order
from xinv.errors import InputError

COUNTS = [5, 5, 5, 5, 3]
TOTAL = sum(COUNTS)
EVERY = {(shard, sample) for shard, count in enumerate(COUNTS) for sample in range(count)}


@pytest.mark.parametrize("window", [1, 4, 5, 9, 10, 100])
def test_order_has_every_sample_once(window):
    order = epoch_order(COUNTS, seed=1, epoch=0, window=window)
    assert order.shape == (TOTAL, 2) and order.dtype == np.int64
    assert {tuple(pair) for pair in order.tolist()} == EVERY


def test_order_is_a_pure_function_of_its_arguments():
    first = epoch_order(COUNTS, seed=1, epoch=0, window=10)
    np.random.seed(5)
    np.testing.assert_array_equal(epoch_order(COUNTS, seed=1, epoch=0, window=10), first)
    for other in ({"seed": 2, "epoch": 0}, {"seed": 1, "epoch": 1}):
        assert (epoch_order(COUNTS, **other, window=10) != first).any()


def test_blocks_hold_whole_shards_within_the_window():
    for epoch in range(20):
        order = epoch_order(COUNTS, seed=0, epoch=epoch, window=10)
        spans: dict[int, list[int]] = {}
        for position, shard in enumerate(order[:, 0].tolist()):
            spans.setdefault(shard, []).append(position)
        # No shard is spread over more than one window, so none is needed again once its block is over.
        assert all(max(span) - min(span) < 10 for span in spans.values())


def test_wide_window_is_a_full_shuffle():
    firsts = Counter(tuple(epoch_order(COUNTS, seed=0, epoch=epoch, window=TOTAL)[0]) for epoch in range(400))
    assert len(firsts) == TOTAL  # each sample comes first at some time
    mixed = sum((np.diff(epoch_order(COUNTS, 0, epoch, TOTAL)[:, 0]) != 0).sum() for epoch in range(20)) / 20
    assert mixed > 14  # neighbours are mostly of different shards (17.5 expected, 4 without a shuffle across shards)


def test_narrow_window_still_shuffles_inside_a_shard():
    order = epoch_order([50, 50], seed=0, epoch=0, window=1)
    assert len(set(order[:50, 0].tolist())) == 1
    assert order[:50, 1].tolist() != list(range(50)) and sorted(order[:50, 1].tolist()) == list(range(50))


def test_window_must_hold_something():
    with pytest.raises(InputError, match="window of 0"):
        epoch_order(COUNTS, 0, 0, 0)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 7, 23, 64])
@pytest.mark.parametrize("cursor", [0, 9, 22, 23])
def test_every_position_once_and_equal_rows_on_all_ranks(world, batch_size, cursor):
    ranks = [list(batches(TOTAL, batch_size, cursor, rank, world)) for rank in range(world)]
    assert len({len(plan) for plan in ranks}) == 1
    counted: Counter[int] = Counter()
    for together in zip(*ranks, strict=True):
        assert len({len(part.positions) for part in together}) == 1
        assert len({(part.samples, part.cursor) for part in together}) == 1
        real = [position for part in together for position in part.positions[part.weight == 1].tolist()]
        begin, end = together[0].cursor - together[0].samples, together[0].cursor
        assert sorted(real) == list(range(begin, end))
        # What fills up belongs to the same batch: it needs no other shard.
        assert all(begin <= position < end for part in together for position in part.positions.tolist())
        assert all(set(part.weight.tolist()) <= {0.0, 1.0} for part in together)
        counted.update(real)
    assert counted == Counter(range(cursor, TOTAL))


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"cursor": -1},
        {"cursor": TOTAL + 1},
        {"rank": 2, "world": 2},
        {"rank": -1},
    ],
)
def test_plan_out_of_range(wrong):
    with pytest.raises(InputError, match="no batches of"):
        list(batches(**{"total": TOTAL, "batch_size": 4, **wrong}))
