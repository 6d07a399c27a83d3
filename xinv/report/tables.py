"""The tables of the report: leaks, scores, what further evaluators say, who was found in the gallery."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xinv.report import rows
from xinv.report.measures import METRICS, Metric, metric_of, metrics_of
from xinv.report.rows import Leak, Scores
from xinv.report.subsets import families, words

AGREEMENT = {
    "same_guess": "Same first guess",
    "all_right": "All right",
}


@dataclass(frozen=True)
class Cell:
    """A number as text with its interval, and in some tables with its gain over the baseline; `shown` marks a leak that
    was shown."""

    text: str
    interval: str = ""
    shown: bool = False
    gain: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a table."""

    title: str
    detail: str
    released: str
    n: int
    cells: tuple[Cell, ...]
    control: bool = False


@dataclass(frozen=True)
class Group:
    """Lines of a table under one heading."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Sheet:
    """A table of its own section: headings, lines in groups, and notes below it."""

    headings: tuple[str, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]


def between(metric: Metric, value: Mapping[str, float]) -> str:
    """An interval as text."""
    return f"{metric.format(value['low'])} to {metric.format(value['high'])}"


# ---- leaks ---------------------------------------------------------------------------------------------------------


def leak_metrics(scores: Scores) -> list[Metric]:
    """The metrics of the leaks that the main table shows."""
    return [metric for metric in metrics_of(leak["metrics"] for leak in scores["leaks"]) if metric.headline]


def gain_heading(metric: Metric) -> str:
    """`MSE reduction`, `SSIM gain`: what a positive number in a table of leaks is."""
    word = "gain" if metric.leak_direction == "higher" else "reduction"
    unit = f" ({metric.difference_unit})" if metric.difference_unit else ""
    return f"{metric.label} {word}{unit}"


def leak_lines(scores: Scores) -> list[Line]:
    """The table of leaks, a line an attack."""
    metrics = leak_metrics(scores)
    by_attack: dict[str, dict[str, Leak]] = {}
    for metric in metrics:
        for leak in rows.leaks_of(scores, metric.key):
            by_attack.setdefault(leak.attack, {})[metric.key] = leak
    several = len({leak["baseline"] for leak in scores["leaks"]}) > 1
    lines = []
    for found in by_attack.values():
        some = next(iter(found.values()))
        cells = tuple(leak_cell(found[metric.key]) if metric.key in found else Cell("–") for metric in metrics)
        against = f"against {some.against}" if several else ""
        lines.append(Line(some.title, against, "", some.n, cells, some.control))
    return lines


def leak_cell(leak: Leak) -> Cell:
    """The gain with its interval."""
    return Cell(_signed(leak), leak.interval, leak.shown)


def _signed(leak: Leak) -> str:
    return f"{'+' if leak.gain > 0 else ''}{leak.metric.format(leak.gain)}"


def detectable(scores: Scores) -> list[str]:
    """`MSE 0.0012` for each metric of the main table: the largest minimum detectable effect of any attack."""
    found = []
    for metric in leak_metrics(scores):
        leaks = [leak for leak in rows.leaks_of(scores, metric.key) if not leak.control]
        effects = [leak.detectable for leak in leaks if leak.detectable is not None]
        if effects:
            found.append(f"{metric.label} {metric.format(max(effects))} {metric.difference_unit}".strip())
    return found


# ---- scores --------------------------------------------------------------------------------------------------------


def groups(scores: Scores) -> list[Group]:
    """Attacks by explanation (a heading only where there are several), controls in a group of their own at the end."""
    metrics, title = rows.main_metrics(scores), rows.titles(scores)
    grouped: dict[str, list[Line]] = {}
    ordered = rows.ordered_rows(scores)
    plain = (row for row in ordered if row["kind"] != "control" and "title" not in row)
    size = Counter(tuple(row["release"]) for row in plain)
    for row in ordered:
        control = row["kind"] == "control"
        heading = "Controls, to compare with" if control else row.get("title") or rows.release_title(row)
        cells = tuple(mean_cell(metric, row["metrics"].get(metric.key)) for metric in metrics)
        inverter = str(row["inverter"] or "")
        alone = control or "title" in row or size[tuple(row["release"])] == 1
        name, detail = (title[row["attack"]], inverter) if alone else (inverter or row["attack"], "")
        detail = "" if detail.lower() == name.lower() else detail
        line = Line(name, detail, _bytes(row.get("released_bytes")), row["n"], cells, control)
        grouped.setdefault(heading, []).append(line)
    return [
        Group(heading if len(lines) > 1 or lines[0].control else "", tuple(lines)) for heading, lines in grouped.items()
    ]


def control_notes(scores: Scores) -> list[tuple[str, str]]:
    """What the quotient and each kind of control in the table are for."""
    notes = dict([rows.QUOTIENT] if any(row["inverter"] == "quotient" for row in scores["rows"]) else [])
    for row in rows.ordered_rows(scores):
        control = rows.control_of(row)
        if row["kind"] == "control" and control.note:
            notes[control.title] = control.note + _without_partner(row)
    return list(notes.items())


def _without_partner(row: Mapping[str, Any]) -> str:
    count = row.get("without_partner", 0)
    if not count:
        return ""
    return f" ({count:,} of {row['n']:,} images have no other of their label and took one of another label)"


def mean_cell(metric: Metric, value: Mapping[str, float] | None, leak: Leak | None = None) -> Cell:
    """A mean with its interval, and with `leak` the gain over the baseline; a dash where there is no value."""
    if value is None:
        return Cell("–")
    gain = "" if leak is None else f"{_signed(leak)} ({leak.interval})"
    return Cell(metric.format(value["mean"]), between(metric, value), leak is not None and leak.shown, gain)


def _bytes(count: float | None) -> str:
    if count is None:
        return "–"
    return f"{count:,.0f} B" if count < 10_000 else f"{count / 1024:,.1f} KiB"


# ---- every subset of a release ---------------------------------------------------------------------------------------


def subsets(scores: Scores) -> list[tuple[str, Sheet]]:
    """(title, table) of each inverter that was scored on every subset of what could be released: a line a subset."""
    metrics = [metric for metric in map(metric_of, ("mse", "ssim")) if metric in rows.main_metrics(scores)]
    leaks = {leak.attack: leak for leak in rows.leaks_of(scores, "mse", subsets=True)}
    headings = ("Released per image", *(metric.heading for metric in metrics), gain_heading(metric_of("mse")))
    found = []
    for (inverter, group), family in families(scores).items():
        lines = []
        for row in family:
            title = " + ".join(map(rows.explanation_title, row["release"])) or "Nothing but the prediction"
            leak = leaks.get(row["attack"])
            cells = (
                Cell(_bytes(row.get("released_bytes"))),
                *(mean_cell(metric, row["metrics"].get(metric.key)) for metric in metrics),
                Cell("–") if leak is None else leak_cell(leak),
            )
            lines.append(Line(title, "", "", row["n"], cells, row["kind"] == "control"))
        name = f"{' + '.join(map(rows.explanation_title, group))} · {inverter}"
        found.append((name, Sheet(headings, (Group("", tuple(lines)),), tuple(words(group, family, leaks)))))
    return found


# ---- further evaluators --------------------------------------------------------------------------------------------


def opinions(scores: Scores) -> Sheet | None:
    """What every evaluator says of every attack, and how far they agree; None for a single one.

    Embedding similarity gives way to top-5 accuracy where there is one: with both the table would not fit a page.
    """
    judges = rows.judges(scores)
    if len(judges) < 2:
        return None
    present = {metric.key for metric in rows.all_metrics(scores)}
    if "attack_accuracy_top5" in present:
        present = {key for key in present if not key.startswith("embedding_similarity")}
    asked = [
        (metric_of(f"{base.key}{judge['suffix']}"), judge["name"])
        for base in METRICS.values()
        if base.about == "class"
        for judge in judges
        if f"{base.key}{judge['suffix']}" in present
    ]
    share = METRICS["attack_accuracy_top1"]
    agreed = [name for name in AGREEMENT if any(name in row.get("agreement", {}) for row in scores["rows"])]
    units = {"%": " (%)"}
    headings = [
        f"{METRICS[metric.key.partition(':')[0]].label}, {name}{units.get(metric.unit, '')}" for metric, name in asked
    ]
    known = {f"{share.key}{judge['suffix']}": judge["accuracy_on_originals"] for judge in judges}
    known |= {f"attack_accuracy_top5{judge['suffix']}": judge.get("top5_accuracy_on_originals") for judge in judges}
    agreement = judges[0].get("agreement_on_originals", {})
    originals = Line(
        "The originals themselves",
        "",
        "",
        0,
        tuple(mean_cell(metric, known.get(metric.key)) for metric, _ in asked)
        + tuple(mean_cell(share, agreement.get(name)) for name in agreed),
        control=True,
    )
    lines = attack_lines(scores, [metric for metric, _ in asked], agreed)
    notes = (
        "“All right” is the share of the reconstructions that every evaluator takes for the true class: what remains "
        "when no single one is believed.",
    )
    headings += [f"{AGREEMENT[name]} (%)" for name in agreed]
    return Sheet(tuple(headings), (Group("", (originals, *lines)),), notes if "all_right" in agreed else ())


def attack_lines(scores: Scores, metrics: Sequence[Metric], agreed: Sequence[str] = ()) -> list[Line]:
    """A line a row of the scores: the means in `metrics` with their gains, and the agreement of the evaluators."""
    leaks = {metric.key: {leak.attack: leak for leak in rows.leaks_of(scores, metric.key)} for metric in metrics}
    share, title = METRICS["attack_accuracy_top1"], rows.titles(scores)
    lines = []
    for row in rows.ordered_rows(scores):
        cells = [
            mean_cell(metric, row["metrics"].get(metric.key), leaks[metric.key].get(row["attack"]))
            for metric in metrics
        ]
        cells += [mean_cell(share, row.get("agreement", {}).get(name)) for name in agreed]
        lines.append(Line(title[row["attack"]], "", "", row["n"], tuple(cells), row["kind"] == "control"))
    return lines


# ---- re-identification ---------------------------------------------------------------------------------------------


def people(scores: Scores) -> Sheet | None:
    """Whom the evaluators find in the gallery; None where that was not measured."""
    facts: Mapping[str, Any] | None = scores.get("reidentification")
    metrics = [metric for metric in rows.all_metrics(scores) if metric.about == "person"]
    if not facts or not metrics:
        return None
    bases = [metric for metric in METRICS.values() if any(_base(one) == metric.key for one in metrics)]
    judges = [judge for judge in rows.judges(scores) if any(one.evaluator == judge["suffix"][1:] for one in metrics)]
    found = []
    for judge in judges:
        own = [metric_of(f"{base.key}{judge['suffix']}") for base in bases]
        ceiling = tuple(mean_cell(metric, facts["originals"].get(metric.key)) for metric in own)
        lines = [Line("The originals themselves", "", "", 0, ceiling, control=True), *attack_lines(scores, own)]
        found.append(Group(f"By the evaluator {judge['name']}" if len(judges) > 1 else "", tuple(lines)))
    ranks = [int(base.key.rpartition("rank")[2]) for base in bases if "rank" in base.key]
    chance = ", ".join(f"{METRICS['attack_accuracy_top1'].format(k / facts['identities'])}% at rank {k}" for k in ranks)
    notes = [
        f"{facts['identities']:,} people, {facts['gallery_images']:,} images in the gallery. By chance alone: {chance}."
    ]
    rate = facts["false_accept_rate"]
    if rate is not None:
        why = (
            ""
            if rate <= facts["false_accept_rate_wanted"]
            else (
                f", the smallest that {facts['impostor_pairs']:,} pairs with strangers resolve"
                f" ({facts['false_accept_rate_wanted']:g} was asked for)"
            )
        )
        notes.append(f"Verification: the threshold lets strangers pass at a rate of {rate:.2g}{why}.")
    headings = tuple(f"{base.label} ({base.unit})" for base in bases)
    return Sheet(headings, tuple(found), tuple(notes))


def _base(metric: Metric) -> str:
    return metric.key.partition(":")[0]
