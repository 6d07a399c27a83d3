"""What runs at the far end of a job, as the places start it: a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from audits import SMALL, audit, environment, scores_of
from jobs import request_for

from launch.execute import AGAIN, REQUEST_VARIABLE
from launch.job import LOG, Request, State, result_of, write_request


def execute(request: Request, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.execute", *arguments],
        capture_output=True, text=True, timeout=120, env={**environment(), **variables}, cwd=request.work.runs.parent,
    )  # fmt: skip


@pytest.fixture
def request_here(tmp_path: Path) -> Request:
    return request_for(tmp_path / "runs", *SMALL)


def test_what_the_configuration_reads_is_looked_for_where_it_runs(request_here: Request, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    request_here.work.runs.parent.mkdir(exist_ok=True)
    work = request_here.work.model_copy(update={"inputs": (gone,)})
    text = request_here.model_copy(update={"work": work}).model_dump_json()
    ended = execute(request_here, **{REQUEST_VARIABLE: text})
    assert ended.returncode == 2 and f"{gone} is not on this machine" in ended.stderr
    assert "Traceback" not in ended.stderr
    result = result_of(request_here.folder)
    assert result and (result.state, result.exit_code) == (State.failed, 2) and str(gone) in result.detail


def test_a_job_whose_folder_is_not_seen_brings_its_request_along(request_here: Request) -> None:
    snapshot = request_here.work.model_copy(update={"tree": {**request_here.work.tree, "seed": -1}})
    text = request_here.model_copy(update={"work": snapshot}).model_dump_json()
    ended = execute(request_here, **{REQUEST_VARIABLE: text})
    assert ended.returncode == 2 and "seed" in ended.stderr, "the verb validates the configuration once more"
    assert json.loads((request_here.folder / "result.json").read_text())["exit_code"] == 2


@pytest.mark.parametrize("text", [None, "{}", "not json"])
def test_without_a_request_it_says_what_it_expects(request_here: Request, text: str | None) -> None:
    request_here.work.runs.parent.mkdir(exist_ok=True)
    ended = execute(request_here, **({} if text is None else {REQUEST_VARIABLE: text}))
    assert ended.returncode == 2 and REQUEST_VARIABLE in ended.stderr and "Traceback" not in ended.stderr


def test_other_versions_are_told(request_here: Request) -> None:
    work = request_here.work.model_copy(update={"tree": {**request_here.work.tree, "seed": -1}})
    versions = {**request_here.versions, "torch": "0.0.1"}
    write_request(request_here.model_copy(update={"work": work, "versions": versions}))
    ended = execute(request_here, str(request_here.folder))
    assert "and 0.0.1 where the job was submitted" in ended.stdout


LOSES_AN_EXCEPTION = """
import os, signal, time
from launch.execute import _Signals
from xinv.errors import Preempted

class Loses:
    def __del__(self):
        os.kill(os.getpid(), signal.{number})
        time.sleep(0.01)

_Signals.AGAIN_AFTER = 0.05
signals = _Signals()
try:
    Loses()  # an exception in a destructor goes nowhere
    try:
        time.sleep(60)
    finally:
        with open(os.devnull) as clean:
            for _ in range(20):
                time.sleep(0.02)
        print("cleaned up")
except KeyboardInterrupt as error:
    print(type(error).__name__, signals.preempted)
"""


@pytest.mark.parametrize(("number", "said"), [("SIGTERM", "KeyboardInterrupt False"), ("SIGUSR1", "Preempted True")])
def test_a_signal_whose_exception_is_lost_comes_again_and_lets_cleaning_up_finish(number: str, said: str) -> None:
    script = LOSES_AN_EXCEPTION.format(number=number)
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=50
    )
    assert ended.stdout.split("\n") == ["cleaned up", said, ""], ended.stderr
    assert "Exception ignored in" in ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_makes_room_saves_in_mid_training_and_continues_to_the_same_scores(tmp_path: Path) -> None:
    longer = ("attack.training.epochs=150", "workers.count=1")
    whole = tmp_path / "whole" / "runs"
    whole.parent.mkdir()
    assert audit(whole, *longer).returncode == 0
    request = request_for(tmp_path / "runs", *SMALL, *longer)
    write_request(request)
    command = [sys.executable, "-m", "launch.execute", str(request.folder)]
    codes = []
    for _ in range(2):
        log = (request.folder / LOG).open("ab")
        with subprocess.Popen(command, stdout=log, stderr=log, env=environment(), cwd=tmp_path) as process:
            while not codes and '"series": "prediction_only"' not in events(request):
                assert process.poll() is None, (request.folder / LOG).read_text()
                time.sleep(0.05)
            if not codes:
                os.kill(process.pid, signal.SIGUSR1)
            codes.append(process.wait(timeout=400))
        log.close()
        if len(codes) == 1:
            assert result_of(request.folder) is None, "it has not ended"
            (state,) = (tmp_path / "runs" / "stages").glob("inverter-*/checkpoints/step-*/state.json")
            assert json.loads(state.read_text())["state"]["step"] > 0
    assert codes == [AGAIN, 0], (request.folder / LOG).read_text()
    left, right = scores_of(whole), scores_of(tmp_path / "runs")
    assert left["rows"] == right["rows"] and left["leaks"] == right["leaks"]


def events(request: Request) -> str:
    path = request.work.folder / "events.jsonl"
    return path.read_text() if path.exists() else ""
