"""Jobs on a Ray cluster: what is sent, and a real one of a single node that takes them."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from audits import SMALL, scores_of
from golden import check_golden
from jobs import DEMO, ROOT, request_for
from ray_head import Head, ray_head

from launch import ray_client
from launch.job import Job, Request, State, write_result
from launch.ray_client import RaySite
from launch.ray_jobs import RayJobs, status_of
from xinv import parallel
from xinv.errors import InputError

ON = "http://head:8265"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as found:
        yield found


@pytest.fixture
def cluster(head: Head, monkeypatch: pytest.MonkeyPatch) -> RayJobs:
    parallel.secure()  # the token of this very process, which is not that of the cluster
    monkeypatch.setattr(ray_client, "MADE", {os.environ.get("RAY_AUTH_TOKEN")})
    return RayJobs(RaySite(token=head.token), head.address)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with code of their own, where they work."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.py").write_text("def network():\n    ...\n")
    (folder / ".env").write_text("KEY=1\n")
    monkeypatch.chdir(folder)
    return folder


class User:
    """Somebody at a shell on this machine, in a folder."""

    def __init__(self, head: Head, folder: Path, site: Path) -> None:
        self.head, self.folder, self.site = head, folder, site

    def xinv(self, *arguments: str, limit: float = 280, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        own = {"XINV_SITE": str(self.site), "XINV_JOBS": str(self.site.with_name("jobs")), "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-m", "xinv.cli", *arguments],
            capture_output=True, text=True, timeout=limit, cwd=self.folder,
            env={**kept, **own, "COLUMNS": "200", **variables},
        )  # fmt: skip

    def submit(self, *overrides: str, **variables: str) -> dict[str, Any]:
        settings = [f"runs={self.folder / 'runs'}", *SMALL, *overrides]
        done = self.xinv("submit", str(DEMO), *settings, "--on", self.head.address, "--json", **variables)
        assert done.returncode == 0, done.stderr
        job: dict[str, Any] = json.loads(done.stdout)
        return job

    def status(self, job: dict[str, Any], *options: str) -> tuple[int, dict[str, Any]]:
        done = self.xinv("jobs", "status", job["handle"], "--json", *options)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)


@pytest.fixture
def user(head: Head, project: Path, tmp_path: Path) -> User:
    site = tmp_path / "site.yaml"
    site.write_text(json.dumps({"ray": {"token": str(head.token)}}))
    return User(head, project, site)


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


# ------------------------------------------------------------------------------------------------------- what is sent


def test_what_would_be_sent_to_the_letter(project: Path) -> None:
    request = request_for(project / "runs", "workers.count=2", on=ON)
    request = request.model_copy(
        update={
            "handle": "demo-123456", "folder": project / "runs" / "demo" / "jobs" / "demo-123456",
            "environment": {"NCCL_SOCKET_IFNAME": "ib0"}, "versions": {"ray": "2.60.0"}, "python": "/usr/bin/python3",
            "work": request.work.model_copy(update={"identity": "0" * 12, "config": Path("configs/demo.yaml")}),
        }
    )  # fmt: skip
    text = RayJobs(RaySite(), ON).render(request).replace(str(project), "/home/user/project")
    check_golden("ray_job.txt", re.sub(r"(request: )[0-9a-f]{12}", r"\g<1>123456789abc", text))


def test_a_token_is_in_nothing_that_is_printed_or_recorded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hidden-0815")
    request = request_for(project / "runs", on=ON)
    assert "hidden-0815" not in RayJobs(RaySite(), ON).render(request) + request.model_dump_json()


def test_a_configuration_too_long_for_an_environment_variable_is_refused(project: Path) -> None:
    request = request_for(project / "runs", on=ON).model_copy(update={"environment": {"LONG": "x" * 120_000}})
    with pytest.raises(InputError, match="can carry 120,000"):
        RayJobs(RaySite(), ON).render(request)


def test_options_without_a_meaning_there_are_refused(project: Path) -> None:
    for option, asked in (("--time", {"time": "90m"}), ("--partition", {"partition": "gpu"})):
        with pytest.raises(InputError, match=f"{option} means nothing on a Ray cluster"):
            RayJobs(RaySite(), ON).check(request_for(project / "runs", on=ON, **asked))


@pytest.mark.parametrize(
    ("status", "code", "state", "shown"),
    [
        ("PENDING", None, State.pending, None), ("RUNNING", None, State.running, None),
        ("SUCCEEDED", 0, State.succeeded, 0), ("FAILED", 2, State.failed, 2), ("FAILED", -9, State.failed, 137),
        ("FAILED", 130, State.cancelled, 130), ("STOPPED", None, State.cancelled, None),
        ("FAILED", None, State.failed, None),
    ],
)  # fmt: skip
def test_states_of_ray_are_states_of_jobs(status: str, code: int | None, state: State, shown: int | None) -> None:
    found = status_of(SimpleNamespace(status=status, driver_exit_code=code, message="why\nerror: no data\nerror: x\n"))
    assert (found.state, found.exit_code) == (state, shown)
    assert (found.detail == "no data") == (state is State.failed)


def job_of(request: Request, on: str) -> Job:
    return Job(request=request, on=on, created=time.time(), ident=request.handle)


class Wire:
    """A client of Ray's whose connections break, or fall silent; the job is over."""

    def __init__(self, *pieces: str, silent: bool = False) -> None:
        self.pieces, self.silent, self.opened = pieces, silent, 0

    async def tail_job_logs(self, handle: str) -> AsyncIterator[str]:
        self.opened += 1
        for piece in self.pieces[: self.opened]:
            yield piece
        if self.silent:
            await asyncio.sleep(3600)
        raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_logs(self, handle: str) -> str:
        return "".join(self.pieces)

    def get_job_status(self, handle: str) -> str:
        return "SUCCEEDED"

    def get_job_info(self, handle: str) -> Any:
        over = self.silent or self.opened > 1
        return SimpleNamespace(status="SUCCEEDED" if over else "RUNNING", driver_exit_code=None, message="")


@pytest.mark.parametrize("silent", [False, True])
def test_a_log_that_breaks_off_is_neither_lost_nor_told_twice(
    project: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    monkeypatch.setattr("launch.ray_jobs.SILENCE", 0.2)
    backend = RayJobs(RaySite(), ON)
    wire = Wire("one\n", "two\n", "three\n", silent=silent)
    backend.__dict__["_client"] = wire
    pieces = list(backend.logs(job_of(request_for(project / "runs", on=ON), ON), follow=True))
    assert "".join(pieces) == "one\ntwo\nthree\n"
    assert wire.opened == (1 if silent else 2)


# -------------------------------------------------------------------------------------------------- on a real cluster


def test_what_the_job_asks_for_is_compared_with_what_the_cluster_has(cluster: RayJobs, project: Path) -> None:
    lines = "\n".join(cluster.check(request_for(project / "runs", "workers.count=2", on=cluster.on)))
    assert "room for 2 training processes, and the job is 2 processes of 1 CPU each" in lines
    assert "not packed, it looks like a secret: .env" in lines and "xinv itself is not packed" in lines
    assert "no token" not in lines
    with pytest.raises(InputError, match=r"trains in 4 processes of 1 CPU each\. .*: room for 2\. Ask for less"):
        cluster.check(request_for(project / "runs", "workers.count=4", on=cluster.on))
    with pytest.raises(InputError, match=r"of 1 CPU and 1 GPU.*room for 0"):
        cluster.check(request_for(project / "runs", on=cluster.on, gpus_per_node=1))


def test_another_version_of_ray_is_refused(cluster: RayJobs, project: Path) -> None:
    request = request_for(project / "runs", on=cluster.on)
    other = request.model_copy(update={"versions": {**request.versions, "ray": "2.9.0"}})
    with pytest.raises(InputError, match=r"runs Ray 2\.60\.\d+, and here it is 2\.9\.0"):
        cluster.check(other)


def test_a_wrong_token_and_none_are_told_apart(
    cluster: RayJobs, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for(project / "runs", on=cluster.on)
    (project / "wrong").write_text("wrong-0815")
    with pytest.raises(InputError, match=r"refuses the token \(Forbidden: Invalid") as wrong:
        RayJobs(RaySite(token=project / "wrong"), cluster.on).check(request)
    assert "0815" not in str(wrong.value)
    monkeypatch.setenv("HOME", str(project))
    with pytest.raises(InputError, match="wants a token, and there is none here"):
        RayJobs(RaySite(), cluster.on).check(request)


def test_a_job_fails_with_its_own_exit_code_and_is_sent_once(user: User, cluster: RayJobs, tmp_path: Path) -> None:
    """Its data goes away after it was sent: exit code 2, which the far end finds."""
    data = tmp_path / "faces"
    (data / "a").mkdir(parents=True)
    source = (f"data.source={{kind: folders, folder: {data}, layout: label/*}}", "name=lost-data")
    # A cluster that a variable of Ray's names is not the one that was asked for.
    job = user.submit(*source, RAY_ADDRESS="http://127.0.0.1:9")
    shutil.rmtree(data)
    said = user.xinv("jobs", "logs", "-f", job["handle"])
    assert said.returncode == 0, said.stderr
    assert re.search(f"^error: .*{data}", said.stdout, re.MULTILINE)
    assert user.xinv("jobs", "logs", job["handle"]).stdout == said.stdout
    code, status = user.status(job, "--wait")
    assert (code, status["state"], status["exit_code"]) == (2, "failed", 2)
    assert str(data) in status["detail"]

    record = Job.model_validate_json((user.site.with_name("jobs") / f"{job['handle']}.json").read_text())
    assert cluster.find(record) == job["handle"]
    assert cluster.send(record.request) == job["handle"], "the same request again is the same job"
    with pytest.raises(InputError, match=f"another job called {job['handle']}, which is failed"):
        cluster.send(record.request.model_copy(update={"environment": {"OTHER": "1"}}))
    assert cluster.find(record.model_copy(update={"request": record.request.model_copy(update={"cwd": data})})) is None


def test_a_job_that_the_cluster_does_not_know(cluster: RayJobs, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_for(project / "runs", on=cluster.on)
    job = job_of(request, cluster.on)
    assert cluster.find(job) is None
    lost = cluster.status(job)
    assert lost.state is State.lost and "does not know it" in lost.detail
    with pytest.raises(InputError, match=r"does not know .* any more"):
        next(cluster.logs(job, follow=False))
    request.folder.mkdir(parents=True)
    write_result(request.folder, 0)
    assert cluster.status(job).state is State.succeeded, "its result is a witness"
    # And where nobody answers.
    monkeypatch.setattr("launch.ray_jobs.PAUSE", 0.01)
    assert RayJobs(RaySite(), "http://127.0.0.1:9").status(job).state is State.succeeded


def test_a_cancelled_job_ends_as_cancelled_and_gives_its_cpus_back(user: User) -> None:
    job = user.submit("name=cancelled", "target.training.epochs=500")
    events = Path(job["run"]) / "events.jsonl"
    until(lambda: events.exists() and "Target" in events.read_text())
    assert user.status(job)[1]["state"] == "running"
    ended = user.xinv("jobs", "cancel", job["handle"])
    assert ended.returncode == 0 and ": cancelled, exit code 130" in ended.stdout, ended
    assert user.status(job, "--wait")[0] == 130
    assert json.loads((Path(job["folder"]) / "result.json").read_text())["cancelled"] is True
    until(lambda: user.head.used() == 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_audit_runs_to_its_end_on_the_code_that_was_sent(user: User) -> None:
    """The user works in a checkout, and edits it while the job runs."""
    for part in ("xinv", "launch", "cluster", "configs"):
        shutil.copytree(ROOT / part, user.folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    code = user.folder / "xinv" / "__init__.py"
    original = code.read_text()
    code.write_text(original.replace('"0.1.0"', '"0.1.0+sent"'))
    job = user.submit("workers.count=2", PYTHONPATH=str(user.folder))
    code.write_text(original.replace('"0.1.0"', '"0.1.0+edited"'))
    code_of, status = user.status(job, "--wait")
    assert (code_of, status["state"]) == (0, "succeeded"), status
    scores = scores_of(user.folder / "runs")
    assert scores["provenance"]["versions"]["xinv"] == "0.1.0+sent"
    assert "Report: " in user.xinv("jobs", "logs", job["handle"]).stdout


@pytest.mark.slow
def test_the_address_of_rays_own_client_leads_to_the_dashboard(head: Head, user: User) -> None:
    for _ in range(4):  # on a busy machine Ray's client server may hang as it forks
        plan = user.xinv("plan", str(DEMO), f"runs={user.folder / 'runs'}", "--on", head.client)
        if plan.returncode == 0:
            break
        assert "Name the dashboard itself: --on http://127.0.0.1:8265." in plan.stderr
    assert plan.returncode == 0, plan.stderr
    assert "room for 2 training processes" in plan.stdout
