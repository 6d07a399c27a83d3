"""`xinv submit`, `xinv plan` and `xinv jobs`, as a user meets them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from audits import DEMO
from jobs import Toy

from launch.cli import result_code
from launch.job import Records, State, Status
from launch.places import PLACES
from xinv import cli


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A place called toy; records and site of this test alone."""
    made = Toy()
    monkeypatch.setitem(PLACES, "toy", lambda site: made)
    monkeypatch.setenv("XINV_JOBS", str(tmp_path / "jobs"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.delenv("XINV_SITE", raising=False)
    monkeypatch.setattr("launch.cli.POLL", 0.0)
    monkeypatch.chdir(tmp_path)
    return made


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.run(list(arguments)) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.out + captured.err


def submitted(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said(capsys, "submit", str(DEMO), *more, "--on", "toy", "--json"))
    return found


def test_a_dry_run_sends_and_records_nothing(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "submit", str(DEMO), "name=mine", "--on", "toy", "--dry-run")
    assert out.startswith("mine-") and not toy.sent
    assert not list(tmp_path.iterdir())


def test_a_job_is_sent_listed_and_watched_to_its_end(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    job = submitted(capsys, "name=mine")
    assert toy.sent[0].work.name == "mine" and job["ident"] == "toy-1"
    assert job["handle"] in said(capsys, "jobs") and "pending" in said(capsys, "jobs")
    assert "running" in said(capsys, "jobs", "status", job["handle"][:6])
    assert said(capsys, "jobs", "logs", job["handle"]) == f"log of {job['handle']}"
    toy.states[job["handle"]] = Status(state=State.failed, exit_code=3, detail="the disk is full")
    out = said(capsys, "jobs", "status", job["handle"], "--wait", code=3)
    assert "failed, exit code 3; the disk is full" in out
    (listed,) = json.loads(said(capsys, "jobs", "--json"))
    assert (listed["state"], listed["exit_code"]) == ("failed", 3)


def test_the_list_asks_nobody(toy: Toy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(capsys)
    monkeypatch.setattr(Toy, "status", None)
    assert "pending" in said(capsys, "jobs")


def test_a_job_is_cancelled_and_sent_again(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    handle = submitted(capsys)["handle"]
    assert "cancelled" in said(capsys, "jobs", "cancel", handle)
    assert "nothing to cancel" in said(capsys, "jobs", "cancel", handle)
    said(capsys, "jobs", "status", handle, "--wait", code=130)
    assert f"{handle}-2 sent to toy" in said(capsys, "jobs", "resubmit", handle)
    assert toy.sent[1].work == toy.sent[0].work, "as it was"
    assert "has a job already" in said(capsys, "jobs", "resubmit", handle, code=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit", str(DEMO), "sed=1", "--on", "toy"], ["sed", "seed"]),
        (["submit", "nowhere.yaml", "--on", "toy"], ["nowhere.yaml"]),
        (["submit", str(DEMO), "--on", "the-moon"], ["the-moon", "local"]),
        (["submit", str(DEMO), "--on", "toy", "--time", "soon"], ["soon", "12:00:00"]),
        (["submit", str(DEMO), "--on", "toy", "--site", "nowhere.yaml"], ["nowhere.yaml"]),
        (["submit", str(DEMO), "--on", "toy", "--verb", "search"], ["demo.yaml"]),
        (["plan", str(DEMO), "--on", "local", "--nodes", "2"], ["--nodes", "one machine"]),
        (["submit", str(DEMO), "--on", "toy", "storage=/proc/nowhere"], ["storage /proc/nowhere", "cannot"]),
        (["jobs", "status", "nobody"], ["nobody", "none"]),
    ],
)
def test_what_is_wrong_is_never_submitted(
    arguments: list[str], words: list[str], toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = said(capsys, *arguments, code=2)
    assert all(word in out for word in words), out
    assert "Traceback" not in out and not toy.sent and not Records().all()
    assert not (tmp_path / "runs").exists()


def test_a_site_file_is_read_and_its_mistakes_named(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "settings" / "xinv" / "site.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("environment: {NCCL_DEBUG: WARN}\n")
    submitted(capsys)
    assert toy.sent[0].environment == {"NCCL_DEBUG": "WARN"}
    path.write_text("enviroment: {}\n")
    out = said(capsys, "submit", str(DEMO), "--on", "toy", code=2)
    assert "enviroment" in out and "environment" in out and str(path) in out
    monkeypatch.setenv("XINV_SITE", str(tmp_path / "gone.yaml"))
    assert "gone.yaml" in said(capsys, "submit", str(DEMO), "--on", "toy", code=2)


def test_a_plan_shows_what_is_asked_for_and_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "plan", str(DEMO), "--on", "local", "workers.count=1")
    assert "asks for 1 node of 1 CPUs" in out and f"this machine has {os.cpu_count()} CPUs" in out


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (Status(state=State.succeeded, exit_code=0), 0),
        (Status(state=State.succeeded), 0),
        (Status(state=State.failed, exit_code=2), 2),
        (Status(state=State.failed), 1),
        (Status(state=State.cancelled), 130),
        (Status(state=State.lost), 1),
    ],
)
def test_the_exit_code_of_waiting_is_the_jobs_result(status: Status, code: int) -> None:
    assert result_code(status) == code
