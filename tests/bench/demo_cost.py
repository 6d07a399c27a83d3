"""What the demo costs: wall-clock of a first and of a second run, and the peak memory of all its processes together.

    python tests/bench/demo_cost.py            # runs the demo in a temporary folder, prints one JSON object

Memory is the sum of the proportional set sizes (PSS: shared pages counted once) of the command and its descendants,
sampled once a second (each sample costs some CPU time itself). Ray's daemons are started by the command, so they are
among them.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from xinv.provenance import machine, versions

ROOT = Path(__file__).parent.parent.parent


def pss(process: psutil.Process) -> int:
    """Proportional set size in bytes; 0 for a process that has just ended."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return 0


def watch(pid: int, peak: dict[str, float], stop: threading.Event) -> None:
    root = psutil.Process(pid)
    while not stop.wait(1.0):
        try:
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        peak["bytes"] = max(peak["bytes"], sum(pss(process) for process in family))
        peak["processes"] = max(peak["processes"], len(family))


def run(runs: Path) -> dict[str, float]:
    begun = time.monotonic()
    peak = {"bytes": 0.0, "processes": 0.0}
    stop = threading.Event()
    command = [sys.executable, "-m", "xinv.cli", "audit", str(ROOT / "configs" / "demo.yaml"), f"runs={runs}"]
    with subprocess.Popen(command, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        watcher = threading.Thread(target=watch, args=(process.pid, peak, stop))
        watcher.start()
        code = process.wait()
        stop.set()
        watcher.join()
    if code:
        sys.exit(f"the demo ended with exit code {code}; its log is in {runs / 'demo' / 'log.txt'}")
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "peak_gib": round(peak["bytes"] / 2**30, 2),
        "processes": peak["processes"],
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        first, second = run(runs), run(runs)
        scores = json.loads((runs / "demo" / "scores.json").read_text())
    leaks = {leak["attack"]: {name: leak["metrics"][name] for name in ("mse", "ssim")} for leak in scores["leaks"]}
    result = {"machine": machine(), "versions": versions(), "first": first, "second": second, "leaks": leaks}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
