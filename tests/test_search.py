"""A whole tiny search on Ray Tune: real trainings, one process for all of them, and what a second start does."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import searches
from searches import load, search

from xinv.cli import run as command
from xinv.search.record import read

pytest.importorskip("optuna")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_by_ray_tune_continues_and_keeps_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("epochs=2", "asha={grace: 1, reduction: 2}")
    config = load(tmp_path, *options)
    first = search(tmp_path, *options, "budget.trials=3")
    log = config.folder / "log.txt"
    assert first.returncode == 0, first.stderr[-3000:] + (log.read_text()[-3000:] if log.exists() else "")
    past = read(config.folder)
    assert len(past.trials) == 3 and {trial.state for trial in past.trials.values()} <= {"finished", "stopped"}
    for trial in past.trials.values():
        folder = config.folder / "trials" / trial.id
        assert (folder / "weights.safetensors").exists() == (trial.state == "finished")
        assert not (folder / "checkpoints").exists()
        assert trial.seconds > 0 and [report["epoch"] for report in trial.reports] == list(range(1, trial.epoch + 1))
    assert not (config.folder / "ray").exists()
    before = {path: path.stat().st_mtime_ns for path in (config.folder / "trials").glob("*/*")}
    assert search(tmp_path, *options, "budget.trials=4").returncode == 0
    after = read(config.folder)
    assert len(after.trials) == 4 and after.lines[: len(past.lines)] == past.lines
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert command(["search", "best", str(config.folder), "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said["best"]["mse"] == min(trial.score for trial in after.trials.values() if trial.state == "finished")
    assert (config.folder / "best.yaml").exists()


def workers_of(driver: int) -> list[int]:
    """Ids of the processes below `driver` that train trials; Tune calls a class with resources ResourceTrainable."""
    below = psutil.Process(driver).children(recursive=True)
    titles = {one.pid: " ".join(one.cmdline()) for one in below if one.is_running()}
    return [pid for pid, title in titles.items() if "ray::ResourceTrainable" in title]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_worker_and_killed_driver_lose_no_epoch_and_repeat_none(tmp_path: Path) -> None:
    options = ("epochs=60", "asha=null", "budget.trials=2", "presets=false")
    config = load(tmp_path, *options)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(**searches.command(tmp_path, *options), **quiet) as process:

        def until(epochs: int) -> None:
            while sum(len(trial.reports) for trial in read(config.folder).trials.values()) < epochs:
                assert process.poll() is None, process.returncode
                time.sleep(0.02)

        until(4)
        (worker,) = workers_of(process.pid)
        os.kill(worker, signal.SIGKILL)
        until(70)
        process.kill()
    before = read(config.folder)
    assert search(tmp_path, *options).returncode == 0
    after = read(config.folder)
    assert after.lines[: len(before.lines)] == before.lines
    assert len(after.trials) == 2
    for trial in after.trials.values():
        assert trial.state == "finished"
        assert [report["epoch"] for report in trial.reports] == list(range(1, 61))
