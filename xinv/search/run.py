"""A search, carried out: `xinv search`.

Run from Python:

    from pathlib import Path
    from xinv.search import run, settings

    found = run.run(settings.load(Path("configs/search/digits.yaml"), ["budget.trials=12"]))
    print(found["best"]["mse"], found["best_file"])
"""

import shutil
import time
from collections.abc import Callable
from typing import Any

from xinv.audit import Screen, unseen
from xinv.config import AuditConfig, bind_folder
from xinv.errors import WorkError
from xinv.files import make_private
from xinv.parallel import connect, disconnect, resources
from xinv.search.best import status, write_best
from xinv.search.course import Course
from xinv.search.findings import note_start, write_report
from xinv.search.offer import Offer, offer
from xinv.search.preflight import room_for
from xinv.search.record import Record
from xinv.search.settings import UNBOUND, SearchConfig, base_audit, training_of, worker_settings
from xinv.search.task import Ground, Task
from xinv.stage import lock
from xinv.track import Tracker
from xinv.train.run import TrainingGroup
from xinv.train.settings import TrainingSettings

Offering = Callable[[SearchConfig, TrainingSettings], Offer]


def run(config: SearchConfig, screen: Screen = unseen, offering: Offering = offer) -> dict[str, Any]:
    """Run a search, or what is missing of it: the same configuration continues one that was interrupted, anywhere.

    First the stages of the base that it stands on are made, which audits of the same data share; then the trials.

    Args:
        config: from `search.settings.load`.
        screen: makes the context manager that shows one line of progress (`progress.Terminal.stage`).
        offering: what candidates come from (`offer.offer`).

    Returns:
        `best.status`, and under "best_file" the path of best.yaml (None where no trial was validated).

    Raises:
        InputError: the input is wrong, or the cluster too small. WorkError: the work failed.
    """
    base = base_audit(config, config.name)
    opened = offering(config, training_of(config, base))
    bind_folder(config.folder, resolved(config, base), UNBOUND, "this search")
    busy = f"{config.folder} is in use by another xinv process. Wait for it, or give this one another name (name=...)."
    log = config.folder / "log.txt"
    with lock(config.folder / ".lock", busy):
        tracker = Tracker(config.folder, base.track, config.name, config.model_dump(mode="json"), log)
        try:
            tracker.check()
            workers = base.workers.model_copy(update={"address": worker_settings(config, base.workers).address})
            with TrainingGroup(workers, make_private(config.folder / "ray"), log) as group:
                task = Ground(base, screen, tracker, group).task(config.release, config.epochs)
            record = Record(config.folder)
            try:
                return _trials(config, base, task, opened, record, tracker, screen)
            finally:
                record.close()
        finally:
            tracker.close()
            disconnect()
            shutil.rmtree(config.folder / "ray", ignore_errors=True)


def resolved(config: SearchConfig, base: AuditConfig) -> dict[str, Any]:
    """The search with its base in it, every default and override resolved; `load` reads it."""
    return config.model_dump(mode="json") | {"base": base.model_dump(mode="json"), "overrides": []}


def _trials(
    config: SearchConfig,
    base: AuditConfig,
    task: Task,
    opened: Offer,
    record: Record,
    tracker: Tracker,
    screen: Screen,
) -> dict[str, Any]:
    space, price = opened(task)
    begun = time.monotonic()
    course = Course(config, task, space, price, record, lambda: time.monotonic() - begun)
    with screen("Trials") as progress:
        if course.over():
            progress(1, 1, "(kept)")
        else:
            progress(0, 1, "looking at the space")
            course.check()
            connect(worker_settings(config, base.workers))
            presets = [price(candidate).memory_bytes for _, candidate in space.presets()] if config.presets else []
            room = room_for(config, resources(), max(presets, default=0))
            tracker.event("room", width=room.width, words=room.words)
            note_start(tracker)
            begun = time.monotonic()  # the time is that of the trials
            from xinv.search.tune import search  # Ray Tune: not before it is needed

            search(course, room.width, config.folder / "log.txt", tracker, progress)
            progress(1, 1, f"{len(record.past.trials)} trials, {len(record.past.refused)} candidates refused")
    path = write_best(config, record.past)
    if path is None:
        reasons = [trial.reason for trial in record.past.trials.values() if trial.reason]
        raise WorkError(f"No trial came to a result. {reasons[-1] if reasons else ''}")
    found = status(config, record.past)
    tracker.summary({"best": found["best"]["mse"], "trials": len(record.past.trials)})
    with screen("Report") as progress:
        progress(1, 1, str(write_report(config, record.past, config.folder)))
    return {**found, "best_file": str(path)}
