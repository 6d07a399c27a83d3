"""Ray, as the rest of the project needs it: connect within a time limit, ask what there is, leave messages."""

import functools
import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from xinv.errors import InputError, WorkError

IN_WORKERS = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Environment of Ray's processes: workers keep the directory of the driver, so that relative paths of a configuration
mean the same everywhere, and the devices that they are given."""

MADE: set[str] = set()
"""Tokens that this process has made, for clusters of its own."""


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
    for name, value in IN_WORKERS.items():
        os.environ.setdefault(name, value)
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
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ["RAY_AUTH_MODE"] == "token" and not named:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        MADE.add(os.environ["RAY_AUTH_TOKEN"])


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


def redirect(log: Path) -> None:
    """Append what this worker process and its libraries print to the run's log."""
    with log.open("ab") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)


def here() -> Any:
    """Where Ray is to put an actor without which this process cannot go on: on its own machine. Ray would choose any,
    and losing that one would lose the work of all."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


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

        self._actor = ray.remote(num_cpus=0, scheduling_strategy=here())(_Messages).remote()

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
