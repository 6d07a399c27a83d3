"""What Ray costs a search, in time, CPU and memory: two parts of tests/bench/search.py.

The search runs in a process of its own, which starts Ray; this one samples its descendants. Run as a program, this file
is that search: `search_on_ray.py FOLDER NAME OVERRIDES(JSON) LAST_PROPOSAL_TO_TRAIN`.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from search_efficiency import ROOT, ground_alone, tree

EVERY = 0.5
"""Seconds between two samples."""

PROCESSES = {
    "gcs/gcs_server": "gcs",
    "raylet/raylet": "raylet",
    "dashboard/dashboard.py": "dashboard",
    "ray-dashboard-": "dashboard",
    "ray::DashboardAgent": "agent",
    "ray::RuntimeEnvAgent": "runtime_env_agent",
    "log_monitor.py": "log_monitor",
    "autoscaler/_private/monitor.py": "monitor",
    "ray::ResourceTrainable": "trials",
    "ray::Clocked": "trials",
    "ray::IDLE": "spare",
}
"""Words in the command line of Ray's processes, and what they are; spare are workers that Ray holds ready. What has
none of these is "other"."""

HEAD = ("gcs", "dashboard", "raylet", "agent")


def clocked() -> type:
    """A trial's process that notes when a training step begins first, and when its last result leaves it."""
    from xinv.search.process import TrialProcess

    class Clocked(TrialProcess):
        def _begin(self, config: dict[str, Any]) -> None:
            from xinv.train.engine import Engine

            super()._begin(config)
            notes = Path(config["job"]).with_name("clock.json")
            self._clock: dict[str, Any] = {"process": os.getpid(), "first_step": None, "last_result": None}
            step = Engine.__dict__["set_learning_rate"]  # called before every training step, and never else
            step = getattr(step, "unclocked", step)

            def first(engine: Any, rate: float) -> None:
                self._clock["first_step"] = time.time()
                Engine.set_learning_rate = step  # type: ignore[method-assign]
                step(engine, rate)

            first.unclocked = step  # type: ignore[attr-defined]
            Engine.set_learning_rate = first  # type: ignore[method-assign]
            self._notes = notes

        def step(self) -> dict[str, Any]:
            found = super().step()
            self._notes.write_text(json.dumps({**self._clock, "last_result": time.time()}))
            return found

    return Clocked


def drive(folder: str, name: str, overrides: str) -> None:
    """Run one search, its trials clocked."""
    from xinv.base import trial_workers
    from xinv.parallel import connect
    from xinv.search import run, settings

    # Before Ray Tune is imported, as `run` does.
    config = settings.SearchConfig.model_validate(tree(Path(folder), name, json.loads(overrides)))
    connect(trial_workers(config.place, settings.base_audit(config).workers))
    from xinv.search import process

    process.TrialProcess = clocked()  # type: ignore[misc]
    run.run(config)


class Watch:
    """CPU seconds and memory of a process and its descendants, by what they are."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._kinds: dict[int, str] = {}
        self._seconds: dict[int, float] = {}
        self.memory: dict[str, int] = {}

    def look(self) -> None:
        memory: dict[str, int] = {}
        for process in [self._root, *self._root.children(recursive=True)]:
            try:
                kind = self._kind(process)
                times = process.cpu_times()
                self._seconds[process.pid] = times.user + times.system
                memory[kind] = memory.get(kind, 0) + process.memory_info().rss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # what it had at the last look stands
        self.memory = memory

    def _kind(self, process: psutil.Process) -> str:
        if process.pid == self._root.pid:
            return "driver"
        words = " ".join(process.cmdline())
        kind = next((kind for part, kind in PROCESSES.items() if part in words), "other")
        if self._kinds.get(process.pid) != "trials":  # its title changes between two trials
            self._kinds[process.pid] = kind
        return self._kinds[process.pid]

    def seconds(self) -> dict[str, float]:
        """CPU seconds so far by kind, of processes that ended too."""
        found = {"driver": self._seconds[self._root.pid]}
        for pid, kind in self._kinds.items():
            found[kind] = found.get(kind, 0.0) + self._seconds.get(pid, 0.0)
        return found


def search(folder: Path, name: str, changes: dict[str, Any], seen: Callable[[Watch, int, int], None]) -> Path:
    """Run a search to its end and call `seen(watch, trials ended, reports)` twice a second; its run folder."""
    from xinv.search.record import read

    ground_alone(folder)
    run = folder / name
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}
    command = [sys.executable, __file__, str(folder), name, json.dumps(changes)]
    with subprocess.Popen(command, env=environment, stdout=sys.stderr) as process:
        watch = Watch(process.pid)
        while process.poll() is None:
            time.sleep(EVERY)
            try:
                watch.look()
            except psutil.NoSuchProcess:
                break
            past = read(run)
            ended = sum(trial.state != "running" for trial in past.trials.values())
            seen(watch, ended, sum(len(trial.reports) for trial in past.trials.values()))
    if process.returncode:
        sys.exit(f"the search ended with exit code {process.returncode}; its log is {run / 'log.txt'}")
    return run


def overhead(folder: Path, trials: int) -> dict[str, Any]:
    """Seconds between trials, and the share of Ray's own processes in the CPU time while trials run."""
    marks: list[dict[str, float]] = []

    def seen(watch: Watch, ended: int, reports: int) -> None:
        if reports and ended < trials:
            marks.append(watch.seconds())

    run = search(folder, "overhead", {"budget": {"trials": trials}, "epochs": 6}, seen)
    first, last = marks[0], marks[-1]
    spent = {kind: round(last[kind] - first.get(kind, 0.0), 2) for kind in last}
    ray = sum(seconds for kind, seconds in spent.items() if kind not in ("driver", "trials"))
    total = sum(spent.values())
    between = gaps(run)
    return {
        "between_trials_s": {
            "count": len(between),
            "median": round(statistics.median(between), 2),
            "max": round(max(between), 2),
            "goal": 3.0,
        },
        "ray_share_of_cpu": {"share": round(ray / total, 3), "goal": 0.1},
        "driver_share_of_cpu": round(spent["driver"] / total, 3),
        "cpu_seconds": spent,
        "seconds": round(len(marks) * EVERY, 1),
    }


def gaps(run: Path) -> list[float]:
    """Seconds from the last result of a trial to the first training step of the next one in the same process."""
    notes = [json.loads(path.read_text()) for path in sorted((run / "trials").glob("*/clock.json"))]
    found = []
    for process in {note["process"] for note in notes}:
        mine = sorted((note for note in notes if note["process"] == process), key=lambda note: note["last_result"])
        for before, after in itertools.pairwise(mine):
            found.append(after["first_step"] - before["last_result"])
    return found


def memory(folder: Path, trials: int) -> dict[str, Any]:
    """Memory of the driver, of Ray's processes and of the one that trains, after so many trials of one epoch each."""
    from xinv.search.preflight import HEAD_BYTES

    marks = sorted({20, *range(50, trials + 1, 50)})
    found: dict[int, dict[str, float]] = {}

    def seen(watch: Watch, ended: int, reports: int) -> None:
        for mark in marks:
            if ended >= mark and mark not in found:
                found[mark] = {kind: round(size / 2**20, 1) for kind, size in watch.memory.items()}

    # A few more, so that Ray's processes are there at the last mark.
    search(folder, "memory", {"budget": {"trials": trials + 10}, "epochs": 1, "asha": None}, seen)
    first, last = marks[0], max(found)
    kinds = ("driver", *HEAD, "trials")
    growth = {kind: round((found[last][kind] - found[first][kind]) * 1024 / (last - first), 1) for kind in kinds}
    head = round(sum(growth[kind] for kind in ("driver", *HEAD)), 1)
    return {
        "mib_at_trial": found,
        "growth_kib_per_trial": {**growth, "head": head},
        "head_bytes_kib": HEAD_BYTES / 1024,
    }


if __name__ == "__main__":
    drive(*sys.argv[1:])
