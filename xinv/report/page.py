"""The report: one HTML file that holds everything it shows and loads nothing from anywhere."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from xinv.files import write_atomic
from xinv.report import attributes, figures, rows, summary, tables
from xinv.report.figures import Panel
from xinv.report.gallery import gallery
from xinv.report.measures import METRICS
from xinv.report.rows import Scores
from xinv.report.summary import summary_rows, verdict
from xinv.report.tables import between

__all__ = ["summary_rows", "verdict", "write_report"]


@dataclass(frozen=True)
class Card:
    """A key figure."""

    value: str
    label: str
    detail: str


@dataclass(frozen=True)
class RiskPanel:
    """How the gain is spread over people or images: a chart, and a line of words with its colour for each attack."""

    heading: str
    picture: str
    description: str
    lines: tuple[tuple[str, str, str], ...]  # colour, title, words
    by: str


def write_report(scores: Scores, pictures: Path, settings_yaml: str, path: Path) -> None:
    """Write the report of an audit to `path`, atomically, as one self-contained HTML page. Pictures that are too large
    for it are reduced there, and lie in the folder `pictures` beside it in full size.

    `scores` is the content of scores.json, `pictures` the pictures.npz beside it (`gallery`), `settings_yaml` is shown
    as it is. InputError when one is missing, damaged or of another schema.
    """
    rows.check(scores)
    parts = summary.verdict_parts(scores)
    content = (
        templates()
        .get_template("page.html.j2")
        .render(
            audit=scores["audit"],
            synthetic=bool(scores["data"].get("synthetic")),
            headline=parts[0],
            support=parts[1:],
            cautions=summary.cautions(scores),
            cards=_cards(scores),
            panels=_panels(scores),
            risk=_risk_panel(scores),
            leak_metrics=[tables.gain_heading(metric) for metric in tables.leak_metrics(scores)],
            leak_lines=tables.leak_lines(scores),
            corrected=rows.compared(scores),
            detectable=tables.detectable(scores),
            gallery=gallery(scores, pictures, figures.Beside(path.parent / "pictures")),
            scale={"signed": figures.scale(True), "unsigned": figures.scale(False)},
            metrics=rows.main_metrics(scores),
            explained_metrics=[
                metric for metric in rows.all_metrics(scores) if not metric.evaluator and not metric.attribute
            ],
            groups=tables.groups(scores),
            control_notes=tables.control_notes(scores),
            subsets=tables.subsets(scores),
            opinions=tables.opinions(scores),
            people=tables.people(scores),
            attributes=attributes.overview(scores),
            by_attribute=attributes.by_attribute(scores),
            level=rows.level(scores),
            alpha=f"{100.0 * (1.0 - scores.get('level', 0.95)):g}%",
            clustered=_clustered(scores),
            seeds=rows.seeds(scores),
            data=list(flat(scores["data"])),
            data_line=data_line(scores),
            settings_yaml=settings_yaml,
            provenance=list(flat(scores.get("provenance", {}))),
        )
    )
    write_atomic(path, content)


def templates() -> Environment:
    """The page templates of this folder."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# ---- key figures ---------------------------------------------------------------------------------------------------


def _cards(scores: Scores) -> list[Card]:
    by_error = rows.strongest(scores, "mse")
    cards = []
    if by_error:
        top, corrected = by_error[0], rows.compared(scores)
        shown = sum(leak.shown for leak in by_error)
        interval = f"MSE {'lower' if top.gain >= 0 else 'higher'} by {top.metric.format(abs(top.gain))}"
        cards.append(
            Card(
                f"−{top.percent}",
                f"error with {top.explanation}, against prediction only",
                f"{interval}, {top.interval}",
            )
            if top.shown
            else Card("None shown", "leak in squared error", f"closest: {top.explanation}, {interval}")
        )
        cards.append(
            Card(
                f"{shown} of {len(by_error)}",
                "explanations shown to leak",
                f"the MSE difference excludes zero{', after Holm’s correction' if corrected > 1 else ''}",
            )
        )
    cards += _accuracy_cards(scores)
    recovered = attributes.key_figure(scores)
    if recovered:
        cards.append(Card(*recovered))
    scored = sorted({row["n"] for row in scores["rows"]})
    if scored:
        range_text = f"{scored[0]:,}" if len(scored) == 1 else f"{scored[0]:,} to {scored[-1]:,}"
        cards.append(Card(range_text, "victim images scored", "used for nothing else"))
    return cards


def _accuracy_cards(scores: Scores) -> Iterator[Card]:
    person = METRICS["reidentification_rank1"]
    metric = METRICS["attack_accuracy_top1"]
    best = person if any(person.key in row["metrics"] for row in scores["rows"]) else metric
    label = "highest re-identification, rank 1" if best is person else "highest attack accuracy"
    attacks = [row for row in scores["rows"] if row["kind"] != "control" and best.key in row["metrics"]]
    evaluator = scores.get("evaluator") or {}
    if attacks:
        top = max(attacks, key=lambda row: row["metrics"][best.key]["mean"])
        alone = [row for row in attacks if not row["release"]]
        detail = f"{rows.row_title(top)}, {between(best, top['metrics'][best.key])}"
        if alone:
            detail += f"; prediction only {best.format(alone[0]['metrics'][best.key]['mean'])}%"
        yield Card(f"{best.format(top['metrics'][best.key]['mean'])}%", label, detail)
    if evaluator.get("accuracy_on_originals"):
        value = evaluator["accuracy_on_originals"]
        detail = f"{between(metric, value)}; the most an attack can be credited with"
        if "chance" in evaluator:
            detail += f"; chance {metric.format(evaluator['chance'])}%"
        yield Card(f"{metric.format(value['mean'])}%", "evaluator accuracy on originals", detail)
    target = (scores.get("target") or {}).get("accuracy")
    if target:
        yield Card(
            f"{metric.format(target['mean'])}%", "target accuracy", f"{between(metric, target)}, the network audited"
        )


# ---- charts --------------------------------------------------------------------------------------------------------


def _panels(scores: Scores) -> list[Panel]:
    """A chart a metric of the main table; where people were searched in a gallery, one of the first guesses too."""
    metrics = tables.leak_metrics(scores)
    first = METRICS["reidentification_rank1"]
    if any(first.key in leak["metrics"] for leak in scores["leaks"]):
        metrics = [*metrics, first]
    panels = []
    for metric in metrics:
        drawn = [leak for leak in rows.leaks_of(scores, metric.key) if leak.drawn]
        bars = [
            figures.Bar(leak.title, leak.gain, leak.low, leak.high, leak.significant, leak.control) for leak in drawn
        ]
        description = "; ".join(f"{leak.title} {metric.format(leak.gain)} ({leak.interval})" for leak in drawn)
        panels.append(Panel(tables.gain_heading(metric), figures.leak_chart(metric, bars), description))
    return panels


def _risk_panel(scores: Scores) -> RiskPanel | None:
    """The risk of people, or of images where people do not repeat, for the strongest attack on each explanation."""
    risk = scores.get("risk")
    by_attack = {one["attack"]: one for one in (risk or {}).get("attacks", ())}
    strongest = [leak for leak in rows.strongest(scores, "mse") if leak.attack in by_attack][: len(figures.CURVES)]
    if not risk or not strongest:
        return None
    percent, by = METRICS["attack_accuracy_top1"], "people" if risk["by"] == "identity" else "images"
    curves, lines = [], []
    for leak, (colour, _) in zip(strongest, figures.CURVES, strict=False):
        found = by_attack[leak.attack]
        curves.append(found["percentiles"])
        worst, above = found["worst_decile"], found["above"]
        words = (
            f"{percent.format(worst['mean'])}% in the worst-off tenth ({between(percent, worst)}); above "
            f"{100 * risk['threshold']:g}% for {percent.format(above['mean'])}% of the {by} ({between(percent, above)})"
        )
        lines.append((colour, leak.explanation, words))
    return RiskPanel(
        f"Error removed, {'person by person' if by == 'people' else 'image by image'}",
        figures.risk_chart(curves, risk["threshold"], by),
        "; ".join(f"{title} {words}" for _, title, words in lines),
        tuple(lines),
        by,
    )


def _clustered(scores: Scores) -> bool:
    """Whether people repeat among the victims, so that intervals are over people."""
    if "identities" in scores and "images" in scores:
        return bool(scores["identities"] < scores["images"])
    return bool(scores["data"].get("disjoint") == "identity")


# ---- data and provenance -------------------------------------------------------------------------------------------


def data_line(scores: Scores) -> str:
    """The images in a few words."""
    data = scores["data"]
    parts = [str(data["source"])] if "source" in data else []
    if "size" in data:
        parts.append(f"{data['size']} × {data['size']} pixels")
    if "channels" in data:
        parts.append("grey" if data["channels"] == 1 else "colour")
    return ", ".join(parts)


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, text) of every leaf of nested mappings; short lists on one line."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from flat(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(part, Mapping | list | tuple) for part in value):
            for number, part in enumerate(value):
                yield from flat(part, f"{path}.{number}")
        else:
            yield path, ", ".join(str(part) for part in value) or "none"
    else:
        yield path, "none" if value is None else str(value)
