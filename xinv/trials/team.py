"""Several audits on one set of worker processes: every stage that they share is made once, and nobody waits for it.

How work is shared out. A trial is an audit; its unfinished stages are steps (`Walk`), the same step where two trials
share a stage. The driver holds all steps with what each of them needs (`Schedule`) and gives a ready one to every idle
worker. There are no phases: an inverter of one trial is trained beside the target of another, and a core idles only
when nothing at all is ready. When a trial's stages are there, its last step scores it and writes its report.

A worker is a Ray actor that keeps its process. Each training runs in it with one rank (`InProcess`): a group under Ray
Train would take longer to start than many a trial takes to train. Killed anywhere, finished stages are finished, and
unfinished trainings continue from their checkpoints; two processes that come to the same stage all the same (one left
over from a killed run) wait for each other at the stage's lock.
"""

import functools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from xinv import audit
from xinv.audit import Stop
from xinv.config import AuditConfig
from xinv.errors import InputError, WorkError
from xinv.parallel import Board, WorkerSettings, connect, room
from xinv.pool import Pool
from xinv.progress import Progress, silent
from xinv.stage import MARK
from xinv.track import Tracker
from xinv.train.inline import InProcess
from xinv.trials.schedule import FINISH, Schedule
from xinv.trials.walk import Memory, Step, Walk

TELL_EVERY = 0.5  # seconds between a worker's words on its progress

Call: TypeAlias = tuple[str, AuditConfig]
"""(id of the step, configuration of the trial that it is made for)"""


@dataclass(frozen=True)
class Team:
    """Worker processes.

    `width`: how many; None: as many as the cluster's CPUs and GPUs allow. `gpus`: share of a GPU that each one has.
    """

    settings: WorkerSettings
    log: Path
    width: int | None = None
    gpus: float = 0

    def open(self, board: Board) -> Pool[Call, float]:
        """A pool of workers. Needs a connection. InputError where the cluster is too small for one."""
        places = room(self.settings.cpus, self.gpus)
        if places < 1:
            raise InputError(
                f"The cluster has no room for a trial, which needs {self.settings.cpus} CPU and {self.gpus:g} GPU. "
                "Lower trials.cpus or trials.gpus, or use a larger cluster."
            )
        width = min(self.width or places, places)
        factory = functools.partial(_worker, self.settings.cpus, Path.cwd(), board.tell)
        return Pool(factory, width, self.settings, cpus=self.settings.cpus, gpus=self.gpus, log=self.log)


class Trials:
    """Audits that are carried out together.

    Args:
        configs: by name, which is that of the audit.
        team: who works.
        tracker: gets a line when a step begins and ends, and the metrics of the trainings.
        origins: how messages call each trial.
    """

    def __init__(
        self, configs: Mapping[str, AuditConfig], team: Team, tracker: Tracker, origins: Mapping[str, str]
    ) -> None:
        self.configs, self.team, self.tracker, self.origins = dict(configs), team, tracker, dict(origins)
        self._memory = Memory()
        self.made: set[str] = set()
        """Ids of the stages that this process's workers made."""

    def plan(self, until: Stop) -> dict[str, list[Step]]:
        """The steps up to `until` of every trial that has any left.

        Raises:
            InputError: a trial's data is missing or wrong; the message names the trial.
        """
        found = {name: self.steps(name, until) for name in self.configs}
        return {name: steps for name, steps in found.items() if steps}

    def unfinished(self, progress: Progress = silent) -> dict[str, list[Step]]:
        """The trials that lack anything, were it only their report, with the steps that they are known to need.

        Their explanations are held against their networks before anything is trained. Images are there (`plan`, `run`).

        Raises:
            InputError: an explanation that its network does not support; the message names the trial.
        """
        found = {}
        for number, name in enumerate(self.configs):
            if not self._scored(name):
                progress(number, len(self.configs), f"checking {self.origins[name]}")
                found[name] = self.steps(name, "inverters", checked=False)
        return found

    def steps(self, name: str, until: Stop, checked: bool = True) -> list[Step]:
        """The steps up to `until` that one trial has left, as far as can be known now."""
        try:
            return list(self._walk(name, checked).plan(until)[0].values())
        except InputError as error:
            raise InputError(f"{self.origins[name]}: {error}") from None

    def _walk(self, name: str, checked: bool = True) -> Walk:
        return Walk(self.configs[name], InProcess(self.team.settings.cpus), self._memory, checked=checked)

    def _scored(self, name: str) -> bool:
        """Whether a trial is finished: the scores that its stages give are there, and its report."""
        steps, whole = self._walk(name).plan("scores")
        folder = self.configs[name].folder
        return whole and not steps and all((folder / file).exists() for file in ("scores.json", "report.html"))

    def run(self, plan: Mapping[str, list[Step]], progress: Progress, until: Stop) -> None:
        """Carry out a plan, and after it whatever its trials turn out to want up to `until` ("report": also the last
        step of each).

        Raises:
            InputError, WorkError: after all that does not depend on it is done, the trials that could not be finished.
            OSError: the disk; at once.
        """
        if not plan:
            return
        schedule = Schedule()
        for name, steps in plan.items():
            schedule.add(name, steps)
        connect(self.team.settings)
        board = Board()
        pool = self.team.open(board)
        try:
            _Drive(self, schedule, pool, board, progress, until).run()
        finally:
            pool.close()
            board.close()
        _raise_failures(schedule, self.origins)


class _Drive:
    """One run of a schedule on a pool."""

    def __init__(
        self,
        trials: Trials,
        schedule: Schedule,
        pool: Pool[Call, float],
        board: Board,
        progress: Progress,
        until: Stop,
    ) -> None:
        self.trials, self.schedule, self.pool, self.board = trials, schedule, pool, board
        self.progress, self.until = progress, until
        self.seconds: dict[str, list[float]] = {}
        self.under_way: dict[str, float] = {}
        self.last: set[str] = set()  # trials whose last step is in the schedule
        self.over: set[str] = set()  # trials that want nothing more

    def run(self) -> None:
        self._grow()
        while True:
            while self.pool.idle and (step := self.schedule.next()) is not None:
                self._begin(step)
            if not self.schedule.running and not self.schedule.waiting():
                break
            for ident, outcome in self.pool.wait(0.25):
                self._end(self.schedule.steps[str(ident)], outcome)
                self._grow()
            self._listen()
            self._show()
        open_ones = self.schedule.trials.keys() - self.over - self.schedule.lost().keys()
        if open_ones:
            raise WorkError(
                f"{min(open_ones)} asks for stages that were just made. Is somebody else changing its stages folder?"
            )

    def _begin(self, step: Step) -> None:
        name = self.schedule.owner[step.id]
        self.trials.tracker.event("begin", stage=step.title, trial=name, id=step.id)
        self.under_way[step.id] = 0.0
        self.pool.submit(step.id, (step.id, self.trials.configs[name]))

    def _end(self, step: Step, outcome: float | Exception) -> None:
        self._listen()
        self.under_way.pop(step.id, None)
        name = self.schedule.owner[step.id]
        if isinstance(outcome, OSError):
            raise outcome
        if isinstance(outcome, Exception):
            self.schedule.failed(step.id, outcome)
            self.trials.tracker.event("failed", stage=step.title, trial=name, id=step.id, reason=str(outcome))
            return
        self.schedule.done(step.id)
        self.seconds.setdefault(step.kind, []).append(outcome)
        if step.kind != FINISH:
            self.trials.made.add(step.id)
        self.trials.tracker.event("end", stage=step.title, trial=name, id=step.id, seconds=round(outcome, 2))

    def _grow(self) -> None:
        """Look again at trials that have all they asked for: more stages, their last step, or nothing."""
        for name in self.schedule.settled():
            if name in self.over:
                continue
            steps = self.trials.steps(name, "inverters" if self.until == "report" else self.until)
            if not steps and self.until == "report" and name not in self.last:
                self.last.add(name)
                steps = [Step(f"{FINISH}-{name}", f"Scores and report: {self.trials.origins[name]}", frozenset())]
            self.schedule.add(name, steps)
            if not steps:
                self.over.add(name)

    def _listen(self) -> None:
        for message in self.board.read():
            kind, name, ident, content = message
            if kind == "progress":
                self.under_way[ident] = content
            else:
                event = dict(content)
                series = f"{name}/{event.pop('series')}" if "series" in event else name
                self.trials.tracker.event(event.pop("kind"), series=series, **event)

    def _show(self) -> None:
        trials = len(self.schedule.trials)
        more = trials - len(self.last) if self.until == "report" else 0
        under_way = {ident: share for ident, share in self.under_way.items() if ident in self.schedule.running}
        done, total = self.schedule.share(self.seconds, under_way, more - len(self.schedule.lost().keys() - self.last))
        titles = "; ".join(self.schedule.steps[ident].title for ident in sorted(self.schedule.running))
        note = f"{len(self.over)}/{trials} trials  {titles}"
        self.progress(done, total, note if len(note) <= 100 else f"{note[:97]}...")


def enter(folder: Path, *needed: Path) -> None:
    """Work in the driver's folder: a configuration's relative paths mean what they mean there. WorkError where that
    folder, or another that is needed, is not on this machine."""
    for one in (folder, *needed):
        if not one.is_dir():
            raise WorkError(
                f"{one} is not on every machine of the cluster; start xinv in a folder that all of them share."
            )
    os.chdir(folder)


def shares(tell: Callable[[float], None]) -> Progress:
    """A progress callback that tells the share that is done, every now and then."""
    told = time.monotonic()

    def progress(done: float, total: float, note: str) -> None:
        nonlocal told
        if total and time.monotonic() - told > TELL_EVERY:
            told = time.monotonic()
            tell(min(1.0, done / total))

    return progress


def _worker(threads: int, folder: Path, tell: Callable[[Any], None]) -> Callable[[Call], float]:
    """Built in a worker process: makes one stage of a trial, or scores it and writes its report; seconds it took."""
    enter(folder)
    group, memory = InProcess(threads), Memory()

    def run(call: Call) -> float:
        ident, config = call
        begun = time.monotonic()
        progress = shares(lambda share: tell(("progress", config.name, ident, share)))

        def event(content: dict[str, Any]) -> None:
            tell(("event", config.name, ident, content))

        if ident.startswith(f"{FINISH}-"):
            audit.run(config, group=group)
        else:
            walk = Walk(config, group, memory, wanted=ident, checked=True, tell=event, progress=progress)
            if not walk.make() and not (walk.store.root / ident / MARK).exists():
                raise WorkError(f"{config.name} has no stage {ident} any more. Did its data change meanwhile?")
        group.close()
        return time.monotonic() - begun

    return run


def _raise_failures(schedule: Schedule, origins: Mapping[str, str]) -> None:
    lost = schedule.lost()
    if not lost:
        return
    lines = [f"{len(lost)} of {len(schedule.trials)} trials could not be finished; the others are."]
    for ident in dict.fromkeys(lost.values()):
        names = [origins[name] for name, failed in lost.items() if failed == ident]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        lines.append(f"{shown}: {schedule.steps[ident].title}: {schedule.failures[ident]}")
    kind = InputError if any(isinstance(error, InputError) for error in schedule.failures.values()) else WorkError
    raise kind("\n".join(lines))
