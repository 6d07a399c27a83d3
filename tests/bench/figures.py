"""What the programs of this folder end in: a table on the screen, and under `make bench` a part of RESULTS.md."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

OUT = "XINV_BENCH_OUT"
"""Names the file of JSON lines to which every report is appended as well; `all.py` makes RESULTS.md of it."""


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured.
        value: the number, in `unit` ("x" for a ratio).
        goal: what it ought to be, such as ">= 0.92"; empty where nothing was promised.
        note: what the reader must know beside it: both sides of a ratio, the sizes.
    """

    name: str
    value: float
    unit: str
    goal: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if not self.goal:
            return None
        sign, limit = self.goal.split()
        return self.value >= float(limit) if sign == ">=" else self.value <= float(limit)


def report(title: str, figures: Sequence[Figure]) -> None:
    """Print the figures of one program, and keep them for RESULTS.md where `make bench` asks for it."""
    print(f"\n{title}")
    for figure in figures:
        verdict = {None: "", True: "met", False: "MISSED"}[figure.met]
        print(f"  {figure.name:<58} {figure.value:>10.4g} {figure.unit:<8} {figure.goal:<9} {verdict:<7} {figure.note}")
    if os.environ.get(OUT):
        with Path(os.environ[OUT]).open("a") as stream:
            stream.write(json.dumps({"title": title, "figures": [asdict(figure) for figure in figures]}) + "\n")
