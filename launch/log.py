"""The text that a job prints, read from a file that it is still writing."""

import codecs
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PAUSE = 0.5
"""Seconds between two looks at the file."""


def tail(path: Path, more: Callable[[], bool]) -> Iterator[str]:
    """What `path` holds, in pieces, and what is added to it for as long as `more` says that something may come.

    A file that is not there yet is waited for, or is empty where nothing is to come.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    position = 0
    while True:
        expected = more()  # asked before the look: what was written up to the end is then seen
        if path.exists():
            with path.open("rb") as stream:
                stream.seek(position)
                while piece := stream.read(1 << 16):
                    position += len(piece)
                    if text := decoder.decode(piece):
                        yield text
        if not expected:
            return
        time.sleep(PAUSE)
