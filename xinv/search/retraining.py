"""Trainings side by side, as the trials of the search ran: one process each, with the threads and the GPU share of a
trial. Each is a stage of an audit's, made in a worker, and so is shared with audits and never made twice.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from xinv.attacks import InverterTraining, train_inverter
from xinv.base import trial_workers
from xinv.config import AuditConfig
from xinv.errors import InputError, WorkError
from xinv.parallel import Board, connect, resources
from xinv.pool import Pool
from xinv.progress import Progress
from xinv.search.preflight import room_for
from xinv.search.settings import SearchConfig
from xinv.search.task import Ground, Task
from xinv.track import Recorder
from xinv.train.inline import InProcess
from xinv.trials.team import enter, shares
from xinv.trials.walk import Relay

Call: TypeAlias = tuple[str, InverterTraining]
"""(key of the training, the training)"""


@dataclass
class Retraining:
    """Trainings to be made.

    Args:
        config, base: the search, and the audit whose stages the trainings are.
        task: the images and releases that they read.
        asked: the trainings by key, which is how messages call them.
        flops: of each; the bar moves by them.
        memory_bytes: what the largest takes beside its process, as in `preflight.room_for`.
        tracker: gets a line when a stage begins and ends, and the metrics.
    """

    config: SearchConfig
    base: AuditConfig
    task: Task
    asked: Mapping[str, InverterTraining]
    flops: Mapping[str, int]
    memory_bytes: int
    tracker: Recorder
    failures: dict[str, Exception] = field(default_factory=dict)

    def left(self, ground: Ground) -> list[str]:
        """Keys of the trainings that are not finished, the longest first: none should be the last one running."""
        images, releases = self.task.images, self.task.releases
        keys = [
            key
            for key, one in self.asked.items()
            if ground.store.finished("inverter", one.identity(self.base, images, releases)) is None
        ]
        return sorted(keys, key=lambda key: -self.flops[key])

    def run(self, keys: list[str], progress: Progress) -> None:
        """Carry the trainings called `keys` to their end. Killed anywhere, each goes on from its last checkpoint.

        Raises:
            InputError, WorkError: after all others are done, those that failed; or no room for a single one.
            OSError: the disk; at once.
        """
        config, settings = self.config, trial_workers(self.config.place, self.base.workers)
        progress(0, 1, "waiting for the training processes")
        connect(settings)
        width = min(len(keys), room_for(config, resources(settings), self.memory_bytes).width)
        board = Board()
        factory = functools.partial(
            _trainer, self.base, self.task, config.place.cpus, Path.cwd(), config.folder.resolve(), board.tell
        )
        log = config.folder / "log.txt"
        pool: Pool[Call, None] = Pool(factory, width, settings, cpus=config.place.cpus, gpus=config.place.gpus, log=log)
        try:
            self._drive(keys, pool, board, progress)
        finally:
            pool.close()
            board.close()
        if self.failures:
            lines = [
                f"{len(self.failures)} of {len(keys)} trainings of the final comparison failed; the others are kept."
            ]
            lines += [f"{key}: {error}" for key, error in self.failures.items()]
            inputs = any(isinstance(error, InputError) for error in self.failures.values())
            raise (InputError if inputs else WorkError)("\n".join(lines))

    def _drive(self, keys: list[str], pool: Pool[Call, None], board: Board, progress: Progress) -> None:
        waiting, running = list(reversed(keys)), dict[str, float]()
        total = sum(self.flops[key] for key in keys)
        done, over = 0.0, 0
        while waiting or running:
            while waiting and pool.idle:
                key = waiting.pop()
                running[key] = 0.0
                pool.submit(key, (key, self.asked[key]))
            for ended, outcome in pool.wait(0.25):
                key = str(ended)
                if isinstance(outcome, OSError):
                    raise outcome
                if isinstance(outcome, Exception):
                    self.failures[key] = outcome
                    self.tracker.event("failed", stage=key, reason=str(outcome))
                del running[key]
                done, over = done + self.flops[key], over + 1
            for kind, key, content in board.read():
                if kind == "event":
                    event = dict(content)
                    self.tracker.event(event.pop("kind"), **event)
                elif key in running:
                    running[key] = content
            under_way = sum(share * self.flops[key] for key, share in running.items())
            progress(done + under_way, total, f"{over}/{len(keys)} trainings  {'; '.join(running)}"[:100])


def _trainer(
    base: AuditConfig, task: Task, threads: int, folder: Path, runs: Path, tell: Callable[[Any], None]
) -> Callable[[Call], None]:
    """Built in a worker process: makes the stage of one training."""
    enter(folder, runs)
    group = InProcess(threads)

    def run(call: Call) -> None:
        key, asked = call

        def event(content: dict[str, Any]) -> None:
            tell(("event", key, content))

        ground = Ground(base, lambda title: _told(key, tell), Relay(event), group)
        train_inverter(ground, task.images, task.releases, asked)
        group.close()

    return run


@contextlib.contextmanager
def _told(key: str, tell: Callable[[Any], None]) -> Iterator[Progress]:
    """A screen that is elsewhere."""
    yield shares(lambda share: tell(("progress", key, share)))
