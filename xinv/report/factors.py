"""The report of an analysis of factors: for each factor a sentence, a chart and a table. Plain data in, a page out."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xinv.errors import InputError
from xinv.files import write_atomic
from xinv.report import rows
from xinv.report.factor_chart import Point, Series, factor_chart
from xinv.report.figures import Panel
from xinv.report.measures import METRICS, MINUS, Metric
from xinv.report.page import data_line, flat, templates
from xinv.report.rows import Leak, Scores
from xinv.report.tables import Cell, between, gain_heading, leak_cell

DRAWN = ("mse", "ssim")
"""The metrics whose leak is drawn and tabled; the scores of attack accuracy are tabled beside them."""
ACCURACY = "attack_accuracy_top1"
AS_CONFIGURED = "as configured"

Setting = Mapping[str, Any]
Factor = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """A line of a factor's table."""

    title: str
    cells: tuple[Cell, ...]
    baseline: bool


@dataclass(frozen=True)
class Group:
    """The lines of one setting."""

    label: str
    changes: str
    synthetic: bool
    link: str
    target: Cell
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Section:
    """A factor on the page."""

    name: str
    title: str
    sentence: str
    synthetic: bool  # some of its settings have drawn images
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, str], ...]  # colour, title
    groups: tuple[Group, ...]


def write_report(found: Mapping[str, Any], settings_yaml: str, path: Path) -> None:
    """Write the report of an analysis to `path`, atomically, as one HTML page that holds all it shows; it links to the
    reports of the trials, whose folders lie beside its own.

    `found` is the content of factors.json, `settings_yaml` is shown as it is. InputError for another schema.
    """
    if found.get("schema") != 1:
        raise InputError(f"The analysis has schema {found.get('schema')!r}, this version reads 1: run it again.")
    alpha = f"{100.0 * (1.0 - found['level']):g}%"
    content = (
        templates()
        .get_template("factors.html.j2")
        .render(
            name=found["name"],
            synthetic=found["synthetic"],
            data_line=data_line(found),
            base=found["base"],
            sections=[_section(factor, found) for factor in found["factors"]],
            settings=sum(len(factor["settings"]) for factor in found["factors"]),
            trials=len({one["run"] for one in _all(found)}),
            headings=_headings(),
            level=rows.level(found),
            alpha=alpha,
            seeds=max(rows.seeds(_scores(one, found)) for one in _all(found)),
            metrics=[METRICS[key] for key in (*DRAWN, ACCURACY)],
            settings_yaml=settings_yaml,
            provenance=list(flat(found["provenance"])),
        )
    )
    write_atomic(path, content)


def summary_rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """The table of the terminal: a row a setting, with the explanation that leaks most in it."""
    table = []
    for factor in found["factors"]:
        for setting in _shown(factor, found):
            leak = _strongest(setting, found)
            accuracy = METRICS[ACCURACY].format(setting["target"]["accuracy"]["mean"])
            table.append(
                {
                    "Factor": factor["title"],
                    "Setting": _label(setting),
                    "Target": f"{accuracy}%",
                    "Leaks most": leak.explanation if leak else "–",
                    "MSE": leak.metric.format(leak.score) if leak else "–",
                    "Error removed": _removed(leak) if leak else "–",
                }
            )
    return table


def sentence(factor: Factor, found: Mapping[str, Any]) -> str:
    """What a factor shows, in one sentence: where most and where least is given away, and whether that is settled."""
    pairs = [(setting, _strongest(setting, found)) for setting in _shown(factor, found)]
    points = [(setting, leak) for setting, leak in pairs if leak is not None]
    if not points:
        return "No explanation was attacked."
    if not any(leak.shown for _, leak in points):
        return "No leak was shown in any setting."
    (most, top), (least, low) = (choose(points, key=lambda pair: _share(pair[1])[0]) for choose in (max, min))
    first = (
        f"The leak is largest for “{_label(most)}”, where {top.explanation} removes {_removed(top)} of the squared "
        "error that the prediction alone leaves"
    )
    if most is least:
        return f"{first}."
    if not low.shown:
        return f"{first}; for “{_label(least)}” no leak was shown."
    second = f"smallest for “{_label(least)}”, where {low.explanation} removes {_removed(low)}"
    settled = _share(low)[2] < _share(top)[1]
    return f"{first}, and {second}; the two intervals {'do not overlap' if settled else 'overlap: the order is open'}."


def _section(factor: Factor, found: Mapping[str, Any]) -> Section:
    shown = _shown(factor, found)
    series = _titles(shown, found)
    return Section(
        name=factor["name"],
        title=factor["title"],
        sentence=sentence(factor, found),
        synthetic=any(setting["synthetic"] for setting in shown),
        panels=tuple(_panel(METRICS[key], factor, shown, series, found) for key in DRAWN),
        legend=tuple((Series(title, number, ()).colour, title) for number, title in enumerate(series))
        if len(series) > 1
        else (),
        groups=tuple(_group(setting, found) for setting in shown),
    )


def _panel(metric: Metric, factor: Factor, shown: list[Setting], titles: list[str], found: Mapping[str, Any]) -> Panel:
    """Numbers stand at their place; the base has none, unless a setting comes to the same."""
    line = factor["axis"] == "number"
    settings = [setting for setting in shown if not line or _is_number(setting["label"])]
    settings = sorted(settings, key=lambda setting: float(setting["label"])) if line else settings
    places = [float(setting["label"]) if line else float(place) for place, setting in enumerate(settings)]
    points: dict[str, list[Point]] = {title: [] for title in titles}
    said = []
    for place, setting in zip(places, settings, strict=True):
        for leak in _leaks(setting, metric.key, found):
            points[leak.title if len(titles) > 1 else titles[0]].append(
                Point(place, leak.gain, leak.low, leak.high, leak.significant)
            )
            said.append(f"{_label(setting)}, {leak.title} {metric.format(leak.gain)} ({leak.interval})")
    series = [Series(title, number, tuple(points[title])) for number, title in enumerate(titles)]
    ticks = list(zip(places, [_label(setting, short=True) for setting in settings], strict=True))
    picture = factor_chart(metric, ticks, series, line=line, log=factor["log"])
    return Panel(gain_heading(metric), picture, "; ".join(said))


def _titles(shown: list[Setting], found: Mapping[str, Any]) -> list[str]:
    """A title a series. Where every setting has one attack alone, and not the same one, they are one series."""
    attacks = [[leak.title for leak in _leaks(setting, "mse", found)] for setting in shown]
    titles = list(dict.fromkeys(title for one in attacks for title in one))
    alone = all(len(one) <= 1 for one in attacks)
    return ["the explanation of the setting"] if alone and len(titles) > 1 else titles


def _headings() -> list[str]:
    mse, ssim = (METRICS[key] for key in DRAWN)
    return [
        mse.heading,
        gain_heading(mse),
        "Error removed (%)",
        ssim.heading,
        gain_heading(ssim),
        METRICS[ACCURACY].heading,
    ]


def _group(setting: Setting, found: Mapping[str, Any]) -> Group:
    scores = _scores(setting, found)
    title = rows.titles(scores)
    leaks = {key: {leak.attack: leak for leak in rows.leaks_of(scores, key)} for key in DRAWN}
    lines = []
    for row in rows.ordered_rows(scores):
        if row["kind"] == "control":
            continue
        mse = leaks["mse"].get(row["attack"])
        removed = Cell(_tenths(_share(mse)[0]), _percent(mse), mse.shown) if mse else Cell("–")
        cells = [
            _mean(row, "mse"),
            leak_cell(mse) if mse else Cell("–"),
            removed,
            _mean(row, "ssim"),
            leak_cell(leaks["ssim"][row["attack"]]) if row["attack"] in leaks["ssim"] else Cell("–"),
            _mean(row, ACCURACY),
        ]
        lines.append(Line(title[row["attack"]], tuple(cells), baseline=mse is None))
    accuracy = setting["target"]["accuracy"]
    metric = METRICS[ACCURACY]
    return Group(
        label=_label(setting),
        changes=", ".join(_changes(setting["overrides"])),
        synthetic=setting["synthetic"],
        link=f"../{setting['run']}/report.html",
        target=Cell(metric.format(accuracy["mean"]), between(metric, accuracy)),
        lines=tuple(lines),
    )


def _mean(row: Mapping[str, Any], key: str) -> Cell:
    if key not in row["metrics"]:
        return Cell("–")
    value, metric = row["metrics"][key], METRICS[key]
    return Cell(metric.format(value["mean"]), between(metric, value))


# ---- settings and their leaks --------------------------------------------------------------------------------------


def _all(found: Mapping[str, Any]) -> list[Setting]:
    return [found["base"], *(setting for factor in found["factors"] for setting in factor["settings"])]


def _shown(factor: Factor, found: Mapping[str, Any]) -> list[Setting]:
    """The settings of a factor, the base before them unless one of them comes to the same, or the factor hides it."""
    same = any(setting["as_configured"] for setting in factor["settings"])
    return [*([found["base"]] if factor["base"] and not same else []), *factor["settings"]]


def _label(setting: Setting, short: bool = False) -> str:
    label = str(setting["label"])
    same = setting["as_configured"] and label != AS_CONFIGURED and not short
    return f"{label} ({AS_CONFIGURED})" if same else label


def _scores(setting: Setting, found: Mapping[str, Any]) -> Scores:
    """A setting in the form of scores.json."""
    leaks = [{"attack": row["attack"], **row["leak"]} for row in setting["rows"] if row["leak"] is not None]
    return {"level": found["level"], "rows": setting["rows"], "leaks": leaks}


def _leaks(setting: Setting, key: str, found: Mapping[str, Any]) -> list[Leak]:
    return [leak for leak in rows.leaks_of(_scores(setting, found), key) if not leak.control]


def _strongest(setting: Setting, found: Mapping[str, Any]) -> Leak | None:
    return next(iter(rows.strongest(_scores(setting, found), "mse")), None)


def _share(leak: Leak) -> tuple[float, float, float]:
    """The gain and its interval as shares of the baseline's error."""
    scale = 1.0 / leak.baseline if leak.baseline else 0.0
    return leak.gain * scale, leak.low * scale, leak.high * scale


def _tenths(share: float) -> str:
    text = f"{100 * share:.1f}"
    return "0.0" if float(text) == 0.0 else text.replace("-", MINUS)


def _percent(leak: Leak) -> str:
    _, low, high = _share(leak)
    return f"{_tenths(low)} to {_tenths(high)}"


def _removed(leak: Leak) -> str:
    return f"{_tenths(_share(leak)[0])}% ({_percent(leak)})"


def _changes(tree: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """`attack.releases: [[grad_cam]]` for each value of a tree of overrides."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _changes(value, f"{path}{key}.")
        else:
            yield f"{path}{key}: {json.dumps(value, ensure_ascii=False).replace(chr(34), '')}"


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
