"""What the scores say, in words: used by the page and by the terminal. Plain data in, plain data out."""

from collections.abc import Mapping
from typing import Any

from xinv.report import attributes
from xinv.report.measures import METRICS, MINUS
from xinv.report.rows import (
    Leak,
    Scores,
    all_metrics,
    check,
    compared,
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
FEW_IDENTITIES = 20
UNTRAINED = "random_target:"  # what an attack's id begins with where its explanation is an untrained network's
DISAGREEMENT = 0.1  # how much less often evaluators agree on reconstructions than on originals before it is said


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
    parts += [*_person_parts(scores), *attributes.sentences(scores), *_imagined_parts(scores)]
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
        parts.append(f"For {_listed(open_ones)} no leak was shown.")
    return parts


def _no_leak_parts(scores: Scores, by_error: list[Leak]) -> list[str]:
    # Of attributes their mean alone: among forty tested apart some seem to gain by luck.
    metrics = [metric for metric in all_metrics(scores)[1:] if not metric.attribute]
    others = [leak for metric in metrics for leak in strongest(scores, metric.key) if leak.shown]
    top = by_error[0]
    count = f"any of the {len(by_error)} explanations" if len(by_error) > 1 else top.explanation
    closest = (
        f"closest is {top.explanation}, MSE {'lower' if top.gain >= 0 else 'higher'} by "
        f"{top.metric.format(abs(top.gain))}, {level(scores)} interval of the reduction {top.interval}, {top.n} images"
    )
    if not others:
        parts = [
            f"No leak was shown: with {count} no metric improves on the prediction alone by more than chance explains "
            f"({closest})."
        ]
        if top.detectable is not None:
            parts.append(
                f"A reduction of the MSE by {top.metric.format(top.detectable)} would have been found in four of five "
                "such audits; a smaller one may well be there."
            )
        return parts
    found = others[0]
    side = "lower" if found.metric.leak_direction == "lower" else "higher"
    gain = f"{found.metric.format(found.gain)} {found.metric.difference_unit}".strip()
    return [
        f"No explanation lowers the squared error by more than chance explains ({closest}), but with "
        f"{found.explanation} the {found.metric.label} is {side} by {gain} "
        f"({level(scores)} interval {found.interval}).",
        "One metric among several is weak evidence: look at the pictures and repeat with more images.",
    ]


def _person_parts(scores: Scores) -> list[str]:
    """Whether people were found again in a gallery, where that was measured."""
    found = scores.get("reidentification")
    leaks = strongest(scores, "reidentification_rank1")
    if not found or not leaks:
        return []
    top = leaks[0]
    sentence = (
        f"Among {found['identities']:,} people, {top.metric.format(top.score)}% of the reconstructions lead to the "
        f"right one with {top.explanation}, {top.metric.format(top.baseline)}% with the prediction alone"
    )
    if top.shown:
        return [f"{sentence} ({top.metric.format(top.gain)} points more, {level(scores)} interval {top.interval})."]
    return [f"{sentence}: no difference was shown."]


def _imagined_parts(scores: Scores) -> list[str]:
    """What attacks achieve that were given no explanation and imagine one."""
    leaks = [leak for leak in leaks_of(scores, "mse") if not leak.explained and not leak.control]
    if not leaks:
        return []
    top = max(leaks, key=lambda leak: leak.gain)
    if top.shown:
        return [
            f"Even without a released explanation, “{top.title}” reconstructs with {top.percent} less squared error "
            f"than “{top.against}”."
        ]
    return [f"An imagined explanation was not shown to help: “{top.title}” against “{top.against}”, {top.interval}."]


def cautions(scores: Scores) -> list[str]:
    """What a careful reader should know before believing the numbers; empty when nothing stands out."""
    notes = []
    for leak in leaks_of(scores, "mse", subsets=True):
        if leak.foreign and leak.shown:
            notes.append(
                f"The control “{leak.title}” also beats the prediction alone (MSE lower by "
                f"{leak.metric.format(leak.gain)}, {leak.interval}). It ought not to: part of the leak may not come "
                "from the image's own explanation."
            )
        if leak.control and not leak.explained and leak.shown:
            notes.append(
                f"“{leak.title}” has less error than “{leak.against}”: the baseline is poorly trained, so the leaks "
                "measured against it are too large."
            )
    notes += [*_untrained_cautions(scores), *_evaluator_cautions(scores), *attributes.cautions(scores)]
    smallest = min((row["n"] for row in scores["rows"]), default=0)
    if 0 < smallest < FEW_IMAGES:
        notes.append(f"Only {smallest} images were scored: intervals are wide, and slightly too narrow at that.")
    elif scores.get("identities", FEW_IDENTITIES) < FEW_IDENTITIES:
        notes.append(f"Only {scores['identities']} people are behind the images: intervals are too narrow.")
    return notes + _resample_cautions(scores)


def _untrained_cautions(scores: Scores) -> list[str]:
    """How much of each leak is there without any training of the target."""
    leaks = {leak.attack: leak for leak in leaks_of(scores, "mse")}
    notes = []
    for attack, untrained in leaks.items():
        own = leaks.get(attack.removeprefix(UNTRAINED))
        if attack.startswith(UNTRAINED) and untrained.shown and own is not None and own.shown:
            share = untrained.gain / own.gain
            compared = "as much as" if share > 0.995 else f"{100.0 * share:.0f}% of what"
            notes.append(
                f"An untrained network's explanation leaks too: “{untrained.title}” lowers the MSE by "
                f"{untrained.metric.format(untrained.gain)} ({untrained.interval}), {compared} “{own.title}” does. "
                "So much is to be had from passing the image through any such network, whatever the target has learned."
            )
    return notes


def _resample_cautions(scores: Scores) -> list[str]:
    """Where so many attacks are compared that no p-value could pass Holm's correction."""
    tested = compared(scores)
    alpha, resamples = 1.0 - scores.get("level", 0.95), scores.get("resamples", 0)
    if not tested or tested / (resamples + 1) <= alpha:
        return []
    return [
        f"{resamples} resamples are too few for {tested} attacks: after Holm's correction no leak could be shown. "
        f"Score again with score.resamples of {round(2 * tested / alpha)} or more."
    ]


def _evaluator_cautions(scores: Scores) -> list[str]:
    rows = {row["attack"]: row for row in scores["rows"]}
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
    notes += _disagreement(scores)
    for attack in sorted({leak["baseline"] for leak in scores["leaks"]}):
        reached = rows[attack]["metrics"].get(metric.key, {}).get("mean")
        if rows[attack]["kind"] != "control" and reached is not None and reached >= 0.95 * accuracy:
            notes.append(
                f"Attack accuracy is saturated: {metric.format(reached)}% from the prediction alone, "
                f"{metric.format(accuracy)}% on the originals themselves. Read the other metrics for the leak."
            )
    return notes


def _disagreement(scores: Scores) -> list[str]:
    """Whether the evaluators part ways over the attack that the first one credits most."""
    on_originals = (judges(scores) or [{}])[0].get("agreement_on_originals", {}).get("same_guess", {}).get("mean")
    attacks = [row for row in scores["rows"] if row["kind"] != "control" and "same_guess" in row.get("agreement", {})]
    if on_originals is None or not attacks:
        return []
    metric = METRICS["attack_accuracy_top1"]
    best = max(attacks, key=lambda row: row["metrics"][metric.key]["mean"])
    agreed = best["agreement"]["same_guess"]["mean"]
    if agreed >= on_originals - DISAGREEMENT:
        return []
    return [
        f"The evaluators agree on {metric.format(agreed)}% of the reconstructions of “{row_title(best)}” and on "
        f"{metric.format(on_originals)}% of the originals: part of its attack accuracy may be in the eye of one "
        "evaluator."
    ]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def summary_rows(scores: Scores) -> list[dict[str, str]]:
    """The table of the terminal, about 80 characters wide: one dict a row, column heading to text, headings all equal.

    Means of every metric of the main tables, then the change of the error (MSE) against the baseline with its interval,
    as shares of the baseline's error.
    """
    check(scores)
    metrics, title = main_metrics(scores), titles(scores)
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
    if "title" in row:
        return f"control: {row['title']}"
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
