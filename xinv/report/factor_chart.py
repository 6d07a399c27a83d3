"""The chart of one factor: the leak in one metric by setting, a series an explanation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from xinv.report.figures import CURVES, FAINT, INK, SVG_STYLE, svg_uri
from xinv.report.measures import MINUS, Metric

COLOURS = (*dict.fromkeys(colour for colour, _ in CURVES), "#b3424a", "#2a8c8c", "#a08a2c")
MARKERS = ("o", "s", "^", "D")
SPREAD = 0.5  # how far apart the series of one setting stand, of the distance between settings


@dataclass(frozen=True)
class Point:
    """The leak in one setting (positive means more leak), its interval, and whether it is more than chance explains."""

    place: float
    value: float
    low: float
    high: float
    shown: bool


@dataclass(frozen=True)
class Series:
    """One explanation over the settings; `number` decides its colour."""

    title: str
    number: int
    points: tuple[Point, ...]

    @property
    def colour(self) -> str:
        return COLOURS[self.number % len(COLOURS)]


def factor_chart(
    metric: Metric, ticks: Sequence[tuple[float, str]], series: Sequence[Series], *, line: bool, log: bool
) -> str:
    """Points with whiskers over the settings, up meaning more leak, as an SVG `data:` URI.

    Zero is the attack that has the prediction alone. A hollow marker may be chance.

    Args:
        ticks: place and label of each setting.
        line: the places are numbers: join the points of a series, and do not move them apart.
        log: draw the places on a logarithmic scale.
    """
    crowded = sum(len(label) for _, label in ticks) > 46
    with rc_context(SVG_STYLE):
        figure = Figure(figsize=(5.4, 3.3 if crowded else 2.8), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0.0, color=INK, linewidth=0.9)
        for order, one in enumerate(series):
            shift = 0.0 if line or len(series) == 1 else SPREAD * ((order + 0.5) / len(series) - 0.5)
            _draw(axes, one, shift, line)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        elif not line:
            axes.set_xlim(-0.5, len(ticks) - 0.5)
        turned: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        axes.set_xticks([place for place, _ in ticks], [label for _, label in ticks], **turned)
        _dress(axes, metric)
        return svg_uri(figure)


def _draw(axes: Axes, series: Series, shift: float, line: bool) -> None:
    x = [point.place + shift for point in series.points]
    if line:
        axes.plot(x, [point.value for point in series.points], color=series.colour, linewidth=1.4)
    for place, point in zip(x, series.points, strict=True):
        axes.plot([place, place], [point.low, point.high], color=series.colour, linewidth=1.4)
    for shown in (True, False):
        chosen = [(place, point.value) for place, point in zip(x, series.points, strict=True) if point.shown is shown]
        axes.plot(
            [place for place, _ in chosen],
            [value for _, value in chosen],
            linestyle="none",
            marker=MARKERS[series.number // len(COLOURS) % len(MARKERS)],
            markersize=5.5,
            markerfacecolor=series.colour if shown else "white",
            markeredgecolor=series.colour,
            zorder=3,
        )


def _dress(axes: Axes, metric: Metric) -> None:
    axes.spines[["right", "top"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c8ced3")
    axes.margins(y=0.08)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    factor = 100.0 if metric.unit == "%" else 1.0
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{round(y * factor, 9):g}".replace("-", MINUS)))
    axes.tick_params(length=3, color="#c8ced3", labelcolor=FAINT, labelsize=8.5)
    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (4, 0), "textcoords": "offset points"}
    axes.annotate("prediction\nonly", (1.0, 0.0), **beside, va="center", fontsize=7.5, color=FAINT)
