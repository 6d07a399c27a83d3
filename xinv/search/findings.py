"""What a search has found, as plain data for its report: from its record, at any time."""

from importlib import metadata
from pathlib import Path
from typing import Any

from xinv.files import read_json
from xinv.provenance import git_revision, machine, versions
from xinv.search.best import pareto, ranked
from xinv.search.comparison import read_final
from xinv.search.importance import importance
from xinv.search.record import Past, Trial
from xinv.search.settings import SearchConfig, base_audit
from xinv.track import Recorder, read_events

START = "search start"
"""The event that each start of a search leaves: who computed, with what."""


def note_start(tracker: Recorder) -> None:
    """Leave the event from which the report knows who computed: at each start that goes on with trials."""
    libraries = versions() | {"optuna": metadata.version("optuna")}
    tracker.event(START, git=git_revision(), versions=libraries, machine=machine())


def write_report(config: SearchConfig, past: Past, folder: Path) -> Path:
    """report.html in the run folder, wherever that lies by now. InputError where final.json or its pictures are
    damaged."""
    from xinv.report.search import write_report as write  # matplotlib: not before it is needed

    path = folder / "report.html"
    write(findings(config, past, folder), folder, (folder / "resolved.yaml").read_text(), path)
    return path


def findings(config: SearchConfig, past: Past, folder: Path) -> dict[str, Any]:
    """Everything that the report shows.

    Returns:
        "trials": every trial in the order of their beginning (`_described`); "order": the ids of those validated, the
        best first (`best.ranked`); "front": the ids of `best.pareto`; "progress": {"trial", "flops", "mse"} after each
        validation in the order of the record, with the training FLOPs of all trials until then; "refused": {"title",
        "reason"} of candidates; "importance": `importance.importance`; "final": final.json, or null; "starts": the
        code, versions and machine of each start that went on with trials; and what was asked for.
    """
    audit = base_audit(config, config.name)
    return {
        "name": config.name,
        "data": {
            "source": audit.data.source.kind,
            "size": audit.data.size,
            "channels": audit.data.channels,
            "synthetic": _synthetic(folder, past, audit.data.source.kind),
        },
        "task": past.task,
        "release": list(config.release),
        "searcher": config.searcher,
        "asha": config.asha.model_dump(mode="json") if config.asha else None,
        "epochs": config.epochs,
        "presets": config.presets,
        "budget": config.budget.model_dump(mode="json"),
        "elapsed": past.elapsed,
        "trials": [_described(trial) for trial in past.trials.values()],
        "order": [trial.id for trial in ranked(past)],
        "front": [trial.id for trial in pareto(past, config.second)],
        "progress": _progress(past),
        "refused": [{"title": line["title"], "reason": line["reason"]} for line in past.refused],
        "importance": importance(past, config.epochs),
        "final": read_final(folder),
        "starts": [
            {key: event.get(key) for key in ("time", "git", "versions", "machine")}
            for event in read_events(folder)
            if event["kind"] == START
        ],
    }


def _described(trial: Trial) -> dict[str, Any]:
    return {
        "id": trial.id,
        "title": trial.title,
        "origin": trial.origin,
        "state": trial.state,
        "reason": trial.reason,
        "epoch": trial.epoch,
        "mse": trial.score if trial.reports else None,
        "curve": [(int(report["epoch"]), float(report["mse"])) for report in trial.reports],
        "seconds": trial.seconds,
        "flops": trial.flops,
        "cost": trial.cost,
        "parameters": trial.parameters,
        "candidate": trial.candidate,
    }


def _progress(past: Past) -> list[dict[str, Any]]:
    spent: dict[str, float] = {}
    found = []
    for line in past.lines:
        if line["kind"] == "report":
            spent[line["trial"]] = float(line["flops"])  # that of the trial so far
            found.append({"trial": line["trial"], "flops": sum(spent.values()), "mse": float(line["mse"])})
    return found


def _synthetic(folder: Path, past: Past, source: str) -> bool:
    """Whether the images show nothing real: as their index says; where that is gone, by the name of their source."""
    index = folder.parent / "stages" / str((past.task or {}).get("images")) / "index.json"
    return bool(read_json(index).get("synthetic")) if index.exists() else source.startswith("synthetic")
