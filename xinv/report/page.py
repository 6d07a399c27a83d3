"""The report: one HTML file that holds everything it shows and loads nothing from anywhere.

Axes: N pictured images, H height, W width, C channels, M maps of one explanation.
"""

import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from xinv.errors import InputError
from xinv.files import write_atomic
from xinv.report import figures, summary
from xinv.report.measures import METRICS, Metric
from xinv.report.summary import Leak, Scores, summary_rows, verdict

__all__ = ["summary_rows", "verdict", "write_report"]

PICTURED = 10  # people in the grid: more do not fit a page at a size at which one can see anything


@dataclass(frozen=True)
class Cell:
    """A number as text with its interval; `shown` marks a leak whose interval excludes zero."""

    text: str
    interval: str = ""
    shown: bool = False


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
class Card:
    """A key figure."""

    value: str
    label: str
    detail: str


@dataclass(frozen=True)
class Panel:
    """The leak chart of one metric."""

    heading: str
    picture: str
    description: str


@dataclass(frozen=True)
class Strip:
    """A row of the picture grid: the same step for each of the pictured images."""

    title: str
    detail: str
    pictures: tuple[str, ...]
    kind: str  # "original", "released", "reconstruction" or "control"
    crisp: bool  # enlarged without smoothing, so that every pixel is one square


@dataclass(frozen=True)
class Gallery:
    """The picture grid, with the keys of its images, or nothing when no picture was kept."""

    keys: tuple[str, ...]
    strips: tuple[Strip, ...]
    signed: bool
    unsigned: bool


def write_report(scores: Scores, pictures: Path, settings_yaml: str, path: Path) -> None:
    """Write the report of an audit to `path`, atomically, as one self-contained HTML page.

    `scores` is the content of scores.json, `pictures` the pictures.npz beside it: `key` (N,) text, `original`
    (N, H, W, C) uint8, `map:<method>` (N, M, h, w) float32, `reconstruction:<attack>` (N, H, W, C) uint8. The first
    PICTURED are shown. `settings_yaml` is shown as it is. InputError when one is missing, damaged or of another schema.
    """
    summary.check(scores)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = summary.verdict_parts(scores)
    content = environment.get_template("page.html.j2").render(
        audit=scores["audit"],
        synthetic=bool(scores["data"].get("synthetic")),
        headline=parts[0],
        support=parts[1:],
        cautions=summary.cautions(scores),
        cards=_cards(scores),
        panels=_panels(scores),
        leak_metrics=[_gain_heading(metric) for metric in _leak_metrics(scores)],
        leak_lines=_leak_lines(scores),
        gallery=_gallery(scores, pictures),
        scale={"signed": figures.scale(True), "unsigned": figures.scale(False)},
        metrics=summary.all_metrics(scores),
        groups=_groups(scores),
        control_notes=_control_notes(scores),
        level=summary.level(scores),
        clustered=scores["data"].get("disjoint") == "identity",
        data=list(_flat(scores["data"])),
        data_line=_data_line(scores),
        settings_yaml=settings_yaml,
        provenance=list(_flat(scores.get("provenance", {}))),
    )
    write_atomic(path, content)


# ---- key figures ---------------------------------------------------------------------------------------------------


def _cards(scores: Scores) -> list[Card]:
    by_error = summary.strongest(scores, "mse")
    cards = []
    if by_error:
        top = by_error[0]
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
                "interval of the MSE difference excludes zero",
            )
        )
    cards += _accuracy_cards(scores)
    scored = sorted({row["n"] for row in scores["rows"]})
    if scored:
        range_text = f"{scored[0]:,}" if len(scored) == 1 else f"{scored[0]:,} to {scored[-1]:,}"
        cards.append(Card(range_text, "victim images scored", "used for nothing else"))
    return cards


def _accuracy_cards(scores: Scores) -> Iterator[Card]:
    metric = METRICS["attack_accuracy_top1"]
    rows = [row for row in scores["rows"] if row["kind"] != "control" and metric.key in row["metrics"]]
    evaluator = scores.get("evaluator") or {}
    if rows:
        best = max(rows, key=lambda row: row["metrics"][metric.key]["mean"])
        alone = [row for row in rows if not row["release"]]
        detail = f"{summary.row_title(best)}, {_between(metric, best['metrics'][metric.key])}"
        if alone:
            detail += f"; prediction only {metric.format(alone[0]['metrics'][metric.key]['mean'])}%"
        yield Card(f"{metric.format(best['metrics'][metric.key]['mean'])}%", "highest attack accuracy", detail)
    if evaluator.get("accuracy_on_originals"):
        value = evaluator["accuracy_on_originals"]
        detail = f"{_between(metric, value)}; the most an attack can be credited with"
        if "chance" in evaluator:
            detail += f"; chance {metric.format(evaluator['chance'])}%"
        yield Card(f"{metric.format(value['mean'])}%", "evaluator accuracy on originals", detail)
    target = (scores.get("target") or {}).get("accuracy")
    if target:
        yield Card(
            f"{metric.format(target['mean'])}%", "target accuracy", f"{_between(metric, target)}, the network audited"
        )


# ---- leaks ---------------------------------------------------------------------------------------------------------


def _leak_metrics(scores: Scores) -> list[Metric]:
    present = {key for leak in scores["leaks"] for key in leak["metrics"]}
    return [metric for key, metric in METRICS.items() if key in present]


def _gain_heading(metric: Metric) -> str:
    word = "gain" if metric.leak_direction == "higher" else "reduction"
    unit = f" ({metric.difference_unit})" if metric.difference_unit else ""
    return f"{metric.label} {word}{unit}"


def _panels(scores: Scores) -> list[Panel]:
    panels = []
    for metric in _leak_metrics(scores):
        leaks = summary.leaks_of(scores, metric.key)
        drawn = [
            leak for leak in leaks if leak.explained
        ]  # the mean image is so far off that it would flatten the rest
        bars = [figures.Bar(leak.title, leak.gain, leak.low, leak.high, leak.control) for leak in drawn]
        description = "; ".join(f"{leak.title} {metric.format(leak.gain)} ({leak.interval})" for leak in drawn)
        panels.append(Panel(_gain_heading(metric), figures.leak_chart(metric, bars), description))
    return panels


def _leak_lines(scores: Scores) -> list[Line]:
    metrics = _leak_metrics(scores)
    by_attack: dict[str, dict[str, Leak]] = {}
    for metric in metrics:
        for leak in summary.leaks_of(scores, metric.key):
            by_attack.setdefault(leak.attack, {})[metric.key] = leak
    title = summary.titles(scores)
    baseline = {leak["attack"]: leak["baseline"] for leak in scores["leaks"]}
    several = len(set(baseline.values())) > 1
    lines = []
    for attack, found in by_attack.items():
        some = next(iter(found.values()))
        cells = tuple(_leak_cell(found[metric.key]) if metric.key in found else Cell("–") for metric in metrics)
        against = f"against {title[baseline[attack]]}" if several else ""
        lines.append(Line(some.title, against, "", some.n, cells, some.control))
    return lines


def _leak_cell(leak: Leak) -> Cell:
    plus = "+" if leak.gain > 0 else ""
    return Cell(plus + leak.metric.format(leak.gain), leak.interval, leak.shown)


# ---- scores --------------------------------------------------------------------------------------------------------


def _groups(scores: Scores) -> list[Group]:
    """Attacks by explanation (a heading only where there are several), controls in a group of their own at the end."""
    metrics, title = summary.all_metrics(scores), summary.titles(scores)
    grouped: dict[str, list[Line]] = {}
    size = Counter(tuple(row["release"]) for row in scores["rows"] if row["kind"] != "control")
    for row in summary.ordered_rows(scores):
        control = row["kind"] == "control"
        heading = "Controls: attacks that ought to fail" if control else summary.release_title(row)
        cells = tuple(
            Cell(metric.format(row["metrics"][metric.key]["mean"]), _between(metric, row["metrics"][metric.key]))
            if metric.key in row["metrics"]
            else Cell("–")
            for metric in metrics
        )
        inverter = str(row["inverter"] or "")
        alone = control or "title" in row or size[tuple(row["release"])] == 1
        name, detail = (title[row["attack"]], inverter) if alone else (inverter or row["attack"], "")
        detail = "" if detail.lower() == name.lower() else detail
        line = Line(name, detail, _bytes(row.get("released_bytes")), row["n"], cells, control)
        grouped.setdefault(heading, []).append(line)
    return [
        Group(heading if len(lines) > 1 or lines[0].control else "", tuple(lines)) for heading, lines in grouped.items()
    ]


def _control_notes(scores: Scores) -> list[tuple[str, str]]:
    """What each kind of control in the table is for."""
    controls = (summary.control_of(row) for row in scores["rows"] if row["kind"] == "control")
    return list({control.title: control.note for control in controls if control.note}.items())


def _between(metric: Metric, value: Mapping[str, float]) -> str:
    return f"{metric.format(value['low'])} to {metric.format(value['high'])}"


def _bytes(count: float | None) -> str:
    if count is None:
        return "–"
    return f"{count:,.0f} B" if count < 10_000 else f"{count / 1024:,.1f} KiB"


# ---- pictures ------------------------------------------------------------------------------------------------------


def _gallery(scores: Scores, path: Path) -> Gallery:
    arrays = _load(path)
    keys = tuple(str(key) for key in arrays["key"][:PICTURED])
    maps = {name.partition(":")[2]: arrays[name][:PICTURED] for name in arrays if name.startswith("map:")}
    signed = {method: figures.is_signed(values) for method, values in maps.items()}
    strips = [_picture_strip("Original", "never seen by the attacker", "original", arrays["original"])]
    drawn: set[str] = set()
    title = summary.titles(scores)
    for row in summary.ordered_rows(scores):
        control = row["kind"] == "control"
        for method in row["release"]:
            if method in maps and method not in drawn and not control:
                drawn.add(method)
                strips.append(_map_strip(method, maps[method], signed[method]))
        name = f"reconstruction:{row['attack']}"
        if name in arrays:
            inverter = str(row["inverter"] or "")
            heading = f"Control: {title[row['attack']]}" if control else "Reconstruction"
            if control:
                detail = "" if inverter.lower() == title[row["attack"]].lower() else inverter
            else:
                detail = " · ".join(filter(None, (summary.row_title(row), inverter)))
            strips.append(_picture_strip(heading, detail, "control" if control else "reconstruction", arrays[name]))
    used = {signed[method] for method in drawn}
    return Gallery(keys, tuple(strips), signed=True in used, unsigned=False in used)


def _picture_strip(title: str, detail: str, kind: str, image_NHWC: np.ndarray) -> Strip:
    pictures = tuple(figures.picture(image_HWC) for image_HWC in image_NHWC[:PICTURED])
    return Strip(title, detail, pictures, kind, crisp=image_NHWC.shape[1] < 100)


def _map_strip(method: str, map_NMHW: np.ndarray, signed: bool) -> Strip:
    maps, height, width = map_NMHW.shape[1:]
    detail = (
        f"released, {height} × {width} values" if maps == 1 else f"released, mean of {maps} maps of {height} × {width}"
    )
    pictures = tuple(figures.explanation(map_MHW, signed) for map_MHW in map_NMHW)
    return Strip(summary.explanation_title(method), detail, pictures, "released", crisp=height < 100)


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of pictures.npz, never unpickled."""
    advice = "Remove the scores and run the audit again: scoring writes both."
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise InputError(f"{path} is missing. {advice}") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged ({error}). {advice}") from None
    for name in ("key", "original"):
        if name not in arrays:
            raise InputError(f"{path} holds no array {name!r}. {advice}")
    uneven = [name for name in arrays if len(arrays[name]) != len(arrays["key"])]
    if uneven:
        raise InputError(
            f"{path}: {uneven[0]!r} has {len(arrays[uneven[0]])} rows, {len(arrays['key'])} expected. {advice}"
        )
    return arrays


# ---- data and provenance -------------------------------------------------------------------------------------------


def _data_line(scores: Scores) -> str:
    data = scores["data"]
    parts = [str(data["source"])] if "source" in data else []
    if "size" in data:
        parts.append(f"{data['size']} × {data['size']} pixels")
    if "channels" in data:
        parts.append("grey" if data["channels"] == 1 else "colour")
    return ", ".join(parts)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, text) of every leaf of nested mappings; short lists on one line."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(part, Mapping | list | tuple) for part in value):
            for number, part in enumerate(value):
                yield from _flat(part, f"{path}.{number}")
        else:
            yield path, ", ".join(str(part) for part in value) or "none"
    else:
        yield path, "none" if value is None else str(value)
