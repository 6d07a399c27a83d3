"""What a cluster costs before it works: seconds from `xinv submit --on slurm` to the first training step, on two nodes.

    python tests/bench/submit_cost.py          # root; starts the Slurm of tests/cluster/bed.py, prints one JSON object

The first step has been taken when the first validation is recorded, which is some steps later: the figure is an upper
bound. The bound to keep is 60 s on two cores that nobody else uses.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "cluster"), str(ROOT)]

import bed  # noqa: E402
from audits import DEMO, SMALL  # noqa: E402

from xinv.provenance import machine, versions  # noqa: E402

BOUND = 60.0


def measure(folder: Path) -> dict[str, float]:
    """Seconds from the command to each of the job's milestones."""
    variables = {**bed.environment(), "PYTHONPATH": str(ROOT), "XINV_JOBS": str(folder / "jobs")}
    command = [sys.executable, "-m", "xinv.cli", "submit", str(DEMO), f"runs={folder / 'runs'}", *SMALL]
    begun = time.time()
    done = subprocess.run(
        [*command, "--on", "slurm", "--nodes", "2", "--cpus-per-node", "1", "--json"],
        env=variables, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found = {"sent": time.time() - begun}
    job = json.loads(done.stdout)
    log, events = Path(job["folder"]) / "log.txt", Path(job["run"]) / "events.jsonl"
    signs = {"started": (log, "Slurm job"), "ray": (log, "has its 2 nodes")}
    while not (first := _first_metrics(events)):
        if time.time() - begun > 600:
            sys.exit(f"no training step within 10 minutes: {log.read_text()}")
        for name, (path, sign) in signs.items():
            if name not in found and path.exists() and sign in path.read_text():
                found[name] = time.time() - begun
        time.sleep(0.2)
    found["first_step"] = datetime.fromisoformat(first["time"]).timestamp() - begun
    subprocess.run(["scancel", job["ident"]], env=variables, check=True)
    return {name: round(seconds, 1) for name, seconds in found.items()}


def _first_metrics(events: Path) -> dict[str, Any] | None:
    lines = events.read_text().splitlines() if events.exists() else []
    return next((found for found in map(json.loads, lines) if found["kind"] == "metrics"), None)


def main() -> None:
    if reason := bed.unfit():
        sys.exit(reason)
    kept = bed.is_up()
    if not kept:
        bed.up()
    load = os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory() as folder:
            seconds = measure(Path(folder))
            bed.wait_idle()
    finally:
        if not kept:
            bed.down()
    print(json.dumps({"seconds": seconds, "bound": BOUND, "load_before": load, "machine": machine(), **versions()}))


if __name__ == "__main__":
    main()
