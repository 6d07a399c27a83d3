"""Audits as a user runs them: the command line in a process of its own, on few images and few epochs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "configs" / "demo.yaml"
SMALL = (
    "data.split={target: 80, attack: 100, victim: 24, gallery: 80}",
    "data.shard_samples=20",
    "target.network.width=4",
    "target.training.epochs=3",
    "evaluators.residual.network.width=8",
    "evaluators.residual.training.epochs=3",
    "release.methods=[gradient, grad_cam]",
    "attack.training.epochs=3",
    "attack.training.precision=fp32",
    "score.resamples=200",
    "score.pictures=4",
)


def command(runs: Path, *overrides: str, verb: str = "audit") -> list[str]:
    return [sys.executable, "-m", "xinv.cli", verb, str(DEMO), f"runs={runs}", *SMALL, *overrides]


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "160", "PYTHONPATH": str(ROOT)}


def audit(runs: Path, *overrides: str, limit: float = 280) -> subprocess.CompletedProcess[str]:
    """Run a small audit to its end."""
    return subprocess.run(
        command(runs, *overrides), capture_output=True, text=True, timeout=limit, env=environment(), cwd=runs.parent
    )


def scores_of(runs: Path, name: str = "demo") -> dict[str, Any]:
    scores: dict[str, Any] = json.loads((runs / name / "scores.json").read_text())
    return scores
