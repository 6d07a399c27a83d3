"""Run the programs of this folder one after another and write what they found, with the machine, to RESULTS.md.

    python tests/bench/all.py [PROGRAM ...]     # such as `step` and `loader`; default: all that report figures

A program that fails keeps its part of the last RESULTS.md out of the new one, and the exit code is 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from figures import OUT, Figure

from xinv.provenance import machine, versions

HERE = Path(__file__).parent
PROGRAMS = tuple(
    sorted(path.stem for path in HERE.glob("*.py") if "\nfrom figures import Figure, report" in path.read_text())
)


def _shown(parts: list[dict[str, Any]]) -> str:
    lines = []
    for part in parts:
        load = part["load"]
        lines += [f"## {part['title']}", "", f"    {part['command']}", ""]
        lines += [f"{part['date']}, load before {load[0]:.1f}, after {load[1]:.1f}.", ""]
        lines += ["| figure | value | goal | |", "|---|---|---|---|"]
        for raw in part["figures"]:
            figure = Figure(**raw)
            goal = {None: "", True: f"{figure.goal}: met", False: f"{figure.goal}: **missed**"}[figure.met]
            lines.append(f"| {figure.name} | {figure.value:.4g} {figure.unit} | {goal} | {figure.note} |")
        lines.append("")
    return "\n".join(lines)


def _write(parts: list[dict[str, Any]]) -> None:
    head = ["# What tests/bench measured", "", "Written by `make bench`; every ratio is of two sides in one run."]
    stack = ", ".join(f"{name} {version}" for name, version in versions().items())
    head += ["", f"{machine()}. {stack}.", ""]
    (HERE / "RESULTS.md").write_text("\n".join(head) + "\n" + _shown(parts))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("programs", nargs="*", choices=(*PROGRAMS, []), help="default: all")
    options = parser.parse_args()
    parts: list[dict[str, Any]] = []
    failed = []
    for program in options.programs or PROGRAMS:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "figures.jsonl"
            before = os.getloadavg()[0]
            ended = subprocess.run([sys.executable, str(HERE / f"{program}.py")], env={**os.environ, OUT: str(out)})
            if ended.returncode or not out.exists():
                failed.append(program)
                continue
            for line in out.read_text().splitlines():
                parts.append(
                    {
                        **json.loads(line),
                        "command": f"python tests/bench/{program}.py",
                        "date": datetime.now(UTC).date().isoformat(),
                        "load": (before, os.getloadavg()[0]),
                    }
                )
        _write(parts)  # what comes later may fail, or be interrupted
    for program in failed:
        print(f"failed: {program}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
