"""A log that is read while it is written."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.log import tail


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.log.PAUSE", 0.0)


def test_what_is_added_until_the_end_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    steps: Iterator[bytes] = iter([b"", b"one\n", b"tw", b"o\n"])

    def more() -> bool:
        piece = next(steps, None)
        if piece is None:
            return False
        with path.open("ab") as stream:
            stream.write(piece)
        return True

    assert "".join(tail(path, more)) == "one\ntwo\n"


def test_a_letter_cut_in_two_is_read_whole(tmp_path: Path) -> None:
    path, text = tmp_path / "log.txt", "é".encode()
    path.write_bytes(text[:1])
    turns = iter([True, False])

    def more() -> bool:
        again = next(turns)
        if not again:
            path.write_bytes(text)
        return again

    assert "".join(tail(path, more)) == "é"


def test_a_log_that_never_came_is_empty(tmp_path: Path) -> None:
    assert list(tail(tmp_path / "none.txt", lambda: False)) == []
