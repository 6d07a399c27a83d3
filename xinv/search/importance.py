"""Which of the searcher's choices decided how well trials came out: conditional PED-ANOVA, from the record alone."""

import random
import warnings
from collections.abc import Sequence
from typing import Any

from xinv.search.record import Past, Trial

LEAST = 20
"""Trials below which nothing is said: the best quarter must hold five, optuna's advice for this method."""
BEST_SHARE = 0.25
SHUFFLES = 99
CHANCE_SHARE = 0.95


def importance(past: Past, epochs: int) -> dict[str, Any]:
    """How far the parameters of the best quarter of trials are spread otherwise than those of all (PED-ANOVA: Watanabe
    et al., IJCAI 2023; with conditional parameters: Baba et al., KDD 2026), as a share of the sum over parameters.

    Trials are compared at one age: the greatest that LEAST of them have reached, since halving ends most before their
    last epoch. `chance` is what 95 % of random assignments of the same scores to the same trials stay below. The record
    holds no limits of the space: a parameter's range is that of its values in these trials, logarithmic where they are
    positive and span a factor of ten.

    Returns:
        {"trials": how many were compared, "epoch": the age, "epochs": that of finished trials, "rows": the most
        important first, each {"name", "share", "chance", "trials": those that have it}, "refusal": why there are none}.
    """
    tried = [one for one in past.trials.values() if one.state != "failed" and one.parameters and one.reports]
    ages = {int(report["epoch"]) for trial in tried for report in trial.reports}
    epoch = max((age for age in ages if sum(one.epoch >= age for one in tried) >= LEAST), default=0)
    compared = [one for one in tried if one.epoch >= epoch]
    found: dict[str, Any] = {"trials": len(compared), "epoch": epoch, "epochs": epochs, "rows": [], "refusal": ""}
    if not epoch:
        found["refusal"] = (
            f"{len(tried)} trials with parameters of the space were validated, and below {LEAST} the estimate would be "
            "noise"
        )
        return found
    rows = _rows(compared, [one.score_at(epoch) for one in compared])
    if not rows:
        found["refusal"] = f"no parameter sets the best quarter of {len(compared)} trials apart from the others"
    return {**found, "rows": rows}


def _rows(trials: Sequence[Trial], scores: Sequence[float]) -> list[dict[str, Any]]:
    parameters = [trial.parameters or {} for trial in trials]
    values: dict[str, list[Any]] = {}
    for one in parameters:
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    ranges = {name: _range(found) for name, found in values.items()}
    study = _study(parameters, ranges)
    raw = _evaluate(study, scores)
    whole = sum(raw.values())
    if not whole:
        return []
    order, chance = random.Random(0), {name: list[float]() for name in raw}
    for _ in range(SHUFFLES):
        shuffled = order.sample(list(scores), len(scores))
        for name, value in _evaluate(study, shuffled).items():
            chance[name].append(value)
    place = round(CHANCE_SHARE * (SHUFFLES + 1)) - 1
    rows = [
        {
            "name": name,
            "share": value / whole,
            "chance": sorted(chance[name])[place] / whole,
            "trials": len(values[name]),
        }
        for name, value in raw.items()
    ]
    return sorted(rows, key=lambda row: (-row["share"], row["name"]))


def _study(parameters: Sequence[dict[str, Any]], ranges: dict[str, Any]) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    for one in parameters:
        own = {name: ranges[name] for name in one}
        study.add_trial(optuna.trial.create_trial(params=one, distributions=own, value=0.0))
    return study


def _evaluate(study: Any, scores: Sequence[float]) -> dict[str, float]:
    """Importance by parameter, where the study's trials have these scores; lower is better."""
    from optuna.importance import PedAnovaImportanceEvaluator

    evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a parameter that few trials have counts for little, as it should
        found: dict[str, float] = evaluator.evaluate(study, target=lambda trial: scores[trial.number])
    return found


def _range(values: Sequence[Any]) -> Any:
    """The distribution that a parameter's values could come from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if any(isinstance(value, bool | str) or value is None for value in values):
        return CategoricalDistribution(sorted(set(values), key=repr))
    low, high = min(values), max(values)
    log = low > 0 and high >= 10 * low
    if all(isinstance(value, int) for value in values):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)
