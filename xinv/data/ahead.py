"""Shards that lie in a storage are fetched before a reading plan comes to them."""

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Part = TypeVar("Part")

THREADS = 4  # fetches at once


def fetched_ahead(
    parts: Sequence[Part], needed: Sequence[Collection[int]], fetch: Callable[[int], Any], depth: int
) -> Iterator[Part]:
    """`parts` in turn, while threads call `fetch` for the shards that the following ones need.

    Args:
        parts: of a reading plan.
        needed: the shards that each of them needs.
        fetch: gets one shard here. What it raises is passed over: who needs the shard meets it again.
        depth: how many shards beyond those of the part that was asked for last.
    """
    order = list(dict.fromkeys(shard for shards in needed for shard in shards))
    place = {shard: number for number, shard in enumerate(order)}
    begun = 0
    threads = ThreadPoolExecutor(THREADS)
    try:
        for part, shards in zip(parts, needed, strict=True):
            begun = max([begun, *(place[shard] + 1 for shard in shards)])  # these are the reader's own
            until = 1 + depth + max((place[shard] for shard in shards), default=-1)
            for shard in order[begun:until]:
                threads.submit(fetch, shard)
            begun = max(begun, until)
            yield part
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
