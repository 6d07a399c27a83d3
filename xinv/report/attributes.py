"""Attributes recovered, for readers: tables, a key figure, a sentence, cautions. Plain data in, plain data out.

A share of attributes read right misleads by itself: most people wear no glasses, and guessing so is mostly right. So
every figure stands beside the chance (the commonest value of the gallery, always guessed) and beside the ceiling (what
the evaluator reads on the originals).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from xinv.report import rows
from xinv.report.measures import METRICS, SINGLE, Metric, metric_of
from xinv.report.rows import Leak, Scores
from xinv.report.tables import Cell, Group, Line, Sheet, attack_lines, mean_cell

ALL = "attributes_recovered"
LITTLE = 0.25  # of the way from guessing to reading everything right: an evaluator that gets no further is a poor one
NAMED = 4  # attributes named in a sentence; more are counted


def readers(scores: Scores) -> list[Mapping[str, Any]]:
    """The evaluators that read attributes."""
    return [judge for judge in rows.judges(scores) if judge.get("predicts") == "attributes"]


def overview(scores: Scores) -> Sheet | None:
    """What every attack recovers on average over the attributes; None without an evaluator that reads any."""
    judges = readers(scores)
    if not judges:
        return None
    share = METRICS[ALL]
    found, notes = [], []
    for judge in judges:
        metric = metric_of(f"{ALL}{judge['suffix']}")
        originals = Line(
            "The originals themselves", "", "", 0, (mean_cell(metric, judge["accuracy_on_originals"]), Cell("–")), True
        )
        guess = Line("Guessing the commonest value", "", "", 0, (Cell(metric.format(judge["chance"])), Cell("–")), True)
        lines = [
            replace(line, cells=(*line.cells, _over_chance(metric, row)))
            for line, row in zip(attack_lines(scores, [metric]), rows.ordered_rows(scores), strict=True)
        ]
        found.append(Group(_by(judge, judges), (originals, guess, *lines)))
        notes += _notes(judge)
    headings = (f"{share.label} ({share.unit})", f"Over guessing ({share.difference_unit})")
    return Sheet(headings, tuple(found), tuple(dict.fromkeys(notes)))


def by_attribute(scores: Scores) -> list[Sheet]:
    """For each evaluator of attributes a table with a line an attribute: chance, ceiling, the prediction alone, and the
    explanation that adds most on average; the attributes that it adds most to come first.
    """
    return [_single(scores, judge) for judge in readers(scores)]


def _single(scores: Scores, judge: Mapping[str, Any]) -> Sheet:
    top = next(iter(rows.strongest(scores, f"{ALL}{judge['suffix']}")), None)
    alone, explained = _rows(scores, top)
    shown = [row for row in (alone, explained) if row is not None]
    headings = ["By guessing (%)", "On the originals (%)", *(f"{rows.release_title(row)} (%)" for row in shown)]
    lines: list[tuple[float, Line]] = []
    for one in judge["attributes"]:
        metric = metric_of(f"{SINGLE}:{one['name']}{judge['suffix']}")
        leaks = {leak.attack: leak for leak in rows.leaks_of(scores, metric.key)}
        leak = leaks.get(explained["attack"]) if explained else None
        cells = [Cell(metric.format(one["chance"])), mean_cell(metric, one["accuracy_on_originals"])]
        cells += [
            mean_cell(metric, row["metrics"].get(metric.key), leak if row is explained else None) for row in shown
        ]
        if explained:
            cells.append(Cell(_signed(metric, explained["metrics"][metric.key]["mean"] - one["chance"])))
        lines.append((-leak.gain if leak else 0.0, Line(one["name"], "", "", 0, tuple(cells))))
    if explained:
        headings.append("Over guessing (points)")
    ordered = tuple(line for _, line in sorted(lines, key=lambda pair: pair[0]))
    return Sheet(tuple(headings), (Group(_by(judge, readers(scores)), ordered),), tuple(_single_notes(judge)))


def _rows(scores: Scores, top: Leak | None) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The rows of the prediction alone and of the strongest attack with an explanation, where there are such."""
    by_attack = {row["attack"]: row for row in scores["rows"]}
    if top is None:
        plain = (row for row in rows.ordered_rows(scores) if row["kind"] != "control" and not row["release"])
        return next(plain, None), None
    baseline = next(leak["baseline"] for leak in scores["leaks"] if leak["attack"] == top.attack)
    return by_attack[baseline], by_attack[top.attack]


def _single_notes(judge: Mapping[str, Any]) -> list[str]:
    each = judge["attributes"]
    notes = []
    if len(each) > 1:
        notes.append("What is shown is corrected for the number of attacks, not for that of attributes.")
    blind = [one["name"] for one in each if one["accuracy_on_originals"]["low"] <= one["chance"]]
    if blind:
        notes.append(
            f"Not shown to be read better than by guessing on the originals themselves: {', '.join(blind)}. Their "
            "lines say little."
        )
    unseen = [f"{one['name']} {one['unseen']}" for one in each if one["unseen"]]
    if unseen:
        notes.append(
            f"Victims with a value that the gallery does not show, counted as not recovered: {', '.join(unseen)}."
        )
    return notes


def _notes(judge: Mapping[str, Any]) -> list[str]:
    told = ", ".join(
        f"{one['name']} ({', '.join(str(value) for value in one['values'])})" for one in judge["attributes"]
    )
    notes = [f"The evaluator {judge['name']} reads {told}."]
    if judge["left_out"]:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in judge["left_out"].items())
        notes.append(f"It was not asked to read {reasons}.")
    return notes


def _by(judge: Mapping[str, Any], judges: list[Mapping[str, Any]]) -> str:
    return f"By the evaluator {judge['name']}" if len(judges) > 1 else ""


def _over_chance(metric: Metric, row: Mapping[str, Any]) -> Cell:
    value = row.get("over_chance", {}).get(metric.key)
    if value is None:
        return Cell("–")
    return Cell(_signed(metric, value["mean"]), f"{metric.format(value['low'])} to {metric.format(value['high'])}")


def _signed(metric: Metric, value: float) -> str:
    return f"{'+' if value > 0 else ''}{metric.format(value)}"


# ---- in words ------------------------------------------------------------------------------------------------------


def sentences(scores: Scores) -> list[str]:
    """Whether an explanation gives away attributes, by the first evaluator that reads any; empty without one."""
    judge = next(iter(readers(scores)), None)
    top = next(iter(rows.strongest(scores, f"{ALL}{judge['suffix']}")), None) if judge else None
    if judge is None or top is None:
        return []
    names = [one["name"] for one in judge["attributes"]]
    what = ", ".join(names) if len(names) <= NAMED else f"{len(names)} of them"
    metric = top.metric
    sentence = (
        f"Attributes that the target never predicts ({what}) are read right in {metric.format(top.score)}% of cases "
        f"with {top.explanation}, {metric.format(top.baseline)}% with the prediction alone, "
        f"{metric.format(judge['chance'])}% by guessing and "
        f"{metric.format(judge['accuracy_on_originals']['mean'])}% on the originals"
    )
    if not top.shown:
        return [f"{sentence}: no gain from the explanation was shown."]
    gain = f"({metric.format(top.gain)} points more, {rows.level(scores)} interval {top.interval})"
    row = next(row for row in scores["rows"] if row["attack"] == top.attack)
    if row["over_chance"][metric.key]["low"] > 0.0:
        return [f"{sentence} {gain}."]
    return [f"{sentence} {gain}; more than anybody would guess was not shown."]


def cautions(scores: Scores) -> list[str]:
    """Evaluators of attributes that can hardly read them on the originals."""
    metric = METRICS[ALL]
    return [
        f"The evaluator {judge['name']} reads the attributes right on {metric.format(accuracy)}% of the originals, "
        f"where guessing gets {metric.format(judge['chance'])}%: what it reads in reconstructions says little."
        for judge in readers(scores)
        for accuracy in [judge["accuracy_on_originals"]["mean"]]
        if accuracy - judge["chance"] < LITTLE * (1.0 - judge["chance"])
    ]


def key_figure(scores: Scores) -> tuple[str, str, str] | None:
    """Value, label and detail of the most that an attack recovers; None without an evaluator of attributes."""
    judge = next(iter(readers(scores)), None)
    key = f"{ALL}{judge['suffix']}" if judge else ""
    attacks = [row for row in scores["rows"] if row["kind"] != "control" and key in row["metrics"]]
    if judge is None or not attacks:
        return None
    metric = metric_of(key)
    top = max(attacks, key=lambda row: float(row["metrics"][key]["mean"]))
    value = top["metrics"][key]
    detail = (
        f"{rows.row_title(top)}, {metric.format(value['low'])} to {metric.format(value['high'])}; by guessing "
        f"{metric.format(judge['chance'])}%, on the originals {metric.format(judge['accuracy_on_originals']['mean'])}%"
    )
    return f"{metric.format(value['mean'])}%", "most attributes recovered", detail
