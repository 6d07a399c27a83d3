"""Where trials run: several workers each, several at once, and what is left when a process dies. Real searches."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import searches
from searches import load

from xinv.search.record import Past, read

pytest.importorskip("optuna")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ONE = ("place.workers=2", "asha=null", "budget.trials=1", "presets=false")
ENDLESS = (*ONE, "epochs=5000")
"""A trial whose end no test waits for."""
PROGRAM = "import sys, test_place; test_place.run_and_list(*sys.argv[1:])"


def run_and_list(folder: str, *overrides: str) -> None:
    """In a process of its own: a search, and what it leaves on its cluster before that ends."""
    import xinv.search.run as runner

    leave = runner.disconnect

    def listed() -> None:
        import ray

        if ray.is_initialized() and ray.cluster_resources():
            from ray.util.state import list_actors

            groups = [one["state"] for one in ray.util.placement_group_table().values() if one["state"] != "REMOVED"]
            here = ray.get_runtime_context().gcs_address  # others may run Ray on this machine
            actors = [one.class_name for one in list_actors(here, filters=[("state", "=", "ALIVE")])]
            ours = [name for name in actors if name != "_AutoscalingCoordinatorActor"]  # Ray's own, one a cluster
            (Path(folder) / "left.json").write_text(json.dumps({"groups": groups, "actors": ours}))
        leave()

    runner.disconnect = listed
    runner.run(load(Path(folder), *overrides), offering=searches.offering)


class Search:
    """A running search, and every process that it ever had."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        started = searches.command(folder, *overrides)
        started["args"] = [sys.executable, "-c", PROGRAM, str(folder), *overrides]
        self.folder, self.overrides, self.known = folder, overrides, set[psutil.Process]()
        self.process = subprocess.Popen(
            **started, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def past(self) -> Past:
        return read(load(self.folder, *self.overrides).folder)

    def look(self) -> list[psutil.Process]:
        below: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(self.process.pid).children(recursive=True)
        self.known.update(below)
        return below

    def until_reports(self, count: int) -> None:
        while sum(len(trial.reports) for trial in self.past().trials.values()) < count:
            self.look()
            assert self.process.poll() is None, self.process.communicate()[1][-3000:]
            time.sleep(0.05)

    def named(self, title: str) -> list[psutil.Process]:
        found = []
        for one in self.look():
            with contextlib.suppress(psutil.NoSuchProcess):
                if title in " ".join([one.name(), *one.cmdline()]):
                    found.append(one)
        return found

    def end(self, limit: float = 280) -> str:
        """Wait for it; what it said. Nothing of it lives on."""
        deadline = time.monotonic() + limit
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            self.look()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)
        _, living = psutil.wait_procs(self.known, timeout=30)
        assert not living, living
        said: str = self.process.communicate()[1]
        return said

    def left(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = json.loads((self.folder / "left.json").read_text())
        return found


@contextlib.contextmanager
def searching(folder: Path, *overrides: str) -> Iterator[Search]:
    folder.mkdir(exist_ok=True)
    search = Search(folder, *overrides)
    try:
        yield search
    finally:
        if search.process.poll() is None:
            os.killpg(search.process.pid, signal.SIGKILL)
        for one in search.known:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def test_trials_of_two_workers_are_the_trials_of_one_and_leave_nothing(tmp_path: Path) -> None:
    records: dict[int, Past] = {}
    for workers in (1, 2):
        options = (f"place.workers={workers}", "epochs=3", "budget.trials=4")
        with searching(tmp_path / str(workers), *options) as search:
            said = search.end()
            assert search.process.returncode == 0, said[-3000:]
            assert search.left() == {"groups": [], "actors": []}
            records[workers] = search.past()
    one, two = records[1], records[2]
    shapes = [{line["kind"]: set(line) for line in past.lines} for past in (one, two)]
    assert shapes[0] == shapes[1] and {"task", "begin", "report", "end"} <= set(shapes[1])
    assert [trial.candidate for trial in two.trials.values()] == [trial.candidate for trial in one.trials.values()]
    for left, right in zip(one.trials.values(), two.trials.values(), strict=True):
        assert right.state in ("finished", "stopped") and right.cost == left.cost
        # One step of 32 images is the same step when two ranks share it, but for the order of the sums.
        assert right.reports[0]["mse"] == pytest.approx(left.reports[0]["mse"], rel=1e-3)
    assert {trial.state for trial in two.trials.values()} == {"finished", "stopped"}


def test_a_killed_rank_is_replaced_and_no_epoch_is_repeated(tmp_path: Path) -> None:
    with searching(tmp_path, *ONE, "epochs=40") as search:
        search.until_reports(3)
        ranks = search.named("RayTrainWorker")
        assert len(ranks) == 2, ranks
        ranks[1].kill()
        said = search.end()
        assert search.process.returncode == 0, said[-3000:]
        assert search.left() == {"groups": [], "actors": []}
        (trial,) = search.past().trials.values()
    assert trial.state == "finished"
    assert [report["epoch"] for report in trial.reports] == list(range(1, 41))


def test_a_killed_raylet_is_a_clear_error_and_the_same_command_continues(tmp_path: Path) -> None:
    with searching(tmp_path, *ENDLESS) as search:
        search.until_reports(3)
        (raylet,) = [one for one in search.look() if one.name() == "raylet"]
        raylet.kill()
        said = search.end(120)
        assert search.process.returncode == 1
        assert "WorkError: Ray's daemon (raylet) was killed" in said and "same command continues" in said
        before = search.past()
    with searching(tmp_path, *ENDLESS) as again:
        again.until_reports(len(before.trials["0000"].reports) + 3)
        after = again.past()
    assert after.lines[: len(before.lines)] == before.lines
    epochs = [report["epoch"] for report in after.trials["0000"].reports]
    assert epochs == list(range(1, len(epochs) + 1))


def test_ctrl_c_ends_ranks_in_mid_training(tmp_path: Path) -> None:
    with searching(tmp_path, *ENDLESS) as search:
        search.until_reports(3)
        assert len(search.named("RayTrainWorker")) == 2
        os.kill(search.process.pid, signal.SIGINT)
        said = search.end(60)
        assert "KeyboardInterrupt" in said, said[-3000:]
        assert search.past().trials["0000"].state == "running", "another start continues it"


def test_two_trials_at_once_share_the_machine(tmp_path: Path) -> None:
    options = ("place.at_once=2", "epochs=400", "asha=null", "budget.trials=2", "presets=false")
    with searching(tmp_path, *options) as search:
        said = search.end()
        assert search.process.returncode == 0, said[-3000:]
        assert search.left() == {"groups": [], "actors": []}
        past = search.past()
    running: set[str] = set()
    together = []
    for line in past.lines:
        if line["kind"] in ("begin", "end"):
            (running.add if line["kind"] == "begin" else running.discard)(line["trial"])
            together.append(len(running))
    assert max(together) == 2
    reports = [line["trial"] for line in past.lines if line["kind"] == "report"]
    turns: list[Any] = [name for name, _ in itertools.groupby(reports)]
    assert len(turns) > 2, "their reports come in turn, not one trial after another"
    for trial in past.trials.values():
        assert trial.state == "finished"
        assert [report["epoch"] for report in trial.reports] == list(range(1, 401))
