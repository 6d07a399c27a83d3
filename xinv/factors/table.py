"""factors.json: what every setting of every factor came to."""

from collections.abc import Mapping
from typing import Any

from xinv.factors.settings import FactorsConfig
from xinv.factors.trial import BASE, Trials
from xinv.provenance import machine, versions

Scores = Mapping[str, Any]
"""The content of a trial's scores.json."""


def table(config: FactorsConfig, trials: Trials, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """The content of factors.json.

    Args:
        scores: of every trial, by its name.

    Returns:
        {"schema": 1, "name", "level", "synthetic", "base", "factors", "provenance"}. The base and every setting are
        {"label", "overrides", "run", "as_configured", "images", "synthetic", "target", "rows"}: `run` names the trial
        whose folder has the rest, `synthetic` says that some of its images show nothing real, a row is one of its
        scores.json with, under "leak", what it adds to that trial's own baseline (None for the baseline itself).
    """
    base = scores[trials.base.name]
    return {
        "schema": 1,
        "name": config.name,
        "level": base["level"],
        "synthetic": base["data"]["synthetic"],
        "data": base["data"],
        "base": _setting(BASE, {}, trials.base.name, trials, scores),
        "factors": [
            {
                "name": name,
                "title": factor.title or name,
                "axis": factor.axis,
                "log": factor.log,
                "base": factor.base,
                "settings": [
                    _setting(use.label, use.changes, use.run, trials, scores)
                    for use in trials.uses
                    if use.factor == name
                ],
            }
            for name, factor in config.factors.items()
        ],
        "provenance": {
            "git": sorted({one["provenance"]["git"] for one in scores.values()}),
            "versions": versions(),
            "machine": machine(),
            "seeds": {"audit": trials.base.seed},
            "trials": {name: one["provenance"]["stages"] for name, one in scores.items()},
        },
    }


def _setting(
    label: str, changes: dict[str, Any], run: str, trials: Trials, scores: Mapping[str, Scores]
) -> dict[str, Any]:
    found = scores[run]
    leaks = {leak["attack"]: leak for leak in found["leaks"]}
    return {
        "label": label,
        "overrides": changes,
        "run": run,
        "as_configured": run == trials.base.name,
        "images": found["images"],
        "synthetic": found["data"]["synthetic"],
        "target": found["target"],
        "rows": [
            {**row, "leak": {key: value for key, value in leaks[row["attack"]].items() if key != "attack"}}
            if row["attack"] in leaks
            else {**row, "leak": None}
            for row in found["rows"]
        ],
    }
