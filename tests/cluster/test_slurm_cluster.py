"""Jobs on a real Slurm of two nodes (bed.py): to the end, side by side, failed, cancelled, cut off, and continued.

After each, processes, ports and folders are what they were before: counted by network namespace, not by what the
product calls its own.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bed
import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from audits import DEMO, SMALL  # noqa: E402

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LONG = ("target.training.epochs=300", "name=long")
"""So many that a job can be caught in mid-training, also by a time limit, which Slurm counts in minutes."""

SITE = {"start_limit": 120, "signal_before": 40}


@pytest.fixture(scope="session", autouse=True)
def idle() -> Iterator[dict[str, set[str]]]:
    """Slurm, with nothing running: the traces of the nodes before any job."""
    if reason := bed.unfit():
        pytest.skip(reason)
    kept = bed.is_up()  # by hand, to look at it: then it stays
    if not kept:
        bed.up()
    yield traces()
    if not kept:
        bed.down()


@pytest.fixture(autouse=True)
def nothing_left(idle: dict[str, set[str]]) -> Iterator[None]:
    """What a test leaves on the nodes makes it fail."""
    bed.slurm("scancel", "--user=root")  # of a test that has failed
    bed.wait_idle()
    yield
    deadline = time.monotonic() + 40
    while (after := traces()) != idle and time.monotonic() < deadline:
        time.sleep(0.5)
    assert after == idle


def inhabitants(node: str) -> dict[int, str]:
    """The processes of a node, by number: their names."""
    space, found = Path(f"/run/netns/xinv-{node}").stat().st_ino, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "ns" / "net").stat().st_ino == space:
                found[int(folder.name)] = (folder / "comm").read_text().strip()
    return found


def traces() -> dict[str, set[str]]:
    """The processes, listening ports and temporary folders of both nodes."""
    processes, ports = set(), set()
    for node in bed.NODES:
        processes |= {f"{name} {pid}" for pid, name in inhabitants(node).items()}
        listening = subprocess.run(
            ["ip", "netns", "exec", f"xinv-{node}", "ss", "-Hltn"], capture_output=True, text=True
        )
        ports |= {f"{node} {line.split()[3]}" for line in listening.stdout.splitlines()}
    folders = {str(path) for path in Path("/tmp").glob("xr-*")}
    return {
        "processes": {one for one in processes if not one.startswith("slurmstepd")},
        "ports": ports,
        "folders": folders,
    }


class User:
    """Somebody with a shell on the login node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.site(**SITE)

    def site(self, **settings: Any) -> None:
        (self.folder / "site.yaml").write_text(json.dumps({"slurm": settings}))

    def xinv(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        variables = {"XINV_JOBS": str(self.folder / "jobs"), "XINV_SITE": str(self.folder / "site.yaml")}
        return subprocess.run(
            [sys.executable, "-m", "xinv.cli", *arguments],
            capture_output=True, text=True, timeout=400, cwd=self.folder,
            env={**bed.environment(), **variables, "COLUMNS": "160", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def submit(
        self, *overrides: str, options: tuple[str, ...] = ("--nodes", "2", "--cpus-per-node", "1")
    ) -> dict[str, Any]:
        done = self.xinv(
            "submit",
            str(DEMO),
            f"runs={self.runs}",
            *SMALL,
            *overrides,
            "--on",
            "slurm",
            *options,
            "--time",
            "30m",
            "--json",
        )
        assert done.returncode == 0, done.stderr
        job: dict[str, Any] = json.loads(done.stdout)
        return job

    def status(self, job: dict[str, Any], wait: bool = False) -> tuple[int, dict[str, Any]]:
        done = self.xinv("jobs", "status", job["handle"], "--json", *(["--wait"] if wait else []))
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def log(self, job: dict[str, Any]) -> str:
        path = Path(job["folder"]) / "log.txt"
        return path.read_text() if path.exists() else ""

    def steps(self, job: dict[str, Any]) -> int:
        """Validations of trainings so far."""
        events = Path(job["run"]) / "events.jsonl"
        return events.read_text().count('"metrics"') if events.exists() else 0

    def scores(self, job: dict[str, Any]) -> Any:
        found = json.loads((Path(job["run"]) / "scores.json").read_text())
        return found["rows"], found["leaks"]


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[User, dict[str, Any], int, dict[str, Any]]:
    """A two-node audit to its end: who sent it, the job, its exit code and its status."""
    user = User(tmp_path_factory.mktemp("undisturbed"))
    job = user.submit(*LONG)
    return (user, job, *user.status(job, wait=True))


def until(condition: Callable[[], Any], seconds: float, otherwise: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.3)


def known(job: dict[str, Any], field: str) -> str:
    """A field of what Slurm says of a job."""
    text = bed.slurm("scontrol", "--oneliner", "show", "job", job["ident"]).stdout
    found = re.search(rf"(?:^|\s){field}=(\S+)", text)
    return found[1] if found else ""


def in_training(user: User, job: dict[str, Any]) -> None:
    until(lambda: user.steps(job) > 1, 200, lambda: user.log(job))


def test_two_node_audit_ends_with_scores(undisturbed: tuple[User, dict[str, Any], int, dict[str, Any]]) -> None:
    user, job, code, status = undisturbed
    assert (code, status["state"]) == (0, "succeeded"), user.log(job)
    assert known(job, "JobState") == "COMPLETED"
    assert user.scores(job)[0]
    assert "has its 2 nodes" in user.log(job) and "n2: leaves" in user.log(job)


def test_two_jobs_at_once_on_the_same_nodes_do_not_meet(user: User) -> None:
    jobs = [user.submit("name=one"), user.submit("name=two", "seed=1")]
    heads = [Path(job["folder"]) / "start-0" / "head.json" for job in jobs]
    until(lambda: all(head.exists() for head in heads), 120, lambda: "\n".join(map(user.log, jobs)))
    assert len({json.loads(head.read_text())["address"] for head in heads}) == 2
    assert {known(job, "NodeList") for job in jobs} == {"n[1-2]"}
    for job in jobs:
        code, status = user.status(job, wait=True)
        assert (code, status["state"]) == (0, "succeeded"), user.log(job)


def test_failure_in_the_work_is_the_failure_of_the_job(user: User) -> None:
    job = user.submit("data.split={target: 4000, attack: 4000, victim: 24, gallery: 80}")
    code, status = user.status(job, wait=True)
    assert (code, status["state"], status["exit_code"]) == (2, "failed", 2), user.log(job)
    assert status["detail"] in user.log(job)
    assert (known(job, "JobState"), known(job, "ExitCode")) == ("FAILED", "2:0")


def test_node_that_never_comes_is_named_within_the_limit(user: User) -> None:
    # It starts, and loses its cable before it has joined.
    cut = user.folder / "cut.sh"
    cut.write_text('#!/bin/sh\n[ "$SLURMD_NODENAME" = n2 ] && ip link set eth0 down\nexec "$@"\n')
    cut.chmod(0o755)
    user.site(**{**SITE, "start_limit": 45, "container": str(cut)})
    job = user.submit()
    try:
        code, status = user.status(job, wait=True)
        assert (code, status["state"], status["exit_code"]) == (1, "failed", 1), user.log(job)
        assert "n2 (10.77.0.2) did not join the Ray cluster within 45 s" in status["detail"]
    finally:
        bed.heal()


def test_node_that_slurm_cannot_reach_ends_the_job(user: User) -> None:
    bed.partition("n2")
    try:
        job = user.submit()
        code, status = user.status(job, wait=True)
        assert (code, status["state"]) == (1, "failed"), user.log(job)
        assert "n2" in user.log(job)
    finally:
        bed.heal()


def test_cancelled_in_mid_training_leaves_nothing(user: User) -> None:
    job = user.submit(*LONG)
    in_training(user, job)
    assert user.xinv("jobs", "cancel", job["handle"]).returncode == 0
    code, status = user.status(job, wait=True)
    assert (code, status["state"]) == (130, "cancelled"), user.log(job)
    until(lambda: known(job, "JobState") == "CANCELLED", 60)


def test_ray_that_was_killed_on_a_node_is_started_again_and_the_audit_continues(
    user: User, undisturbed: tuple[User, dict[str, Any], int, dict[str, Any]]
) -> None:
    job = user.submit(*LONG)
    in_training(user, job)
    raylets = [pid for pid, name in inhabitants("n2").items() if name == "raylet"]
    assert len(raylets) == 1
    os.kill(raylets[0], signal.SIGKILL)
    code, status = user.status(job, wait=True)
    assert (code, status["state"]) == (0, "succeeded"), user.log(job)
    assert "n2: Ray ended here, and is started again" in user.log(job)
    first, job_before = undisturbed[0], undisturbed[1]
    assert user.scores(job) == first.scores(job_before)


def test_time_limit_saves_requeues_and_ends_with_the_same_scores(
    user: User, undisturbed: tuple[User, dict[str, Any], int, dict[str, Any]]
) -> None:
    job = user.submit(*LONG)
    in_training(user, job)
    spent = known(job, "RunTime").split(":")
    bed.slurm("scontrol", "update", f"JobId={job['ident']}", f"TimeLimit={int(spent[0]) * 60 + int(spent[1]) + 1}")
    until(lambda: known(job, "Restarts") == "1", 120, lambda: user.log(job))
    assert user.status(job)[1]["state"] in ("pending", "running")
    bed.slurm("scontrol", "update", f"JobId={job['ident']}", "TimeLimit=30")
    code, status = user.status(job, wait=True)
    log = user.log(job)
    assert (code, status["state"]) == (0, "succeeded"), log
    assert "The time limit is near: saving." in log and "put back into the queue" in log and "start 1" in log
    first, job_before = undisturbed[0], undisturbed[1]
    assert user.scores(job) == first.scores(job_before)


def test_bad_requests_are_refused_with_the_arithmetic(user: User) -> None:
    def refusal(*options: str) -> str:
        done = user.xinv("submit", str(DEMO), f"runs={user.runs}", "--on", "slurm", *options)
        assert done.returncode == 2
        return done.stderr

    assert "There is no partition 'nowhere'. There are short, work." in refusal("--partition", "nowhere")
    assert "asks for 8 GPUs on each node; the most that a node of partition work has is 0" in refusal(
        "--gpus-per-node", "8"
    )
    assert "asks for 64 CPUs on each node" in refusal("--cpus-per-node", "64")
    assert "partition work has 2 such" in refusal("--nodes", "3", "--cpus-per-node", "1")
    assert "partition short gives at most 5 min 00 s" in refusal("--partition", "short", "--time", "1h")
    assert not list(user.folder.glob("jobs/*.json"))


def test_no_controller_is_said_in_time(user: User) -> None:
    bed.daemons().stop("slurmctld")
    try:
        begun = time.monotonic()
        done = user.xinv("submit", str(DEMO), f"runs={user.runs}", "--on", "slurm")
        assert done.returncode == 2 and "Slurm" in done.stderr
        assert time.monotonic() - begun < 90
    finally:
        bed.start_controller()
        bed.wait_idle()


def test_environment_says_nothing_of_the_submitting_shell(user: User) -> None:
    os.environ["RAY_ADDRESS"] = "10.0.0.1:1"
    try:
        job = user.submit("name=shell")
        code, _ = user.status(job, wait=True)
        assert code == 0, user.log(job)
    finally:
        del os.environ["RAY_ADDRESS"]
