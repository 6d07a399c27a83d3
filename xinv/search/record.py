"""The record of a search: RUNS/NAME/trials.jsonl, one line for everything that happened to a trial.

It is the truth. Status, best and report are made from it, and so is the state of a search that goes on after a kill:
Ray Tune's own snapshots are not read. They are pickles, lag behind by seconds, lose reports between two of them, and
hold the state of a searcher that would have to agree with them; a line here is on the disk before the trial goes on, so
nothing that was compared or learnt from can be missing, whichever process dies.

    {"kind": "task", "task", ...}                                      what trials are trained on, once
    {"kind": "refused", "title", "proposal", "parameters", "twin", "reason"}    a candidate that was never begun
    {"kind": "begin", "trial", "title", "origin", "proposal", "parameters", "candidate", "cost"}
    {"kind": "report", "trial", "epoch", "mse", "loss", "seconds", "flops", "elapsed"}    after each validation
    {"kind": "end", "trial", "state", "reason"}                        finished, stopped (by halving), or failed

`candidate` is the design and its training, `parameters` are what the searcher chose (null where the space does not hold
it), `twin` is the trial that had the same candidate. `seconds` (of training and validation) and `flops` (of training:
floating point operations, forward and backward) are the trial's so far; `elapsed` is the time spent on trials by all
starts of the search so far, in seconds.
"""

import errno
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from xinv.errors import InputError

TRIALS = "trials.jsonl"
State = Literal["running", "finished", "stopped", "failed"]


@dataclass
class Trial:
    """What the record says of one trial. `proposal`: its number among the searcher's proposals; None: not of those."""

    id: str
    title: str
    origin: str
    proposal: int | None
    parameters: dict[str, Any] | None
    candidate: dict[str, Any]
    cost: dict[str, int]
    reports: list[dict[str, Any]] = field(default_factory=list)
    state: State = "running"
    reason: str = ""

    @property
    def epoch(self) -> int:
        return int(self.reports[-1]["epoch"]) if self.reports else 0

    @property
    def score(self) -> float:
        """Lowest MSE on the validation images so far; infinite before the first."""
        return min((float(report["mse"]) for report in self.reports), default=math.inf)

    def score_at(self, epoch: int) -> float:
        """As `score`, up to an age."""
        return min((float(one["mse"]) for one in self.reports if one["epoch"] <= epoch), default=math.inf)

    @property
    def seconds(self) -> float:
        return float(self.reports[-1]["seconds"]) if self.reports else 0.0

    @property
    def flops(self) -> float:
        return float(self.reports[-1]["flops"]) if self.reports else 0.0


@dataclass
class Past:
    """The whole record, read: trials by id in the order of their beginning, and all lines as they came."""

    task: dict[str, Any] | None = None
    trials: dict[str, Trial] = field(default_factory=dict)
    refused: list[dict[str, Any]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    elapsed: float = 0.0

    def add(self, line: dict[str, Any]) -> None:
        """Take in one line. KeyError, ValueError where it is none of ours."""
        kind = line["kind"]
        if kind == "task":
            self.task = line
        elif kind == "refused":
            self.refused.append(line)
        elif kind == "begin":
            fields = ("title", "origin", "proposal", "parameters", "candidate", "cost")
            self.trials[line["trial"]] = Trial(line["trial"], *(line[name] for name in fields))
        elif kind == "report":
            self.trials[line["trial"]].reports.append(line)
            self.elapsed = max(self.elapsed, float(line["elapsed"]))
        elif kind == "end":
            trial = self.trials[line["trial"]]
            if line["state"] not in get_args(State):
                raise ValueError(line["state"])
            trial.state, trial.reason = line["state"], line["reason"]
        else:
            raise ValueError(kind)
        self.lines.append(line)


def read_earlier(folder: Path) -> Past:
    """The record of a search to learn from. InputError where the folder holds none."""
    past = read(folder)
    if past.task is None:
        raise InputError(
            f"warm_start: {folder} holds no search. Name the run folder of one, such as runs/digits-search."
        )
    return past


def read(folder: Path) -> Past:
    """The record in a search's run folder; an empty one where there is none.

    A line torn by a kill, always the last before a start, is passed over: what it told is told again.

    Raises:
        InputError: a line that is whole but says what cannot be.
    """
    past = Past()
    path = folder / TRIALS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return past
    for number, text in enumerate(content.split(b"\n"), 1):
        try:
            line = json.loads(text)
        except ValueError:  # torn; (bytes cut within a character are a ValueError too)
            continue
        try:
            past.add(line)
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{path}:{number} is no line of a search's record ({type(error).__name__}: {error}). Restore the file, "
                "or give the search another name (name=...)."
            ) from None
    return past


class Record:
    """The open record of a running search: what was read, and what is appended. One process at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / TRIALS
        self.past = read(folder)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._write(b"\n")  # what follows must not join the torn half of a line

    def add(self, **line: Any) -> None:
        """Append one line; it is on the disk when this returns. OSError when it cannot be."""
        text = json.dumps(line, allow_nan=False)
        self._write(text.encode() + b"\n")
        os.fsync(self._file)
        self.past.add(json.loads(text))

    def _write(self, content: bytes) -> None:
        if os.write(self._file, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        os.close(self._file)
