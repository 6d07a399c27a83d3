"""A search, carried out: `xinv search`.

Run from Python:

    from pathlib import Path
    from xinv.search import run, settings

    found = run.run(settings.load(Path("configs/search/digits.yaml"), ["budget.trials=12"]))
    print(found["best"]["mse"], found["best_file"])
"""

import contextlib
import shutil
import time
from collections.abc import Callable
from typing import Any

from xinv.audit import Screen, unseen
from xinv.base import trial_workers
from xinv.binding import bind_folder
from xinv.config import AuditConfig
from xinv.errors import WorkError
from xinv.files import make_private
from xinv.keeping import kept_run
from xinv.parallel import WorkerSettings, connect, disconnect, resources
from xinv.plan.check import check_here
from xinv.progress import Progress, Show, unshown
from xinv.search.best import ranked, status, write_best
from xinv.search.comparison import discard_stale
from xinv.search.course import Course
from xinv.search.final import Final
from xinv.search.findings import note_start, write_report
from xinv.search.forecast import Forecast, forecast, time_first
from xinv.search.offer import Offer, offer
from xinv.search.preflight import room_for
from xinv.search.record import TRIALS, Record
from xinv.search.runs import TrialRuns
from xinv.search.settings import UNBOUND, SearchConfig, base_audit
from xinv.search.task import Ground, Task
from xinv.stage import lock
from xinv.track import Tracker
from xinv.train.run import TrainingGroup

Offering = Callable[[SearchConfig, AuditConfig], Offer]


def run(
    config: SearchConfig, screen: Screen = unseen, show: Show = unshown, offering: Offering = offer
) -> dict[str, Any]:
    """Run a search, or what is missing of it: the same configuration continues one that was interrupted, anywhere.

    First the stages of the base that it stands on are made, which audits of the same data share; then the trials; then
    the final comparison of the best with known designs.

    Args:
        config: from `search.settings.load`.
        screen: makes the context manager that shows one line of progress (`progress.Terminal.stage`).
        show: keeps a table of the trials on the screen meanwhile (`progress.Terminal.show`).
        offering: what candidates come from (`offer.offer`).

    Returns:
        `best.status`, and under "best_file" the path of best.yaml (None where no trial was validated).

    Raises:
        InputError: the input is wrong, or the cluster too small. WorkError: the work failed.
    """
    base = base_audit(config, config.name)
    opened = offering(config, base)
    bind_folder(config.folder, resolved(config, base), UNBOUND, "this search", base.storage)
    busy = f"{config.folder} is in use by another xinv process. Wait for it, or give this one another name (name=...)."
    log = config.folder / "log.txt"
    with lock(config.folder / ".lock", busy), kept_run(base.storage, config.folder):
        shown = config.model_dump(mode="json")
        tracker = Tracker(config.folder, base.track, config.name, shown, log, group=config.name, job="search")
        try:
            tracker.check()
            workers = base.workers.model_copy(update={"address": trial_workers(config.place, base.workers).address})
            with TrainingGroup(workers, make_private(config.folder / "ray"), log) as group:
                if not (config.folder / TRIALS).exists():
                    _check_place(config, workers, screen)
                    check_here({"": base.model_copy(update={"workers": workers})}, ["target"])
                task = Ground(base, screen, tracker, group).task(config.release, config.epochs)
            record = Record(config.folder)
            try:
                return _trials(config, base, task, opened, record, tracker, screen, show)
            finally:
                record.close()
        finally:
            tracker.close()
            disconnect()
            shutil.rmtree(config.folder / "ray", ignore_errors=True)


def resolved(config: SearchConfig, base: AuditConfig) -> dict[str, Any]:
    """The search with its base in it, every default and override resolved; `load` reads it."""
    return config.model_dump(mode="json") | {"base": base.model_dump(mode="json"), "overrides": []}


def _check_place(config: SearchConfig, workers: WorkerSettings, screen: Screen) -> None:
    """InputError where not even the smallest trial has room: said here, not after the base's target was trained."""
    with screen("Machines") as progress:
        progress(0, 1, "connecting")
        connect(workers)
        room = room_for(config, resources(workers), 0)
        progress(1, 1, f"room for {room.width} trial{'s' if room.width > 1 else ''} at once")


def _trials(
    config: SearchConfig,
    base: AuditConfig,
    task: Task,
    opened: Offer,
    record: Record,
    tracker: Tracker,
    screen: Screen,
    show: Show,
) -> dict[str, Any]:
    space, price = opened(task)
    final = Final(config, base, task, space, price, tracker) if config.final else None
    begun = time.monotonic()
    course = Course(config, task, space, price, record, lambda: time.monotonic() - begun)
    with screen("Trials") as progress:
        if course.over():
            progress(1, 1, "(kept)")
        else:
            progress(0, 1, "looking at the space")
            course.check()
            ahead = _prepared(config, base, course, tracker, progress)
            begun = time.monotonic()  # the time is that of the trials
            from xinv.search.tune import search  # Ray Tune: not before it is needed

            log = config.folder / "log.txt"
            with contextlib.closing(TrialRuns(config, base.track, record.past, log)) as runs:
                search(course, ahead, log, runs, progress, show)
            progress(1, 1, f"{len(record.past.trials)} trials, {len(record.past.refused)} candidates refused")
    discard_stale(config.folder, ranked(record.past))
    path = write_best(config, record.past, config.folder)
    if path is None:
        reasons = [trial.reason for trial in record.past.trials.values() if trial.reason]
        raise WorkError(f"No trial came to a result. {reasons[-1] if reasons else ''}")
    if final is not None:
        workers = trial_workers(config.place, base.workers).model_copy(update={"count": config.place.workers})
        with TrainingGroup(workers, make_private(config.folder / "ray"), config.folder / "log.txt") as group:
            final.run(record.past, group, screen)
    found = status(config, record.past, config.folder)
    tracker.summary({"best": found["best"]["mse"], "trials": len(record.past.trials)})
    with screen("Report") as progress:
        progress(1, 1, str(write_report(config, record.past, config.folder)))
    return {**found, "best_file": str(path)}


def _prepared(
    config: SearchConfig, base: AuditConfig, course: Course, tracker: Tracker, progress: Progress
) -> Forecast:
    """Connect to the cluster, and work out what it has room for and how long the search will take.

    InputError where it has no room for one trial.
    """
    workers, space, price, past = trial_workers(config.place, base.workers), course.space, course.price, course.past
    connect(workers)
    presets = [price(candidate).memory_bytes for _, candidate in space.presets()] if config.presets else []
    room = room_for(config, resources(workers), max(presets, default=0))
    progress(0, 1, "looking at the machine")
    known = any(trial.reports for trial in past.trials.values())
    timed = None if known else time_first(config, course.task, space, price, workers)
    ahead = forecast(config, course.task, space, price, room.width, timed)
    words = ahead.words(past)
    tracker.event("room", width=room.width, words=f"{room.words}; {words}", seconds=ahead.seconds(past))
    note_start(tracker)
    progress(0, 1, f"{room.width} at once; {words}")
    return ahead
