"""SIGKILL of the process group at any stage, then the same command: it finishes, with the same scores bit for bit."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from audits import audit, command, environment, scores_of
from marks import marked

pytestmark = pytest.mark.slow

MOMENTS = ("Images", "Target", "Evaluator", "Releases", "Inverter", "Scores")
"""Stages in whose middle the audit is killed: a random while after each one's beginning."""


def events(runs: Path) -> list[dict[str, object]]:
    path = runs / "demo" / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def kill_in(runs: Path, stage: str, pause: float) -> bool:
    """Start the audit and SIGKILL its process group `pause` seconds after `stage` begins. False: it ended before."""
    past = len(events(runs))
    with subprocess.Popen(
        command(runs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(), start_new_session=True
    ) as process:
        while process.poll() is None:
            fresh = events(runs)[past:]
            if any(event["kind"] == "begin" and str(event["stage"]).startswith(stage) for event in fresh):
                time.sleep(pause)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return True
            time.sleep(0.02)
        return False


@pytest.fixture(autouse=True)
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the environment of all processes that a test starts has, and nobody else's."""
    monkeypatch.setenv("XINV_TEST_KILL", str(tmp_path))
    return f"XINV_TEST_KILL={tmp_path}"


def leftovers(mark: str) -> list[str]:
    """Processes that a test's audits have left behind, Ray's daemons at least: a worker's title may hide the mark.

    Those that end by themselves, when they notice that their parent is gone, have a moment for it.
    """
    deadline = time.monotonic() + 10
    while (found := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [" ".join(one.cmdline()) for one in psutil.process_iter() if one.pid in found]


@pytest.mark.timeout(1800)
def test_killed_at_every_stage_it_finishes_with_the_scores_of_an_undisturbed_run(tmp_path: Path, mark: str) -> None:
    whole, cut = tmp_path / "whole" / "runs", tmp_path / "cut" / "runs"
    for runs in (whole, cut):
        runs.parent.mkdir()
    assert audit(whole).returncode == 0
    killed = []
    for stage in MOMENTS:
        for pause in (0.05, 1.5) if stage in ("Target", "Inverter", "Releases") else (0.05,):
            # A worker group takes some 15 s to start here; the longer pause lands in mid-training.
            if kill_in(cut, stage, pause if stage not in ("Target", "Inverter") or pause < 1 else 17.0):
                killed.append(stage)
    assert len(set(killed)) == len(MOMENTS), killed
    finished = audit(cut)
    assert finished.returncode == 0, finished.stderr
    left, right = scores_of(whole), scores_of(cut)
    for part in ("rows", "leaks", "evaluator", "target", "data"):
        assert left[part] == right[part], part
    assert not leftovers(mark)
    assert not list(cut.rglob("*.partial"))


@pytest.mark.timeout(600)
def test_ctrl_c_stops_cleanly_and_the_same_command_continues(tmp_path: Path, mark: str) -> None:
    runs = tmp_path / "runs"
    with subprocess.Popen(
        command(runs),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    ) as process:
        while not any(event.get("stage") == "Target: cnn" for event in events(runs)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        time.sleep(12)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command continues" in said and "Traceback" not in said
    assert not leftovers(mark)
    assert audit(runs).returncode == 0


@pytest.mark.timeout(600)
def test_a_killed_rank_is_replaced_and_the_audit_finishes(tmp_path: Path) -> None:
    """One training process dies in mid-training; Ray Train starts the group again and the job continues."""
    runs = tmp_path / "runs"
    with subprocess.Popen(
        command(runs, "target.training.epochs=60"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
    ) as process:  # fmt: skip
        while not any(event["kind"] == "metrics" for event in events(runs)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        below = psutil.Process(process.pid).children(recursive=True)
        ranks = [one for one in below if "RayTrainWorker" in " ".join([one.name(), *one.cmdline()])]
        assert len(ranks) == 2, ranks
        ranks[0].kill()
        _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
