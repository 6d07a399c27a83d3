"""Jobs on this machine: real processes in the background, watched and ended by way of the backend."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from audits import SMALL, environment
from jobs import request_for

from launch.job import Job, Records, State
from launch.local import Local, _process
from launch.submit import refreshed, submit
from xinv.errors import InputError

HERE = Local()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


def sent(tmp_path: Path, *overrides: str) -> tuple[Job, Records]:
    records = Records(tmp_path / "jobs")
    request = request_for(tmp_path / "runs", *SMALL, *overrides, on="local")
    HERE.check(request)
    return submit(request, "local", lambda on: HERE, records), records


def ended(job: Job, records: Records, limit: float = 120) -> Job:
    deadline = time.monotonic() + limit
    while not (job := refreshed(job, lambda on: HERE, records)).status.state.over:
        assert time.monotonic() < deadline, "".join(HERE.logs(job, follow=False))
        time.sleep(0.1)
    return job


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"nodes": 2}, "--nodes is 2"),
        ({"time": "1h"}, "--time means nothing"),
        ({"partition": "gpu"}, "--partition means nothing"),
        ({"cpus_per_node": 4096}, "asks for 4096 CPUs"),
        ({"gpus_per_node": 64}, "asks for 64 GPUs"),
        ({"memory_per_node": 1 << 20}, "GiB of memory, and this machine has"),
    ],
)
def test_more_than_this_machine_has_is_refused(tmp_path: Path, asked: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        HERE.check(request_for(tmp_path / "runs", **asked))


def test_a_job_that_fails_says_why_and_with_which_code(tmp_path: Path) -> None:
    job, records = sent(tmp_path, "workers.address=127.0.0.1:1", "workers.start_limit=3")
    job = ended(job, records)
    assert (job.status.state, job.status.exit_code) == (State.failed, 2)
    assert "No Ray cluster answers at 127.0.0.1:1" in job.status.detail
    assert "No Ray cluster answers" in "".join(HERE.logs(job, follow=True))
    while _process(job) is not None:  # its result is written a moment before its end
        time.sleep(0.05)
    assert HERE.find(job) == "gone"


def test_a_cancelled_job_ends_and_leaves_nothing(tmp_path: Path) -> None:
    job, records = sent(tmp_path)
    while "Images" not in "".join(HERE.logs(job, follow=False)):
        assert _process(job) is not None, "".join(HERE.logs(job, follow=False))
        time.sleep(0.1)
    assert HERE.find(job) == job.ident
    children = psutil.Process(int(str(job.ident).split("@")[0])).children(recursive=True)
    HERE.cancel(job)
    job = ended(job, records)
    assert (job.status.state, job.status.exit_code) == (State.cancelled, 130)
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive


def test_a_job_that_was_killed_is_said_to_be_gone(tmp_path: Path) -> None:
    job, records = sent(tmp_path)
    os.kill(int(str(job.ident).split("@")[0]), signal.SIGKILL)
    job = ended(job, records)
    assert job.status.state is State.failed and "has left no result" in job.status.detail


def test_a_number_that_another_process_has_now_is_not_the_job(tmp_path: Path) -> None:
    request = request_for(tmp_path / "runs")
    job = Job(request=request, on="local", created=0, ident=f"{os.getpid()}@1.00")
    assert _process(job) is None
