"""Tasks given to Ray actors that keep their processes."""

import functools
import os
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from xinv.errors import InputError, WorkError
from xinv.parallel import WorkerSettings, connect, redirect
from xinv.progress import Progress, silent

Task = TypeVar("Task")
Result = TypeVar("Result")


class _Runner:
    """The actor: builds the function once, then applies it to task after task."""

    def __init__(self, factory: Callable[[], Callable[[Any], Any]], log: str | None, threads: int) -> None:
        if log is not None:
            redirect(Path(log))
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._factory = factory
        self._run: Callable[[Any], Any] | None = None

    def run(self, task: Any) -> Any:
        if self._run is None:  # not in the constructor, whose errors Ray wraps beyond recognition
            self._run = self._factory()
        return self._run(task)


def map_tasks(
    factory: Callable[[], Callable[[Task], Result]],
    tasks: Sequence[Task],
    *,
    settings: WorkerSettings,
    log: Path | None = None,
    progress: Progress = silent,
) -> list[Result]:
    """Apply the function that `factory` builds to every task, on one Ray actor per CPU share of the cluster.

    Args:
        factory: a picklable callable; called once in each actor, its result once a task. With GPUs in `settings` each
            actor has one.
        tasks: small picklable values (paths and numbers, not data).
        settings: cluster, threads of an actor, and how often a task whose actor died is tried again.
        log: file that gets what the actors print.
        progress: called with (tasks done, tasks, "").

    Returns:
        The results in the order of the tasks.

    Raises:
        InputError, WorkError: raised by the function, as they are. A task is not tried again after those: they are no
            accidents. WorkError also when a task's actor died more than `max_failures` times.
    """
    connect(settings)
    import ray

    cores = ray.cluster_resources().get("CPU", 1)
    width = max(1, min(len(tasks), int(cores // settings.cpus)))
    # No CPU is reserved: the training group holds its own between trainings, idle, and stages never overlap.
    pool: Pool[Task, Result] = Pool(factory, width, settings, gpus=settings.gpus, log=log)
    waiting = list(reversed(range(len(tasks))))
    results: dict[Hashable, Result] = {}
    try:
        progress(0, len(tasks), "")
        while len(results) < len(tasks):
            while waiting and pool.idle:
                number = waiting.pop()
                pool.submit(number, tasks[number])
            for key, outcome in pool.wait(1.0):
                if isinstance(outcome, Exception):
                    raise outcome
                results[key] = outcome
                progress(len(results), len(tasks), "")
    finally:
        pool.close()
    return [results[number] for number in range(len(tasks))]


class Pool(Generic[Task, Result]):
    """Actors that keep their processes for task after task; who has which task is the caller's choice.

    Args:
        factory: a picklable callable; called once in each actor, its result once a task.
        width: actors.
        settings: threads of an actor, how often a task whose actor died is tried again, and how long to wait for the
            first actor.
        cpus, gpus: what Ray sets aside for each actor (cpus 0: nothing; a share of a GPU where actors may have one
            together).
        log: file that gets what the actors print.
    """

    def __init__(
        self,
        factory: Callable[[], Callable[[Task], Result]],
        width: int,
        settings: WorkerSettings,
        *,
        cpus: float = 0,
        gpus: float = 0,
        log: Path | None = None,
    ) -> None:
        import ray

        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD")(_Runner)
        self._make = functools.partial(
            actor.remote, factory, None if log is None else str(log.resolve()), settings.cpus
        )
        self._settings = settings
        self._actors: dict[int, Any] = {}
        self._starting: dict[Any, int] = {}
        self._running: dict[Any, tuple[int, Hashable, Task]] = {}
        self._failures: dict[Hashable, int] = {}
        self._again: list[tuple[Hashable, Task]] = []
        self._ready: list[int] = []
        self._begun = time.monotonic()
        self._started = False
        for place in range(width):
            self._start(place)

    def _start(self, place: int) -> None:
        self._actors[place] = self._make()
        self._starting[self._actors[place].__ray_ready__.remote()] = place

    @property
    def idle(self) -> int:
        """Actors that could take a task now. One that Ray has no room for yet is not among them."""
        return len(self._ready)

    def submit(self, key: Hashable, task: Task) -> None:
        """Give `task`, which the caller calls `key`, to an idle actor."""
        place = self._ready.pop()
        self._running[self._actors[place].run.remote(task)] = (place, key, task)

    def wait(self, seconds: float) -> list[tuple[Hashable, Result | Exception]]:
        """What has ended within `seconds`: (key, result), or (key, InputError, OSError or WorkError) as raised.

        Raises:
            WorkError: no actor at all has started within `settings.start_limit`.
        """
        import ray

        references = [*self._starting, *self._running]
        ended, _ = ray.wait(references, timeout=seconds) if references else ([], None)
        found: list[tuple[Hashable, Result | Exception]] = []
        for reference in ended:
            if reference in self._starting:
                self._begin(self._starting.pop(reference), reference)
                continue
            place, key, task = self._running.pop(reference)
            try:
                found.append((key, ray.get(reference)))
                self._ready.append(place)
            except ray.exceptions.RayTaskError as error:
                found.append((key, _own(error)))
                self._ready.append(place)
            except ray.exceptions.RayActorError as error:
                self._start(place)
                self._failures[key] = self._failures.get(key, 0) + 1
                if self._failures[key] > self._settings.max_failures:
                    lost = WorkError(f"Task {key} lost its process {self._failures[key]} times: {error}")
                    found.append((key, lost))
                else:
                    self._again.append((key, task))
        while self._again and self._ready:
            self.submit(*self._again.pop())
        if not self._started and time.monotonic() - self._begun > self._settings.start_limit:
            raise WorkError(
                f"None of {len(self._actors)} worker processes started within {self._settings.start_limit} s. "
                "Is the cluster busy? Ask for fewer CPUs or GPUs, or raise start_limit."
            )
        return found

    def _begin(self, place: int, reference: Any) -> None:
        import ray

        try:
            ray.get(reference)
        except ray.exceptions.RayActorError:
            self._start(place)  # its machine went away; `wait` gives up where none ever starts
            return
        self._started = True
        self._ready.append(place)

    def close(self) -> None:
        """End the actors, whatever they are doing."""
        import ray

        for actor in self._actors.values():
            ray.kill(actor)
        self._actors, self._ready = {}, []


def _own(error: Any) -> Exception:
    """The project's own exception inside Ray's wrapper; a full disk stays an OSError; anything else is a WorkError."""
    cause = error.cause
    if isinstance(cause, InputError):
        return InputError(str(cause.args[0]))
    if isinstance(cause, OSError) and cause.errno is not None:
        return OSError(cause.errno, cause.strerror, cause.filename)
    if isinstance(cause, WorkError):
        return WorkError(str(cause.args[0]))
    return WorkError(f"{type(cause).__name__} in a worker: {cause}. The log has the whole story.")
