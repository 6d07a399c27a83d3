"""What the scores say, in words: used by the page and by the terminal. Plain data in, plain data out."""

from collections.abc import Mapping
from typing import Any

from xinv.report.measures import METRICS, MINUS
from xinv.report.rows import (
    Leak,
    Scores,
    all_metrics,
    check,
    control_of,
    judges,
    leaks_of,
    level,
    main_metrics,
    ordered_rows,
    release_title,
    row_title,
    strongest,
    titles,
)

FEW_IMAGES = 100


def verdict(scores: Scores) -> str:
    """What the audit found, in plain sentences with numbers and intervals; the first one is the headline."""
    return " ".join(verdict_parts(scores))


def verdict_parts(scores: Scores) -> list[str]:
    """The sentences of `verdict`: the headline, then what supports or limits it."""
    check(scores)
    prefix = "On synthetic data: " if scores["data"].get("synthetic") else ""
    by_error = strongest(scores, "mse")
    if not by_error:
        return [f"{prefix}No leak was measured, because no attack with an explanation has been scored."]
    parts = _leak_parts(scores, by_error) if by_error[0].shown else _no_leak_parts(scores, by_error)
    worse = [leak.explanation for leak in by_error if leak.worse]
    if worse:
        parts.append(
            f"With {_listed(worse)} the attack did measurably worse than without: a sign of an attack that is not "
            "trained to its best, not of protection."
        )
    parts.append("This is what these attacks achieved, a lower bound of the risk: a stronger attack may do better.")
    return [prefix + parts[0], *parts[1:]]


def _leak_parts(scores: Scores, by_error: list[Leak]) -> list[str]:
    top, rest = by_error[0], by_error[1:]
    parts = [
        f"{top.explanation} {'leaks most' if rest else 'leaks'}: with it the attack reconstructs the images with "
        f"{top.percent} less squared error than from the prediction alone (MSE lower by {top.metric.format(top.gain)}, "
        f"{level(scores)} interval {top.interval}).",
        f"Over {top.n} victim images the mean squared error is {top.metric.format(top.score)} in place of "
        f"{top.metric.format(top.baseline)}.",
    ]
    also = [f"{leak.explanation} ({leak.percent})" for leak in rest if leak.shown]
    if also:
        parts.append(f"{_listed(also)} also {'lowers' if len(also) == 1 else 'lower'} the error.")
    close = [leak.explanation for leak in rest if leak.high >= top.low]
    if close:
        verb = "overlaps" if len(close) == 1 else "overlap"
        parts.append(
            f"The interval of {_listed(close)} {verb} with that of {top.explanation}: their order is not settled."
        )
    open_ones = [leak.explanation for leak in rest if not leak.shown and not leak.worse]
    if open_ones:
        parts.append(f"For {_listed(open_ones)} the interval includes zero: no leak was shown there.")
    return parts


def _no_leak_parts(scores: Scores, by_error: list[Leak]) -> list[str]:
    others = [leak for metric in all_metrics(scores)[1:] for leak in strongest(scores, metric.key) if leak.shown]
    top = by_error[0]
    count = f"any of the {len(by_error)} explanations" if len(by_error) > 1 else top.explanation
    closest = (
        f"closest is {top.explanation}, MSE {'lower' if top.gain >= 0 else 'higher'} by "
        f"{top.metric.format(abs(top.gain))}, {level(scores)} interval of the reduction {top.interval}, {top.n} images"
    )
    if not others:
        return [
            f"No leak was shown: with {count} no metric improves on the prediction alone by more than chance explains "
            f"({closest})."
        ]
    found = others[0]
    side = "lower" if found.metric.leak_direction == "lower" else "higher"
    gain = f"{found.metric.format(found.gain)} {found.metric.difference_unit}".strip()
    return [
        f"No explanation lowers the squared error by more than chance explains ({closest}), but with "
        f"{found.explanation} the {found.metric.label} is {side} by {gain} "
        f"({level(scores)} interval {found.interval}).",
        "One metric among several is weak evidence: look at the pictures and repeat with more images.",
    ]


def cautions(scores: Scores) -> list[str]:
    """What a careful reader should know before believing the numbers; empty when nothing stands out."""
    notes = []
    for leak in leaks_of(scores, "mse"):
        if leak.control and leak.explained and leak.shown:
            notes.append(
                f"The control “{leak.title}” also beats the prediction alone (MSE lower by "
                f"{leak.metric.format(leak.gain)}, {leak.interval}). It ought not to: part of the leak may not come "
                "from the image's own explanation."
            )
    rows = {row["attack"]: row for row in scores["rows"]}
    for attack in sorted({leak["baseline"] for leak in scores["leaks"]}):
        for row in scores["rows"]:
            if row["kind"] == "control" and not row["release"] and _below(row, rows[attack], "mse"):
                notes.append(
                    f"“{row_title(row)}” has less error than “{row_title(rows[attack])}”: the baseline is poorly "
                    "trained, so the leaks measured against it are too large."
                )
    notes += _evaluator_cautions(scores, rows)
    smallest = min((row["n"] for row in scores["rows"]), default=0)
    if 0 < smallest < FEW_IMAGES:
        notes.append(f"Only {smallest} images were scored: intervals are wide, and slightly too narrow at that.")
    return notes


def _evaluator_cautions(scores: Scores, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    evaluator = scores.get("evaluator") or {}
    accuracy = (evaluator.get("accuracy_on_originals") or {}).get("mean")
    if accuracy is None:
        return []
    notes, metric = [], METRICS["attack_accuracy_top1"]
    if accuracy < 2.0 * evaluator.get("chance", 0.0) or accuracy < 0.5:
        notes.append(
            f"The evaluator itself is right on only {metric.format(accuracy)}% of the originals: embedding similarity "
            "and attack accuracy say little here."
        )
    for attack in sorted({leak["baseline"] for leak in scores["leaks"]}):
        reached = rows[attack]["metrics"].get(metric.key, {}).get("mean")
        if reached is not None and reached >= 0.95 * accuracy:
            notes.append(
                f"Attack accuracy is saturated: {metric.format(reached)}% from the prediction alone, "
                f"{metric.format(accuracy)}% on the originals themselves. Read the other metrics for the leak."
            )
    return notes


def _below(row: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    return (
        key in row["metrics"]
        and key in other["metrics"]
        and row["metrics"][key]["mean"] < other["metrics"][key]["mean"]
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def summary_rows(scores: Scores) -> list[dict[str, str]]:
    """The table of the terminal, about 80 characters wide: one dict a row, column heading to text, headings all equal.

    Means of every metric, then the change of the error (MSE) against prediction only with its interval, as shares of
    prediction only's error.
    """
    check(scores)
    metrics, title = all_metrics(scores), titles(scores)
    leaks = {leak.attack: leak for leak in leaks_of(scores, "mse")}
    table = []
    for row in ordered_rows(scores):
        cells = {"Attack": title[row["attack"]] if row["kind"] != "control" else _short_control(row)}
        for metric in metrics:
            value = row["metrics"].get(metric.key)
            text = metric.format(value["mean"]) if value else ""
            cells[metric.short] = f"{text}%" if value and metric.unit == "%" else text
        leak = leaks.get(row["attack"])
        cells["Error change"] = _change(leak) if leak else ""
        table.append(cells)
    return table


def _short_control(row: Mapping[str, Any]) -> str:
    short = control_of(row).short
    return f"control: {short} {release_title(row)}" if row["release"] else f"control: {short}"


def _change(leak: Leak) -> str:
    """`−75% (−78 to −73)`: the change of the error itself, so that a leak reads as a minus."""
    if not leak.baseline:
        return ""
    change, low, high = (
        f"{-100.0 * value / leak.baseline:+.0f}".replace("-", MINUS) for value in (leak.gain, leak.high, leak.low)
    )
    return f"{change}% ({low} to {high})"
