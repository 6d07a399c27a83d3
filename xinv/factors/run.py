"""An analysis of factors, carried out: `xinv factors`.

Run from Python:

    from pathlib import Path
    from xinv.factors import run, settings

    found = run.run(settings.load(Path("configs/factors.yaml"), ["trials.at_once=2"]))
    for factor in found["factors"]:
        print(factor["title"], [setting["label"] for setting in factor["settings"]])
"""

import json
import shutil
from typing import Any

from xinv import audit
from xinv.audit import Screen, unseen
from xinv.base import trial_workers
from xinv.binding import bind, bind_folder
from xinv.config import UNBOUND as CARRIES
from xinv.factors.settings import FactorsConfig
from xinv.factors.table import table
from xinv.factors.trial import Trials as Expanded
from xinv.factors.trial import trials_of
from xinv.files import make_private, read_json, write_atomic
from xinv.keeping import kept_run
from xinv.overrides import dump_yaml
from xinv.parallel import disconnect
from xinv.plan.check import check_here
from xinv.stage import lock
from xinv.track import Tracker
from xinv.train.run import TrainingGroup
from xinv.trials.team import Team, Trials

UNBOUND = (("trials",), ("runs",), ("storage",), *(("base", section) for section in CARRIES))
"""Parts of resolved.yaml that may differ between two runs of one analysis: where it runs changes no result."""


def run(config: FactorsConfig, screen: Screen = unseen) -> dict[str, Any]:
    """Run an analysis of factors, or what is missing of it; a second call continues an interrupted one.

    Before anything is trained every trial is validated, its data source opened, its images built and its explanations
    held against its networks.

    Args:
        config: from `factors.settings.load`.
        screen: makes the context manager that shows one line of progress (`progress.Terminal.stage`).

    Returns:
        The content of factors.json (`factors.table`); RUNS/NAME/report.html shows it.

    Raises:
        InputError: the input is wrong. WorkError: trials could not be finished; the others are.
    """
    expanded = trials_of(config, config.name)
    bind_folder(config.folder, resolved(config, expanded), UNBOUND, "this analysis", expanded.base.storage)
    busy = f"{config.folder} is in use by another xinv process. Wait for it, or give this one another name (name=...)."
    with lock(config.folder / ".lock", busy), kept_run(expanded.base.storage, config.folder):
        for trial in expanded.configs.values():
            bind(trial)
        shown = config.model_dump(mode="json")
        tracker = Tracker(config.folder, expanded.base.track, config.name, shown, config.folder / "log.txt")
        try:
            tracker.check()
            _check_memory(config, expanded)
            work = _in_turn if config.trials.in_turn else _together
            work(config, expanded, tracker, screen)
            return _report(config, expanded, screen)
        finally:
            tracker.close()
            disconnect()
            shutil.rmtree(config.folder / "ray", ignore_errors=True)


def _check_memory(config: FactorsConfig, expanded: Expanded) -> None:
    """InputError where a training of a trial cannot fit into memory. Side by side, each trains on one rank."""
    workers = expanded.base.workers if config.trials.in_turn else trial_workers(config.trials, expanded.base.workers)
    check_here(
        {
            expanded.origins[name]: trial.model_copy(update={"workers": workers})
            for name, trial in expanded.configs.items()
            if not (trial.folder / "scores.json").exists()
        }
    )


def resolved(config: FactorsConfig, expanded: Expanded) -> dict[str, Any]:
    """The analysis with its base in it, every default and override resolved; `load` reads it."""
    return config.model_dump(mode="json") | {"base": expanded.base.model_dump(mode="json"), "overrides": []}


def _together(config: FactorsConfig, expanded: Expanded, tracker: Tracker, screen: Screen) -> None:
    """Trials side by side, each stage made once (`trials.team`)."""
    settings = trial_workers(config.trials, expanded.base.workers)
    team = Team(settings, config.folder / "log.txt", config.trials.at_once, config.trials.gpus)
    trials = Trials(expanded.configs, team, tracker, expanded.origins)
    with screen("Images") as progress:
        trials.run(trials.plan("images"), progress, "images")
        progress(1, 1, f"{len(trials.made)} made" if trials.made else "(kept)")
    made = len(trials.made)
    with screen("Trials") as progress:
        open_ones = trials.unfinished(progress)
        trials.run(open_ones, progress, "report")
        kept = len(expanded.configs) - len(open_ones)
        note = f"{len(expanded.configs)} trials, {len(trials.made) - made} stages made"
        progress(1, 1, f"{note}, {kept} trials kept" if kept and open_ones else note if open_ones else "(kept)")


def _in_turn(config: FactorsConfig, expanded: Expanded, tracker: Tracker, screen: Screen) -> None:
    """One trial after another, each training on all the ranks of the base's workers."""
    settings = expanded.base.workers
    trials = Trials(expanded.configs, Team(settings, config.folder / "log.txt"), tracker, expanded.origins)
    with TrainingGroup(settings, make_private(config.folder / "ray"), config.folder / "log.txt") as group:
        for name in trials.plan("images"):
            audit.run(expanded.configs[name], screen, "images", group)
        with screen("Trials") as progress:
            open_ones = trials.unfinished(progress)
            progress(1, 1, f"{len(expanded.configs)}, {len(open_ones)} to do")
        for name in open_ones:
            tracker.event("begin", stage=f"Trial: {expanded.origins[name]}", trial=name)
            audit.run(expanded.configs[name], screen, group=group)
            tracker.event("end", stage=f"Trial: {expanded.origins[name]}", trial=name)


def _report(config: FactorsConfig, expanded: Expanded, screen: Screen) -> dict[str, Any]:
    """factors.json and report.html in the run folder."""
    from xinv.report.factors import write_report  # matplotlib: not before it is needed

    scores = {name: read_json(trial.folder / "scores.json") for name, trial in expanded.configs.items()}
    found = table(config, expanded, scores)
    out, content = config.folder, json.dumps(found, indent=1, allow_nan=False) + "\n"
    copy = out / "factors.json"
    if copy.exists() and copy.read_text() == content and (out / "report.html").exists():
        return found
    with screen("Report") as progress:
        write_report(found, dump_yaml(resolved(config, expanded)), out / "report.html")
        write_atomic(copy, content)
        progress(1, 1, str(out / "report.html"))
    return found
