"""Ray, as the rest of the project needs it: connect within a time limit, and give tasks to actors."""

import functools
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from xinv.errors import InputError, WorkError
from xinv.progress import Progress, silent

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerSettings(BaseModel):
    """Where the work runs. Nothing here changes a result beyond rounding, so it is no part of a stage's identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = Field(
        None, description="a running Ray cluster, host:port or auto; null: one on this machine, for this audit"
    )
    count: int = Field(1, ge=1, description="training processes (ranks)")
    cpus: int = Field(1, ge=1, description="CPU cores, and so computing threads, of each")
    gpus: int = Field(0, ge=0, le=1, description="GPUs of each training process (0 or 1)")
    max_failures: int = Field(
        2, ge=0, description="how often a training group or a task that lost its machine is started again"
    )
    start_limit: int = Field(
        180, ge=1, description="seconds to wait for the cluster, and for the training processes to start"
    )


def connect(settings: WorkerSettings) -> None:
    """Join the cluster of `settings.address`, or start one here. Does nothing where this process is connected already.

    Raises:
        InputError: the cluster does not answer within `start_limit`, or is too small for `count` training processes.
        WorkError: a local cluster could not be started.
    """
    if is_connected():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers keep the directory of the driver: relative paths of a config mean the same everywhere.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if settings.address is None:
        secure()
        cores = os.cpu_count() or 1
        options |= {"num_cpus": max(cores, settings.count * settings.cpus), "include_dashboard": True}
        options |= {"object_store_memory": 256 << 20}
    else:
        options |= {"address": settings.address}
    import ray

    start = functools.partial(ray.init, **options)
    if settings.address is None:
        # In this very thread: Linux ends Ray's daemons with the thread that started them.
        failure = _attempt(start)
    else:
        failure = _within(start, settings.start_limit)
    if failure is None:
        _check_size(settings)
        return
    if settings.address is not None:
        raise InputError(
            f"No Ray cluster answers at {settings.address} ({failure}). Check the address and RAY_AUTH_TOKEN, "
            "or set workers.address to null to run on this machine."
        )
    raise WorkError(f"Ray did not start on this machine ({failure}). `xinv doctor` looks for the reason.")


def secure() -> None:
    """Give the local cluster that will be started a token, in the environment; before the first import of Ray, which
    reads it then.

    The Jobs API of a cluster without a token runs anybody's code; one that lives in the environment alone leaves
    nothing in the home directory.

    Raises:
        InputError: Ray was imported before there was a token.
    """
    if "RAY_AUTH_MODE" not in os.environ and "ray" in sys.modules:
        raise InputError(
            "Ray was imported before xinv could give its cluster a token, which Ray reads as it is imported. Import "
            "ray later, or set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN before."
        )
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _attempt(action: Callable[[], Any]) -> str | None:
    """Run `action`; None when it ended well, else the reason."""
    try:
        action()
    except Exception as error:  # Ray raises just this where its dashboard does not start in time
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _within(action: Callable[[], Any], seconds: float) -> str | None:
    """As `_attempt`, giving up after `seconds`: `ray.init` itself may wait for ever on a dead address."""
    outcome: list[str | None] = []
    thread = threading.Thread(target=lambda: outcome.append(_attempt(action)), daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else f"no answer within {seconds:.0f} s"


def _check_size(settings: WorkerSettings) -> None:
    import ray

    have = ray.cluster_resources()
    need = {"CPU": settings.count * settings.cpus, "GPU": settings.count * settings.gpus}
    for kind, amount in need.items():
        if have.get(kind, 0) < amount:
            each = settings.cpus if kind == "CPU" else settings.gpus
            disconnect()
            raise InputError(
                f"The cluster has {have.get(kind, 0):g} {kind}; {settings.count} training processes of {each} {kind} "
                f"each need {amount}. Lower workers.count or workers.{kind.lower()}s, or use a larger cluster."
            )


def is_connected() -> bool:
    """Whether this process is part of a cluster, without importing Ray to find out."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def disconnect() -> None:
    """Leave the cluster; a local one that `connect` started ends."""
    if is_connected():
        sys.modules["ray"].shutdown()


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


def redirect(log: Path) -> None:
    """Append what this worker process and its libraries print to the run's log."""
    with log.open("ab") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)


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


def resources(settings: WorkerSettings) -> dict[str, float]:
    """What the cluster has, as Ray names it: CPU, GPU, memory (bytes). Needs a connection (`connect`).

    A cluster that `connect` started here may count more CPUs than there are, so that an audit's ranks share them; what
    is asked here is how many there are.
    """
    import ray

    have = dict(ray.cluster_resources())
    if settings.address is None:
        have["CPU"] = min(have.get("CPU", 0), os.cpu_count() or 1)
    return have


def check_alive() -> None:
    """WorkError where no machine of the cluster lives any more. Needs a connection (`connect`); takes milliseconds.

    Ray does not say so by itself: whatever waits for a machine waits for ever.
    """
    import ray

    if not any(node["Alive"] for node in ray.nodes()):
        raise WorkError(
            "Ray's daemon (raylet) was killed, and no machine of the cluster is left. The same command continues; look "
            "for what ends processes here (too little memory, a limit of the scheduler)."
        )


def room(cpus: int, gpus: float) -> int:
    """How many actors with so many CPUs and such a share of a GPU the cluster holds. Needs a connection (`connect`)."""
    import ray

    have = ray.cluster_resources()
    places = int(have.get("CPU", 0) // cpus)
    return min(places, int(have.get("GPU", 0)) * int(1 / gpus)) if gpus else places


class Board:
    """Where tasks leave messages for the process that gave them out. Needs a connection (`connect`)."""

    def __init__(self) -> None:
        import ray

        self._actor = ray.remote(num_cpus=0)(_Messages).remote()

    @property
    def tell(self) -> Callable[[Any], None]:
        """A picklable function that leaves one small picklable message, and returns when it is there."""
        return functools.partial(_tell, self._actor)

    def read(self) -> list[Any]:
        """The messages since the last call, in the order of their arrival."""
        import ray

        messages: list[Any] = ray.get(self._actor.take.remote())
        return messages

    def close(self) -> None:
        """Remove it."""
        import ray

        ray.kill(self._actor)


class _Messages:
    """The actor behind a `Board`."""

    def __init__(self) -> None:
        self._messages: list[Any] = []

    def put(self, message: Any) -> None:
        self._messages.append(message)

    def take(self) -> list[Any]:
        taken, self._messages = self._messages, []
        return taken


def _tell(actor: Any, message: Any) -> None:
    import ray

    ray.get(actor.put.remote(message))


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
