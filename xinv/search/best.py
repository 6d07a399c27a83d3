"""What a search has found so far, from its record alone: while it runs, after a kill, or when it is over."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from xinv.errors import InputError
from xinv.files import write_atomic
from xinv.nets.design import InverterDesign
from xinv.overrides import dump_yaml, load_yaml
from xinv.search.comparison import standing
from xinv.search.record import TRIALS, Past, Trial, read
from xinv.search.settings import SearchConfig
from xinv.train.losses import LossSettings
from xinv.train.recipe import Recipe
from xinv.train.settings import TrainingSettings

BEST = "best.yaml"


def open_run(folder: Path) -> tuple[SearchConfig, Past]:
    """The configuration and the record of a search's run folder. InputError where it is none."""
    if not (folder / TRIALS).exists() or not (folder / "resolved.yaml").exists():
        kind = "a file" if folder.is_file() else "no folder of a search that has begun trials"
        raise InputError(f"{folder} is {kind}; expected a search's run folder, such as runs/digits-search.")
    return SearchConfig.model_validate(load_yaml(folder / "resolved.yaml")), read(folder)


def ranked(past: Past) -> list[Trial]:
    """Trials that were validated and did not fail: those that went to their end by their score, then the others by
    theirs (what was stopped early might have become better or worse; nobody knows)."""
    tried = [trial for trial in past.trials.values() if trial.reports and trial.state != "failed"]
    return sorted(tried, key=lambda trial: (trial.state != "finished", trial.score, trial.id))


def pareto(past: Past, second: Literal["flops", "parameters"] | None = None) -> list[Trial]:
    """Finished trials to which no other is at once as good and as cheap, the cheapest first.

    Args:
        second: what is cheap: FLOPs of training (also where a search has no second objective) or numbers learned.
    """
    price = second or "flops"
    finished = [trial for trial in past.trials.values() if trial.state == "finished" and trial.reports]
    found: list[Trial] = []
    for trial in sorted(finished, key=lambda one: (one.cost[price], one.score)):
        if not found or trial.score < found[-1].score:
            found.append(trial)
    return found


def recipe(config: SearchConfig, past: Past, trial: Trial) -> Recipe:
    """A trial as an audit can use it."""
    assert past.task is not None
    return Recipe(
        name=config.name,
        design=InverterDesign.model_validate(trial.candidate["design"]),
        training=TrainingSettings.model_validate(trial.candidate["training"]),
        loss=LossSettings.model_validate(trial.candidate["loss"]),
        channels=past.task["channels"],
        size=past.task["size"],
        classes=past.task["classes"],
        release=tuple(past.task["release"]),
        maps=tuple(tuple(shape) for shape in past.task["maps"]),
    )


def write_best(config: SearchConfig, past: Past, folder: Path) -> Path | None:
    """best.yaml in the run folder: the recipe of the best trial; None where no trial was validated yet."""
    order = ranked(past)
    if not order:
        return None
    best, path = order[0], folder / BEST
    words = (
        f"# Trial {best.id} of {len(past.trials)}: {best.title or best.origin}, {best.state} after {best.epoch} epochs,"
    )
    words += f" MSE {best.score:.6f} on the attacker's validation images.\n"
    words += f"# Use it: xinv audit CONFIG inverter={path} name=...\n"
    write_atomic(path, words + dump_yaml(recipe(config, past, best).model_dump(mode="json")))
    return path


def status(config: SearchConfig, past: Past, folder: Path) -> dict[str, Any]:
    """Plain values for the terminal or JSON: {"name", "second", "states", "refused", "elapsed", "budget", "best",
    "final"}.

    "final": "made", or "stale" where final.json is of another best; None where there is none.
    """
    order = ranked(past)
    return {
        "name": config.name,
        "second": config.second,
        "states": dict(Counter(trial.state for trial in past.trials.values())),
        "refused": len(past.refused),
        "elapsed": round(past.elapsed, 1),
        "budget": config.budget.model_dump(mode="json"),
        "best": described(order[0]) if order else None,
        "final": standing(folder, order),
    }


def described(trial: Trial) -> dict[str, Any]:
    """One trial as a row of plain values."""
    return {
        "trial": trial.id,
        "what": trial.title or trial.origin,
        "state": trial.state,
        "epoch": trial.epoch,
        "mse": trial.score if trial.reports else None,
        "parameters": trial.cost["parameters"],
        "flops": trial.flops,
        "seconds": trial.seconds,
        "reason": trial.reason,
    }


def live(past: Past, running: Collection[str], best: int = 6) -> list[Trial]:
    """Trials to look at while a search runs: those that are running, then the best so far."""
    now = [past.trials[name] for name in sorted(running)]
    return [*now, *[trial for trial in ranked(past) if trial.id not in running][:best]]


def rows(trials: Sequence[Trial]) -> list[dict[str, str]]:
    """Trials as a table's rows of text."""
    found = []
    for trial in trials:
        one = described(trial)
        found.append(
            {
                "trial": one["trial"],
                "what": one["what"],
                "state": one["state"],
                "epochs": str(one["epoch"]),
                "MSE": "" if one["mse"] is None else f"{one['mse']:.5f}",
                "parameters": f"{one['parameters']:,}",
                "TFLOP": f"{one['flops'] / 1e12:.3g}",
                "seconds": f"{one['seconds']:.0f}",
            }
        )
    return found
