"""How long work tells that it is alive: one callback type, and the terminal that draws it.

Libraries below us (Ray, DeepSpeed, W&B, C++ code) write to file descriptors 1 and 2 whenever they like. `chatter_into`
points those descriptors at the log file and keeps the user's real terminal, so that the screen shows one line a stage.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

Progress = Callable[[float, float, str], None]
"""progress(done, total, note): `done` of `total` units are finished; `note` is a few words on the present state."""


def silent(done: float, total: float, note: str) -> None:
    """The progress callback of those who do not look."""


def clock(seconds: float) -> str:
    """A duration as people say it: 8 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _TimeLeft(ProgressColumn):
    """Time left from the mean rate so far: steadier than rich's windowed estimate for steps of uneven length."""

    def render(self, task: Task) -> Text:
        if task.finished or not task.total or not task.completed or task.elapsed is None:
            return Text("")
        return Text(f"{clock(task.elapsed * (task.total / task.completed - 1))} left", style="dim")


class Terminal:
    """The user's screen: `stage(title)` draws one line with a bar and the time left, then leaves one finished line."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.console = Console(file=stream, highlight=False, emoji=False)

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[Progress]:
        """Yield the progress callback of one stage. On a screen the bar moves; in a file only the last line appears."""
        started = time.monotonic()
        last = {"note": ""}
        columns = (TextColumn("{task.description:<44}"), BarColumn(24), TextColumn("{task.fields[note]}"), _TimeLeft())
        with RichProgress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            task = bars.add_task(title, total=None, note="")

            def progress(done: float, total: float, note: str) -> None:
                last["note"] = note
                bars.update(task, completed=done, total=total, note=note)

            yield progress
        self.done(title, f"{clock(time.monotonic() - started):>12}  {last['note']}")

    def done(self, title: str, note: str) -> None:
        """One finished line."""
        self.console.print(f"[green]✓[/] {title:<44} [dim]{note}[/]", soft_wrap=True)


@contextlib.contextmanager
def chatter_into(log: Path) -> Iterator[Terminal]:
    """Send everything written to descriptors 1 and 2 into `log`; yield the Terminal that still reaches the user.

    Children started meanwhile (Ray's daemons) inherit the redirection. The descriptors come back at the end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept_out, kept_err = os.dup(1), os.dup(2)
    with os.fdopen(os.dup(1), "w", buffering=1) as screen, log.open("ab") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            yield Terminal(screen)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept_out, 1)
            os.dup2(kept_err, 2)
            os.close(kept_out)
            os.close(kept_err)
