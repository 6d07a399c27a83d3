"""What the table of every subset says in words: what each explanation adds to the others, and what sharing costs."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Any

from xinv.report.measures import Metric, metric_of
from xinv.report.rows import Leak, Scores, explanation_title

Errors = Mapping[frozenset[str], float]
"""Subset of the explanations -> mean squared error of the attack that was released it."""


def families(scores: Scores) -> dict[tuple[str, tuple[str, ...]], list[Mapping[str, Any]]]:
    """(inverter, its explanations) -> rows of every subset of them, the smallest first, then the smallest error."""
    found: dict[tuple[str, tuple[str, ...]], list[Mapping[str, Any]]] = {}
    for row in scores["rows"]:
        if row.get("group"):
            found.setdefault((str(row["inverter"]), tuple(row["group"])), []).append(row)
    return {
        key: sorted(rows, key=lambda row: (len(row["release"]), row["metrics"]["mse"]["mean"]))
        for key, rows in found.items()
    }


def words(group: Sequence[str], family: Sequence[Mapping[str, Any]], leaks: Mapping[str, Leak]) -> list[str]:
    """Sentences on one family of subsets. `leaks`: attack id -> its leak in the MSE.

    Differences between subsets are those of means, and said to be: paired intervals exist against the baseline alone.
    """
    metric = metric_of("mse")
    errors = {frozenset(row["release"]): row["metrics"]["mse"]["mean"] for row in family}
    said = [_added(metric, errors, group, name) for name in group]
    said.append(
        "These are differences of means over the same images and one inverter; intervals and tests are of the "
        "difference from the baseline alone."
    )
    nothing = next(row for row in family if not row["release"])
    if nothing["attack"] in leaks:
        said.append(_sharing(leaks[nothing["attack"]]))
    return said


def _added(metric: Metric, errors: Errors, group: Sequence[str], name: str) -> str:
    """What `name` does to the error as the only explanation, beside all others, and over all orders of adding."""
    title, others = explanation_title(name), frozenset(group) - {name}
    alone = errors[frozenset()] - errors[frozenset({name})]
    last = errors[others] - errors[others | {name}]
    beside = explanation_title(next(iter(others))) if len(others) == 1 else "all the others"
    mean = shapley(errors, group, name)
    return (
        f"{title} {_verb(alone)} the {metric.label} by {metric.format(abs(alone))} as the only explanation, "
        f"{_again(last, alone)}by {metric.format(abs(last))} beside {beside}, and {_again(mean, last)}by "
        f"{metric.format(abs(mean))} on average over the orders in which the explanations can be added (its Shapley "
        "value)."
    )


def _verb(reduction: float) -> str:
    return "lowers" if reduction >= 0 else "raises"


def _again(reduction: float, before: float) -> str:
    """The verb once more where the direction changes."""
    return "" if _verb(reduction) == _verb(before) else f"{_verb(reduction)} it "


def shapley(errors: Errors, group: Iterable[str], name: str) -> float:
    """The mean reduction of the error by adding `name`, over all orders of adding the explanations of `group` one by
    one (Shapley 1953). The values of a group add up to error(nothing) - error(everything)."""
    others = [other for other in group if other != name]
    total = 0.0
    for size in range(len(others) + 1):
        for before in map(frozenset, combinations(others, size)):
            total += (errors[before] - errors[before | {name}]) / comb(len(others), size)
    return total / (len(others) + 1)


def _sharing(leak: Leak) -> str:
    """The inverter of every subset, given nothing, beside the one that was trained for nothing else."""
    start = (
        f"With nothing released, the shared inverter has an MSE of {leak.metric.format(leak.score)}, “{leak.against}”"
    )
    start += f" {leak.metric.format(leak.baseline)}"
    if leak.worse:
        return (
            f"{start}: sharing one inverter costs {leak.metric.format(-leak.gain)} here, so leaks of the subsets may "
            "be measured too small."
        )
    if leak.shown:
        return f"{start}: the baseline is poorly trained, so leaks measured against it are too large."
    return f"{start}: no cost of sharing one inverter was shown."
