"""The charts of a search: learning curves, the best so far against compute, what mattered, error against cost."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from xinv.report import amounts
from xinv.report.factor_chart import COLOURS
from xinv.report.figures import ACCENT, FAINT, GREY, INK, SVG_STYLE, svg_uri

PALE = "#d3d9de"
PRESET_COLOURS = COLOURS[1:]  # the first is the accent, which is the best trial's
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
LABEL = 8.0  # points
ROUND = (
    (1.0,),
    (1.0, 2.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    *(tuple(1.0 + step / parts for step in range(9 * parts)) for parts in (2, 4, 20)),
)
"""First digits of the ticks of a logarithmic axis, from few to many."""
NEAREST = 0.1
"""Shortest way between two ticks of a logarithmic axis, of its length."""


@dataclass(frozen=True)
class Named:
    """A trial that has a name in a chart: a preset (`number` decides its colour), or the best (None)."""

    title: str
    number: int | None

    @property
    def colour(self) -> str:
        return ACCENT if self.number is None else PRESET_COLOURS[self.number % len(PRESET_COLOURS)]

    @property
    def dashes(self) -> Any:
        return DASHES[0 if self.number is None else self.number // len(PRESET_COLOURS) % len(DASHES)]


@dataclass(frozen=True)
class Curve:
    """A trial's validation MSE by epoch; `whole`: it was trained to its end."""

    points: tuple[tuple[int, float], ...]
    whole: bool
    name: Named | None = None


@dataclass(frozen=True)
class Dot:
    """A trial in the plane of cost and error; in the progress chart `cost` is the compute spent until then."""

    cost: float
    error: float
    name: Named | None = None
    label: str = ""


def learning_chart(curves: Sequence[Curve], epochs: int) -> str:
    """Validation MSE (logarithmic) by epoch as an SVG `data:` URI; named trials are labelled at their ends."""
    with rc_context(SVG_STYLE):
        figure, axes = _opened(7.4, 3.7)
        for curve in sorted(curves, key=_prominence):
            x, y = zip(*curve.points, strict=True)
            colour = curve.name.colour if curve.name else GREY if curve.whole else PALE
            width = 0.8 if curve.name is None else 1.6 if curve.name.number is not None else 2.6
            line = curve.name.dashes if curve.name else "-"
            marker = "x" if curve.name and not curve.whole else "." if len(x) == 1 else ""
            axes.plot(x, y, color=colour, linewidth=width, linestyle=line, marker=marker, markevery=[-1], markersize=5)
        axes.set_xlim(0.6 if epochs > 1 else 0.5, max(epochs, 1) + 0.02 * epochs)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("epoch", color=FAINT)
        _log_error(axes, [mse for curve in curves for _, mse in curve.points])
        _labels(axes, 3.7, [(*curve.points[-1], curve.name) for curve in curves if curve.name])
        return svg_uri(figure)


def progress_chart(steps: Sequence[tuple[float, float]], marks: Sequence[Dot]) -> str:
    """The lowest validation MSE of any trial so far against the training FLOPs spent on all, as an SVG `data:` URI.

    `steps`: (FLOPs, lowest MSE) after each validation. `marks`: named trials at their own lowest.
    """
    with rc_context(SVG_STYLE):
        figure, axes = _opened(7.4, 3.2)
        x, y = zip(*steps, strict=True)
        axes.step(x, y, where="post", color=ACCENT, linewidth=1.8)
        for dot in marks:
            _mark(axes, dot)
        axes.set_xlim(0.0, 1.02 * max(x))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amounts.flops(value) if value else "0"))
        axes.set_xlabel("training of all trials together", color=FAINT)
        _log_error(axes, [*y, *(dot.error for dot in marks)])
        _labels(axes, 3.2, [(dot.cost, dot.error, dot.name) for dot in marks if dot.name])
        return svg_uri(figure)


def front_chart(dots: Sequence[Dot], front: Sequence[Dot]) -> str:
    """Validation MSE against the FLOPs of a training step for an image, both logarithmic, as an SVG `data:` URI.

    `front`: the dots that no other beats in both, the cheapest first; joined by steps, labelled by their trial
    where nothing else names them.
    """
    with rc_context(SVG_STYLE):
        figure, axes = _opened(7.4, 3.9)
        if len(front) > 1:
            x, y = [dot.cost for dot in front], [dot.error for dot in front]
            axes.step(x, y, where="post", color=ACCENT, linewidth=1.1)
        plain = [dot for dot in dots if dot.name is None]
        axes.plot([dot.cost for dot in plain], [dot.error for dot in plain], "o", color=GREY, markersize=4)
        for dot in front:
            axes.plot([dot.cost], [dot.error], "o", color=ACCENT, markersize=5)
            if dot.name is None:
                _beside(axes, dot.cost, dot.error, dot.label, FAINT)
        _log_cost(axes, [dot.cost for dot in dots])
        axes.set_xlabel("a training step, for each image", color=FAINT)
        _log_error(axes, [dot.error for dot in dots])
        for dot in dots:
            if dot.name:
                _mark(axes, dot)
                _beside(axes, dot.cost, dot.error, dot.name.title, dot.name.colour, above=dot.name.number is not None)
        return svg_uri(figure)


def importance_chart(rows: Sequence[tuple[str, float, float]]) -> str:
    """Bars of (parameter, share, what chance stays below), as an SVG `data:` URI; hollow where chance explains it."""
    with rc_context(SVG_STYLE):
        height = 0.45 + 0.24 * len(rows)
        figure = Figure(figsize=(7.4, height), layout="constrained")
        axes = figure.add_subplot()
        for place, (_, share, chance) in enumerate(rows):
            shown = share > chance
            axes.barh(place, share, height=0.55, facecolor=ACCENT if shown else "white", edgecolor=ACCENT)
            axes.plot([chance, chance], [place - 0.4, place + 0.4], color="#c2662d", linewidth=1.6)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        _dress(axes)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        return svg_uri(figure)


# ---- parts ---------------------------------------------------------------------------------------------------------


def _opened(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    _dress(axes)
    return figure, axes


def _dress(axes: Axes) -> None:
    axes.spines[["right", "top"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c8ced3")
    axes.tick_params(length=3, color="#c8ced3", labelcolor=FAINT, labelsize=8.5)


def _prominence(curve: Curve) -> tuple[bool, bool, bool]:
    """What is drawn over what: named over nameless, the best over presets, whole over stopped."""
    return curve.name is not None, curve.name is not None and curve.name.number is None, curve.whole


def _log_error(axes: Axes, values: Sequence[float]) -> None:
    axes.set_yscale("log")
    axes.set_ylabel("validation MSE", color=FAINT)
    axes.set_ylim(
        _dress_log(axes.yaxis, values, lambda value: f"{value:.6f}".rstrip("0") if value >= 1e-4 else f"{value:g}")
    )


def _log_cost(axes: Axes, values: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(_dress_log(axes.xaxis, values, amounts.flops))


def _dress_log(axis: Any, values: Sequence[float], text: Callable[[float], str]) -> tuple[float, float]:
    """Few round ticks for a logarithmic axis, however small its part of a decade; the limits that hold `values`."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.log(min(positive)), math.log(max(positive))
    room = max(0.08 * (high - low), 0.15)
    limits = math.exp(low - room), math.exp(high + room)
    axis.set_major_locator(FixedLocator(round_numbers(*limits)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    return limits


def round_numbers(low: float, high: float) -> list[float]:
    """Three numbers or more from `low` to `high`, both positive, as round as can be; fewer where the way is too short.
    No two are so close that their labels would meet."""
    found: list[float] = []
    gap = NEAREST * math.log(high / low)
    for steps in ROUND:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for value in (step * 10.0**decade for decade in decades for step in steps):
            if low <= value <= high and all(abs(math.log(value / one)) > gap for one in found):
                found.append(value)
        if len(found) >= 3:
            break
    return sorted(found)


def _mark(axes: Axes, dot: Dot) -> None:
    assert dot.name is not None
    best = dot.name.number is None
    axes.plot([dot.cost], [dot.error], "D" if not best else "o", color=dot.name.colour, markersize=6 if best else 5.5)


def _beside(axes: Axes, x: float, y: float, text: str, colour: str, above: bool = False) -> None:
    """A label above a dot, or below it to the right, where a falling line of steps leaves room."""
    offset = (0, 6) if above else (5, -9)
    axes.annotate(
        text,
        (x, y),
        xytext=offset,
        textcoords="offset points",
        fontsize=LABEL,
        color=colour,
        ha="center" if above else "left",
    )


def _labels(axes: Axes, height: float, ends: Sequence[tuple[float, float, Named]]) -> None:
    """Names in a column at the right, each as high as its point where there is room, joined to it by a thin line."""
    if not ends:
        return
    low, high = (math.log(limit) for limit in axes.get_ylim())
    gap = 1.25 * LABEL / (0.8 * 72 * height)  # of the height of the axes, which is about so much of the picture's
    ordered = sorted(ends, key=lambda end: end[1])
    places: list[float] = []
    for _, y, _ in ordered:
        own = (math.log(y) - low) / (high - low) if y > 0 else 0.0
        places.append(max(own, places[-1] + gap) if places else own)
    over = max(0.0, places[-1] - 1.0)
    for (x, y, name), place in zip(ordered, places, strict=True):
        axes.annotate(
            name.title,
            (x, y),
            xytext=(1.03, place - over),
            textcoords="axes fraction",
            fontsize=LABEL,
            color=name.colour,
            va="center",
            fontweight="bold" if name.number is None else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": GREY,
                "linewidth": 0.7,
                "linestyle": ":",
                "shrinkA": 1,
                "shrinkB": 4,
            },
        )
