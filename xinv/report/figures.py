"""Pictures of the report, each a `data:` URI, so that the page loads nothing from anywhere. Large ones are reduced
there, and kept beside the page in full size (`Beside`).

Axes: H height, W width, C channels, M maps of one explanation.
"""

import base64
import io
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from xinv.files import make_private
from xinv.report.measures import MINUS, Metric

ACCENT = "#1f4e79"
GREY = "#9aa3ab"
INK = "#1c2329"
FAINT = "#5d6870"
PICTURE_LIMIT = 256  # pixels a side: larger pictures are reduced, or a page of a 1024-pixel audit would weigh 100 MB
SIGNED_MAP = colormaps["RdBu_r"]
UNSIGNED_MAP: Colormap = LinearSegmentedColormap.from_list("accent", ["#ffffff", "#7fa6cb", ACCENT, "#0a1c2e"])
CURVES = (("#1f4e79", "-"), ("#c2662d", "-"), ("#4f8a5b", "-"), ("#8c5a9e", "-"), ("#5d6870", "--"))
"""Colour and line of the curves of a risk chart."""
SVG_STYLE = {
    "svg.fonttype": "none",  # text stays text: sharp, small, in the fonts of the page
    "svg.hashsalt": "xinv",  # the same input gives the same bytes
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9.0,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Bar:
    """One bar of the leak chart: the gain of an attack (positive means more leak), its interval, and whether it is more
    than chance explains."""

    title: str
    value: float
    low: float
    high: float
    significant: bool
    control: bool = False


@dataclass(frozen=True)
class Panel:
    """The chart of one metric on a page, and what it shows in words."""

    heading: str
    picture: str
    description: str


def leak_chart(metric: Metric, bars: Sequence[Bar]) -> str:
    """Horizontal bars of the leak in one metric, right of zero meaning more leak, as an SVG `data:` URI.

    A whisker spans each interval. Attacks are in the accent colour, controls in grey, and a bar that chance may explain
    is hollow.
    """
    with rc_context(SVG_STYLE):
        height = 0.34 + 0.46 * len(bars)
        figure = Figure(figsize=(3.9, height))
        axes = figure.add_axes((0.004, 0.30 / height, 0.992, 1.0 - 0.31 / height))
        for place, bar in enumerate(reversed(bars)):
            _draw_bar(axes, metric, bar, place)
        _dress(axes, metric, bars)
        return svg_uri(figure)


def risk_chart(percentiles: Sequence[Sequence[float]], threshold: float, by: str) -> str:
    """A curve an attack: the share of the error that it removes (up), for people or images (`by`) from the one it gains
    most from to the one it gains least from (right), as an SVG `data:` URI.

    `percentiles`: of each attack the 0th to the 100th, in [-1, 1], for the colours of CURVES in order. A dotted line
    marks the threshold.
    """
    assert len(percentiles) <= len(CURVES), len(percentiles)
    with rc_context(SVG_STYLE):
        figure = Figure(figsize=(3.9, 2.0))
        axes = figure.add_axes((0.105, 0.215, 0.875, 0.755))
        axes.axhline(0.0, color=INK, linewidth=0.9)
        axes.axhline(100.0 * threshold, color=FAINT, linewidth=0.9, linestyle=":")
        for values, (colour, line) in zip(percentiles, CURVES, strict=False):
            shares = [100.0 * place / (len(values) - 1) for place in range(len(values))]
            axes.plot(
                shares, [100.0 * value for value in reversed(values)], color=colour, linestyle=line, linewidth=1.6
            )
        lowest = min(0.0, *(100.0 * min(values) for values in percentiles))
        axes.set_xlim(0.0, 100.0)
        axes.set_ylim(lowest - 4.0, 104.0)
        axes.spines[["right", "top"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#c8ced3")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}%".replace("-", MINUS)))
        axes.set_xticks([0.0, 50.0, 100.0], [f"most exposed {by}", "", "least exposed"])
        first, _, last = axes.get_xticklabels()
        first.set_horizontalalignment("left")
        last.set_horizontalalignment("right")
        axes.tick_params(length=3, color="#c8ced3", labelcolor=FAINT, labelsize=8)
        return svg_uri(figure)


def svg_uri(figure: Figure) -> str:
    """A figure as an SVG `data:` URI."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _uri("image/svg+xml", stream.getvalue().encode())


def _draw_bar(axes: Axes, metric: Metric, bar: Bar, place: int) -> None:
    colour = GREY if bar.control else ACCENT
    shown = bar.significant
    axes.barh(place, bar.value, height=0.32, facecolor=colour if shown else "white", edgecolor=colour, linewidth=1.0)
    axes.plot([0.0, 0.0], [place - 0.27, place + 0.21], color=INK, linewidth=0.9, zorder=2)  # not through the titles
    whiskers = [(4, INK, 1.1)]
    if shown:  # cased in white, or the whisker drowns in the bar
        whiskers.insert(0, (3, "white", 3.0))
    for zorder, line, line_width in whiskers:
        axes.plot(
            [bar.low, bar.high], [place, place], color=line, linewidth=line_width, solid_capstyle="butt", zorder=zorder
        )
        for end in (bar.low, bar.high):
            ends = [place - 0.1, place + 0.1]
            axes.plot([end, end], ends, color=line, linewidth=line_width, solid_capstyle="butt", zorder=zorder)
    row = axes.get_yaxis_transform()  # x in shares of the axes, y in data
    axes.text(0.0, place + 0.23, bar.title, transform=row, ha="left", va="bottom", color=FAINT if bar.control else INK)
    value = f"{'+' if bar.value > 0 else ''}{metric.format(bar.value)}"
    axes.text(1.0, place + 0.23, value, transform=row, ha="right", va="bottom", color=colour if shown else FAINT)


def _dress(axes: Axes, metric: Metric, bars: Sequence[Bar]) -> None:
    """Limits that hold zero and every interval; few quiet ticks, whose labels stay inside the picture."""
    ends = [0.0, *(end for bar in bars for end in (bar.low, bar.high, bar.value))]
    span = (max(ends) - min(ends)) or 1.0
    low, high = min(ends) - 0.06 * span, max(ends) + 0.06 * span
    axes.set_xlim(low, high)
    axes.set_ylim(-0.4, len(bars) - 0.35)
    axes.set_yticks([])
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color("#c8ced3")
    ticks = MaxNLocator(4).tick_values(low, high)
    axes.set_xticks([x for x in ticks if x == 0.0 or low + 0.08 * span < x < high - 0.08 * span])
    factor = 100.0 if metric.unit == "%" else 1.0
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{round(x * factor, 9):g}".replace("-", MINUS)))
    axes.tick_params(axis="x", length=3, color="#c8ced3", labelcolor=FAINT, labelsize=8)


class Beside:
    """The folder beside a page that holds its large pictures in full size. It comes to be with the first of them."""

    def __init__(self, folder: Path) -> None:
        """Those of an earlier page in `folder` are removed."""
        self._folder = folder
        if folder.is_dir():
            shutil.rmtree(folder)

    def keep(self, image: Image.Image, *name: str) -> str:
        """Write `image` as a PNG named after the words of `name`, and return its address as the page links it. An empty
        string where the page shows the image as it is."""
        if max(image.size) <= PICTURE_LIMIT:
            return ""
        words = "-".join(re.sub(r"[^A-Za-z0-9_.+]+", "-", word) for word in name)
        file = make_private(self._folder) / f"{words}.png"
        image.save(file, format="PNG")
        return f"{self._folder.name}/{file.name}"


def picture(image_HWC: np.ndarray) -> Image.Image:
    """A uint8 picture, grey (C = 1) or RGB (C = 3)."""
    assert image_HWC.dtype == np.uint8 and image_HWC.ndim == 3 and image_HWC.shape[2] in (1, 3), image_HWC.shape
    return Image.fromarray(image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC)


def is_signed(maps: np.ndarray) -> bool:
    """Whether an explanation tells evidence for from evidence against: any value below zero."""
    return bool((maps < 0).any())


def explanation(map_MHW: np.ndarray, signed: bool) -> Image.Image:
    """One released explanation as a picture at its own resolution.

    Several maps are averaged. Signed ones are drawn around zero (blue negative, white zero, red positive), others from
    white (zero) to dark blue; each is scaled by its own largest magnitude, so brightness compares within a map only.
    """
    assert map_MHW.ndim == 3, map_MHW.shape
    map_HW = map_MHW.astype(np.float64).mean(axis=0)
    largest = float(np.abs(map_HW).max()) or 1.0
    share_HW = map_HW / largest
    colour_HWA = SIGNED_MAP((share_HW + 1.0) / 2.0) if signed else UNSIGNED_MAP(share_HW)
    return Image.fromarray((colour_HWA[:, :, :3] * 255.0 + 0.5).astype(np.uint8))


def scale(signed: bool) -> str:
    """The colours of `explanation` from the least to the greatest value, one pixel high."""
    chosen = SIGNED_MAP if signed else UNSIGNED_MAP
    colour_WA = chosen(np.linspace(0.0, 1.0, 128))
    return uri(Image.fromarray((colour_WA[None, :, :3] * 255.0 + 0.5).astype(np.uint8)))


def uri(image: Image.Image) -> str:
    """`image` as a PNG `data:` URI, reduced to at most PICTURE_LIMIT pixels a side."""
    image = image.copy()
    image.thumbnail((PICTURE_LIMIT, PICTURE_LIMIT), Image.Resampling.BOX)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return _uri("image/png", stream.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
