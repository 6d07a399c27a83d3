"""Audits and searches that lose machine after machine, and with each the disk; what is left is the storage."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from audits import audit, command, environment, scores_of
from searches import load, search
from storages import own_key, s3, server
from test_kill import events

from xinv.search.record import read
from xinv.storage import Storage, opened
from xinv.track import read_events

__all__ = ["own_key", "s3", "server"]  # fixtures

LONG = ("target.training.epochs=80",)
"""So that there is a middle of the training to be killed in."""


def killed_when(reached: Callable[[], bool], runs: Path, *overrides: str) -> None:
    """Start the audit, and SIGKILL its process group when `reached` says so."""
    runs.parent.mkdir()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(
        command(runs, *overrides), env=environment(), start_new_session=True, cwd=runs.parent, **quiet
    ) as process:
        while not reached():
            assert process.poll() is None, (runs / "demo" / "log.txt").read_text()[-3000:]
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)


def names(storage: Storage, kind: str) -> list[str]:
    """Folders of a kind that are whole in the storage."""
    found = storage._files.find(f"{storage._root}/{kind}")
    return [path.split("/")[-2] for path in found if path.endswith("/kept.json")]


def now() -> datetime:
    return datetime.now().astimezone()


def own_events(runs: Path, since: datetime) -> list[dict[str, Any]]:
    """What this machine did; before it come the events of those whose run folder it fetched."""
    return [event for event in events(runs) if datetime.fromisoformat(str(event["time"])) >= since]


def begun(runs: Path, since: datetime) -> set[str]:
    return {str(event["stage"]).partition(":")[0] for event in own_events(runs, since) if event["kind"] == "begin"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_next_machine_goes_on_and_ends_with_the_same_scores(tmp_path: Path, s3: str) -> None:
    whole = tmp_path / "whole" / "runs"
    whole.parent.mkdir()
    assert audit(whole, *LONG, limit=900).returncode == 0
    kept = ("storage=" + s3, *LONG)
    storage = opened(s3)
    assert storage is not None

    a, b, c = (tmp_path / name / "runs" for name in ("a", "b", "c"))
    killed_when(lambda: bool(names(storage, "trainings")), a, *kept)
    trained = max(event["epoch"] for event in events(a) if event["kind"] == "metrics")
    assert trained < 80 and [name.split("-")[0] for name in names(storage, "stages")] == ["images"]

    since = now()
    killed_when(lambda: any(name.startswith("inverter") for name in names(storage, "stages")), b, *kept)
    assert {"Target", "Inverter"} <= begun(b, since) and "Images" not in begun(b, since)
    first = next(event for event in own_events(b, since) if event.get("series") == "target")
    assert first["epoch"] > 1, "the training went on from its checkpoint"

    since = now()
    c.parent.mkdir()
    finished = audit(c, *kept, limit=900)
    assert finished.returncode == 0, finished.stderr
    assert "Scores" in begun(c, since)
    assert not {"Images", "Target", "Evaluator", "Releases"} & begun(c, since)
    left, right = scores_of(whole), scores_of(c)
    for part in ("rows", "leaks", "evaluator", "target", "data"):
        assert left.get(part) == right.get(part), part
    assert names(storage, "trainings") == [], "checkpoints of finished trainings are forgotten"
    manifest = storage.read("runs/demo")
    assert manifest is not None and {"report.html", "scores.json", "resolved.yaml"} <= set(manifest["files"])

    since, d = now(), tmp_path / "d" / "runs"
    d.parent.mkdir()
    again = audit(d, *kept, "--json", limit=900)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["rows"] == left["rows"]
    assert begun(d, since) == set(), "nothing was made"
    assert (d / "demo" / "report.html").read_bytes() == (c / "demo" / "report.html").read_bytes()
    assert not list(tmp_path.rglob("*.fetched"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_search_goes_on_on_another_machine(tmp_path: Path, s3: str) -> None:
    options = ("epochs=2", "asha={grace: 1, reduction: 2}", f"storage={s3}")
    a, b = tmp_path / "a", tmp_path / "b"
    for machine, trials in ((a, 2), (b, 3)):
        machine.mkdir()
        done = search(machine, *options, f"budget.trials={trials}")
        assert done.returncode == 0, done.stderr[-3000:]
    first, second = (read(load(machine, *options).folder) for machine in (a, b))
    assert len(first.trials) == 2 and len(second.trials) == 3
    assert second.lines[: len(first.lines)] == first.lines, "the record is the same, and goes on"
    made = [event["stage"] for event in read_events(load(b, *options).folder) if event["kind"] == "begin"]
    assert len(made) == len(set(made)), "images, target and releases were made once"
