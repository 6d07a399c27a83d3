"""How long work tells that it is alive: one callback type, and the terminal that draws it.

Libraries below us (Ray, DeepSpeed, W&B, C++ code) write to file descriptors 1 and 2 whenever they like. `chatter_into`
points those descriptors at the log file and keeps the user's real terminal, so that the screen shows one line a stage.
"""

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

Progress = Callable[[float, float, str], None]
"""progress(done, total, note): `done` of `total` units are finished; `note` is a few words on the present state."""

Rows = Sequence[Mapping[str, str]]
"""A table: one row a mapping from heading to text, headings all equal."""


Show = Callable[[Rows], None]
"""Keeps a table on the screen while a stage is under way (`Terminal.show`)."""


def silent(done: float, total: float, note: str) -> None:
    """The progress callback of those who do not look."""


def counted(progress: Progress, sizes: Sequence[int], before: int = 0) -> Progress:
    """A callback for tasks (done, total) that tells `progress` how many images that is, and how many a second.

    Args:
        sizes: images of each task, in the order in which tasks are given out. They end in nearly that order: in between
            the count may be off by what two tasks differ in.
        before: images that an earlier run has done; they count as done, and not for the rate.
    """
    sums = [0, *itertools.accumulate(sizes)]
    begun: list[float] = []

    def told(done: float, total: float, note: str) -> None:
        if not begun:
            begun.append(time.monotonic())
        images, seconds = sums[int(done)], time.monotonic() - begun[0]
        rate = f", {amount(images / seconds)} a second" if images and seconds > 0 else ""
        progress(before + images, before + sums[-1], f"{before + images:,} images{rate}")

    return told


def amount(value: float) -> str:
    """A rate with two digits that mean something: 3,210, 56, 0.78."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def clock(seconds: float) -> str:
    """A duration as people say it: 8 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def table(rows: Rows, words: int = 1) -> Table:
    """Rows as the terminal draws them; `words`: leading columns that are not numbers."""
    made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for place, heading in enumerate(rows[0]):
        made.add_column(str(heading), justify="left" if place < words else "right", no_wrap=True)
    for row in rows:
        made.add_row(*map(str, row.values()))
    return made


def unshown(rows: Rows) -> None:
    """The `Show` of those who do not look."""


class _TimeLeft(ProgressColumn):
    """Time left from the mean rate so far: steadier than rich's windowed estimate for steps of uneven length.

    What was done before the first word of this run was done by an earlier one, and says nothing of the rate.
    """

    def render(self, task: Task) -> Text:
        first: tuple[float, float] | None = task.fields.get("first")
        if task.finished or not task.total or first is None or task.completed <= first[0]:
            return Text("")
        pace = (time.monotonic() - first[1]) / (task.completed - first[0])
        return Text(f"{clock(pace * (task.total - task.completed))} left", style="dim")


class _Bars(RichProgress):
    """The lines of stages, and below them whatever table `rows` gives."""

    def __init__(self, *columns: ProgressColumn, rows: Callable[[], Rows], console: Console) -> None:
        self._rows = rows
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if rows := self._rows():
            yield table(rows, words=3)


class Terminal:
    """The user's screen: `stage(title)` draws one line with a bar and the time left, then leaves one finished line."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.console = Console(file=stream, highlight=False, emoji=False)
        self._rows: Rows = []
        self._bars: _Bars | None = None

    def show(self, rows: Rows) -> None:
        """Keep a table below the line of the stage under way, one row a dict, until the stage ends; empty: none. A file
        never sees it."""
        self._rows = rows
        if self._bars:
            self._bars.refresh()

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[Progress]:
        """Yield the progress callback of one stage. On a screen the bar moves; in a file only the last line appears."""
        started = time.monotonic()
        last = {"note": ""}
        columns = (TextColumn("{task.description:<44}"), BarColumn(24), TextColumn("{task.fields[note]}"), _TimeLeft())
        with _Bars(*columns, rows=lambda: self._rows, console=self.console) as bars:
            self._bars = bars
            task = bars.add_task(title, total=None, note="")
            first: list[tuple[float, float]] = []

            def progress(done: float, total: float, note: str) -> None:
                last["note"] = note
                if not first:
                    first.append((done, time.monotonic()))
                bars.update(task, completed=done, total=total, note=note, first=first[0])

            try:
                yield progress
            finally:
                self._rows, self._bars = [], None
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
