"""Mapping tasks over Ray actors: order, errors as they were raised, retries of lost processes."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from audits import environment

from xinv import parallel, pool
from xinv.errors import InputError, WorkError

SETTINGS = parallel.WorkerSettings(max_failures=1)


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    parallel.connect(SETTINGS)
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import the tests
    yield
    parallel.disconnect()


def work() -> Callable[[tuple[str, str]], str]:
    """Built in the actor: a function that does what its task says."""

    def run(task: tuple[str, str]) -> str:
        kind, text = task
        if kind == "input":
            raise InputError(text)
        if kind == "full":
            raise OSError(errno.ENOSPC, "No space left on device", text)
        if kind == "bug":
            raise ZeroDivisionError(text)
        if kind == "die once":
            flag = Path(text)
            if not flag.exists():
                flag.touch()
                os._exit(1)
        if kind == "die":
            os._exit(1)
        return text.upper()

    return run


def test_results_come_in_the_order_of_the_tasks() -> None:
    seen: list[tuple[float, float]] = []
    tasks = [("say", f"word {number}") for number in range(20)]
    results = pool.map_tasks(
        work, tasks, settings=SETTINGS, progress=lambda done, total, note: seen.append((done, total))
    )
    assert results == [f"WORD {number}" for number in range(20)]
    assert seen[0] == (0, 20) and seen[-1] == (20, 20)


def test_a_lost_process_is_replaced_and_its_task_tried_again(tmp_path: Path) -> None:
    tasks = [("say", "a"), ("die once", str(tmp_path / "FLAG")), ("say", "b")]
    assert pool.map_tasks(work, tasks, settings=SETTINGS)[1] == str(tmp_path / "FLAG").upper()


def test_a_task_that_always_loses_its_process_ends_the_work() -> None:
    with pytest.raises(WorkError, match="lost its process 2 times"):
        pool.map_tasks(work, [("die", "x")], settings=SETTINGS)


def test_errors_come_back_as_they_were_raised() -> None:
    with pytest.raises(InputError, match=r"^shard 3 is cut$"):
        pool.map_tasks(work, [("input", "shard 3 is cut")], settings=SETTINGS)
    with pytest.raises(OSError, match="No space left on device") as caught:
        pool.map_tasks(work, [("full", "/data/x.tar")], settings=SETTINGS)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(WorkError, match="ZeroDivisionError"):
        pool.map_tasks(work, [("bug", "x")], settings=SETTINGS)


def test_too_many_workers_are_refused_with_the_arithmetic() -> None:
    import ray

    cpus = ray.cluster_resources()["CPU"]
    asked = parallel.WorkerSettings(count=1000, cpus=3)
    with pytest.raises(InputError, match=rf"has {cpus:g} CPU; 1000 training processes of 3 CPU each need 3000"):
        parallel._check_size(asked)
    parallel.connect(SETTINGS)  # the refusal left the cluster


def test_cpus_that_are_there_are_told_from_those_that_an_audit_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4096.0, "memory": 1.0})
    assert parallel.resources(parallel.WorkerSettings()) == {"CPU": os.cpu_count(), "memory": 1.0}
    assert parallel.resources(parallel.WorkerSettings(address="head:6379")) == {"CPU": 4096.0, "memory": 1.0}


def test_a_dead_address_is_given_up_within_the_limit() -> None:
    parallel.disconnect()
    try:
        with pytest.raises(InputError, match=r"No Ray cluster answers at 127\.0\.0\.1:1 "):
            parallel.connect(parallel.WorkerSettings(address="127.0.0.1:1", start_limit=5))
    finally:
        parallel.connect(SETTINGS)


def test_whatever_keeps_ray_from_starting_is_a_work_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dashboard that is not there in time, as on a machine with too much to do, is a bare Exception."""

    def init(**options: object) -> None:
        raise Exception("Failed to read dashboard.err file")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, is_initialized=lambda: False))
    with pytest.raises(WorkError, match=r"Ray did not start .* dashboard.err"):
        parallel.connect(SETTINGS)


def test_ray_that_was_imported_before_its_token_is_refused_with_the_mend() -> None:
    code = (
        "import os; os.environ.pop('RAY_AUTH_MODE', None); import ray; from xinv.errors import InputError\n"
        "from xinv.parallel import secure\n"
        "try:\n    secure()\nexcept InputError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment())
    assert "Import ray later, or set RAY_AUTH_MODE=token" in done.stdout, done.stderr
