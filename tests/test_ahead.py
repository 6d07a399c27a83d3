"""Shards are fetched before the plan comes to them, in its order, and not further ahead than asked."""

import threading

from xinv.data.ahead import fetched_ahead

NEEDED = [[3], [3, 1], [1, 4], [0], [2]]


def test_so_many_shards_ahead_and_each_once() -> None:
    came: list[int] = []
    more = threading.Semaphore(0)

    def fetch(shard: int) -> None:
        came.append(shard)
        more.release()

    parts = fetched_ahead("abcde", NEEDED, fetch, depth=1)
    for part, begun in (("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 4)):
        assert next(parts) == part
        while len(came) < begun:
            assert more.acquire(timeout=30)
        assert sorted(came) == sorted([1, 4, 0, 2][:begun])
    assert list(parts) == []


def test_what_fails_is_left_to_the_reader_and_who_stops_fetches_no_more() -> None:
    came: list[int] = []
    tried = threading.Event()

    def fetch(shard: int) -> None:
        came.append(shard)
        tried.set()
        raise OSError("no room")

    parts = fetched_ahead("abcde", NEEDED, fetch, depth=1)
    assert next(parts) == "a" and tried.wait(30)
    assert next(parts) == "b"
    parts.close()
    assert set(came) <= {1, 4}


def test_parts_that_need_nothing() -> None:
    assert list(fetched_ahead("ab", [[], []], int, depth=2)) == ["a", "b"]
