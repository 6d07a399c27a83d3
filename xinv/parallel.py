"""Ray, as the rest of the project needs it: connect within a time limit, and map a function over tasks on actors."""

import functools
import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

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
        # The Jobs API of a cluster without a token runs anybody's code; one that lives in the environment alone leaves
        # nothing in the home directory.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        cores = os.cpu_count() or 1
        options |= {"num_cpus": max(cores, settings.count * settings.cpus), "include_dashboard": True}
        options |= {"object_store_memory": 256 << 20}
    else:
        options |= {"address": settings.address}
    import ray  # reads RAY_AUTH_MODE and the token as it is imported

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


def _attempt(action: Callable[[], Any]) -> str | None:
    """Run `action`; None when it ended well, else the reason."""
    try:
        action()
    except (ConnectionError, OSError, RuntimeError, ValueError, TimeoutError) as error:
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
    actor = ray.remote(num_cpus=0, num_gpus=settings.gpus, scheduling_strategy="SPREAD")(_Runner)
    make = functools.partial(actor.remote, factory, None if log is None else str(log.resolve()), settings.cpus)
    actors = [make() for _ in range(width)]
    idle = list(range(width))
    waiting = list(reversed(range(len(tasks))))
    running: dict[Any, tuple[int, int]] = {}
    failures = [0] * len(tasks)
    results: dict[int, Result] = {}
    try:
        progress(0, len(tasks), "")
        while len(results) < len(tasks):
            while waiting and idle:
                place, number = idle.pop(), waiting.pop()
                running[actors[place].run.remote(tasks[number])] = (place, number)
            ready, _ = ray.wait(list(running), timeout=1.0)
            for reference in ready:
                place, number = running.pop(reference)
                idle.append(place)
                try:
                    results[number] = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise _own(error) from error
                except ray.exceptions.RayActorError as error:
                    failures[number] += 1
                    if failures[number] > settings.max_failures:
                        raise WorkError(
                            f"Task {tasks[number]} lost its process {failures[number]} times: {error}"
                        ) from error
                    actors[place] = make()
                    waiting.append(number)
                progress(len(results), len(tasks), "")
    finally:
        for one in actors:
            ray.kill(one)
    return [results[number] for number in range(len(tasks))]


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
