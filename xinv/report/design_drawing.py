"""An inverter's design as a diagram: encoder down the left, bottleneck at the foot, decoder up to the image."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from xinv.nets.design import InverterDesign, ReleaseShape
from xinv.report.design_words import UPSAMPLINGS, blocks_named, decoder_widths, widths_said
from xinv.report.figures import ACCENT, FAINT, INK, SVG_STYLE, svg_uri

WIDTH = 9.4  # inches, as all lengths here
ROW, HEIGHT = 0.72, 0.46
LEFT, MIDDLE, RIGHT = 1.35, 5.0, 8.25  # the middles of the three columns
BROAD = {LEFT: 2.6, MIDDLE: 2.9, RIGHT: 2.1}
FILLS = {"read": "#ffffff", "encoder": "#e9edf1", "vector": "#fbeee3", "decoder": "#dce8f3", "image": "#ffffff"}
ORANGE = "#c2662d"


@dataclass(frozen=True)
class Box:
    """A box of two lines; `row` counts from the top, 0 the level at full image size."""

    column: float
    row: float
    kind: str
    title: str
    detail: str = ""


@dataclass(frozen=True)
class Arrow:
    """From a box to another one. `style`: "flow", "skip", or "aside" (condition and tokens)."""

    start: Box
    end: Box
    style: str = "flow"


def drawing(design: InverterDesign, release: ReleaseShape, channels: int, size: int) -> str:
    """The levels of the design with sizes and channels, and what goes from where to where, as an SVG `data:` URI.

    Args:
        release, channels, size: what is read, and the shape of the image.
    """
    boxes, arrows = diagram(design, release, channels, size)
    rows = max(box.row for box in boxes) + 2
    notes = _notes(design)
    height = rows * ROW + 0.2 * len(notes) + 0.1
    with rc_context(SVG_STYLE):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(height, 0)
        axes.set_axis_off()
        for arrow in arrows:
            _draw_arrow(axes, arrow)
        for box in boxes:
            _draw_box(axes, box)
        for place, note in enumerate(notes):
            y = rows * ROW + 0.1 + 0.2 * place
            axes.text(LEFT - BROAD[LEFT] / 2, y, note, fontsize=8.5, color=FAINT, va="center")
        return svg_uri(figure)


def diagram(design: InverterDesign, release: ReleaseShape, channels: int, size: int) -> tuple[list[Box], list[Arrow]]:
    """What is drawn: boxes, and the arrows between them."""
    sizes = design.sizes(size)
    encoder, read = _encoder_boxes(design, release, sizes), _read_boxes(design, release, len(sizes))
    title = f"bottleneck · {design.bottleneck:,} values" if design.bottleneck else "joined, unmixed"
    vector = Box(MIDDLE, len(sizes), "vector", title, "of all that is read")
    decoder = _decoder_boxes(design, sizes, channels)
    head = "sigmoid" if design.head == "sigmoid" else "linear"
    image = Box(MIDDLE, -1, "image", f"image · {channels} × {size} × {size}", f"{head} head")
    boxes, arrows = [*encoder, *read, vector, *decoder, image], []
    if encoder:
        arrows += [Arrow(one, other) for one, other in zip(encoder, [*encoder[1:], read[0]], strict=True)]
        levels = encoder[1:]
        skips = design.skips_from(sizes[: len(levels)])
        pairs = zip(levels, decoder[: len(levels)], skips, strict=True)
        arrows += [Arrow(one, other, "skip") for one, other, on in pairs if on]
    arrows += [Arrow(one, vector) for one in read]
    rising = [vector, *decoder[::-1], image]
    arrows += [Arrow(one, other) for one, other in pairwise(rising)]
    for aside, levels_on in _asides(design, sizes):
        boxes.append(aside)
        arrows += [Arrow(aside, box, "aside") for box, on in zip(decoder, levels_on, strict=True) if on]
    return boxes, arrows


def _encoder_boxes(design: InverterDesign, release: ReleaseShape, sizes: list[int]) -> list[Box]:
    """The explanation and the levels that read it, the largest first; none without an encoder."""
    if design.encoder == "none":
        return []
    own = sizes[: design.encoder_depth]
    widths = design.channels(design.encoder_width or design.width, own)
    levels = [
        Box(LEFT, row, "encoder", f"{size} px · {width:,} channels", "encoder, 1 block")
        for row, (size, width) in enumerate(zip(own, widths, strict=True))
    ]
    return [Box(LEFT, -1, "read", f"explanation · {_shapes(release)}", f"resized to {sizes[0]} px"), *levels]


def _read_boxes(design: InverterDesign, release: ReleaseShape, row: int) -> list[Box]:
    """What joins the vector, from `row` down; first what the encoder ends in."""
    found: list[tuple[str, str, str]] = []
    if design.encoder != "none":
        found.append(("encoder", f"vector · {design.hidden:,} values", "what the encoder ends in"))
    if design.flatten:
        values = sum(m * h * w for m, h, w in release.maps)
        found.append(("read", f"explanation · {values:,} values", "flattened, as they are"))
    cells = f"cells, at most {design.grid} × {design.grid} a map"
    if design.summary == "pooled":
        found.append(("read", "explanation · means", f"of {cells}"))
    if design.summary == "patches":
        found.append(("read", f"explanation · 16 × {design.token_width} values", f"mixtures of {cells}"))
    if design.prediction != "none":
        detail = {"logits": "logits", "log_confidences": f"log-confidences + {design.shift:g}, at least 0"}
        found.append(("read", f"prediction · {release.classes:,} classes", detail[design.prediction]))
    return [Box(LEFT, row + place, *one) for place, one in enumerate(found)]


def _decoder_boxes(design: InverterDesign, sizes: list[int], channels: int) -> list[Box]:
    """The decoder's levels, the largest first."""
    widths, attends = decoder_widths(design, sizes, channels), design.attends_at(sizes)
    looks = design.looks_at_tokens_at(sizes)
    found = []
    for row, (size, width) in enumerate(zip(sizes, widths, strict=True)):
        count = design.blocks_at(row, len(sizes))
        said = [f"{count} block{'' if count == 1 else 's'}" if count else "no blocks"]
        said += ["FiLM"] if design.fusion == "film" and count else []
        said += ["self-attention"] if attends[row] else []
        said += ["cross-attention"] if looks[row] else []
        found.append(Box(MIDDLE, row, "decoder", f"{size} px · {width:,} channels", " · ".join(said)))
    return found


def _asides(design: InverterDesign, sizes: list[int]) -> list[tuple[Box, list[bool]]]:
    """What decoder levels are told from the side, and which ones."""
    if design.fusion == "film":
        box = Box(RIGHT, len(sizes), "read", f"prediction · {design.condition} values", "scales and shifts (FiLM)")
        return [(box, [design.blocks_at(level, len(sizes)) > 0 for level in range(len(sizes))])]
    if design.fusion == "cross_attention":
        what = "cells" if design.tokens == "patches" else "encoder level"
        also = "" if design.prediction == "none" else " + prediction"
        detail = f"{what} ≤ {design.grid} × {design.grid}{also}"
        box = Box(RIGHT, len(sizes), "read", f"tokens · {design.token_width} values", detail)
        return [(box, design.looks_at_tokens_at(sizes))]
    return []


def _notes(design: InverterDesign) -> list[str]:
    start = {"nearest": "repeated", "transposed": "by a transposed convolution", "pixel_shuffle": "by a linear layer"}
    return [
        f"Blocks: {blocks_named(design)}.",
        f"From the vector to the first map: {start[design.upsampling]}. Upwards: {UPSAMPLINGS[design.upsampling]}.",
        f"{widths_said(design)}.",
    ]


def _shapes(release: ReleaseShape) -> str:
    if len(release.maps) > 1:
        return f"{len(release.maps)} maps"
    return " × ".join(str(extent) for extent in release.maps[0])


def _at(box: Box) -> tuple[float, float]:
    return box.column, (box.row + 1.5) * ROW


def _draw_box(axes: Axes, box: Box) -> None:
    x, y = _at(box)
    broad = BROAD[box.column]
    axes.add_patch(
        FancyBboxPatch(
            (x - broad / 2, y - HEIGHT / 2),
            broad,
            HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=FILLS[box.kind],
            edgecolor=ACCENT if box.kind == "decoder" else FAINT,
            linewidth=0.9,
        )
    )
    axes.text(x, y - (0.09 if box.detail else 0.0), box.title, ha="center", va="center", fontsize=9, color=INK)
    axes.text(x, y + 0.11, box.detail, ha="center", va="center", fontsize=7.5, color=FAINT)


def _draw_arrow(axes: Axes, arrow: Arrow) -> None:
    (x, y), (to_x, to_y) = _at(arrow.start), _at(arrow.end)
    style: dict[str, Any] = {"arrowstyle": "-|>", "color": FAINT, "linewidth": 1.1, "mutation_scale": 9}
    if arrow.style == "skip":
        style |= {"color": ACCENT, "linewidth": 1.5}
    if arrow.style == "aside":  # up a rail at the right, then in
        style |= {"color": ORANGE, "linewidth": 1.2, "linestyle": "--"}
        axes.plot([x, x], [y - HEIGHT / 2, to_y], color=ORANGE, linewidth=1.2, linestyle="--")
        start, end = (x, to_y), (to_x + BROAD[arrow.end.column] / 2, to_y)
    elif x == to_x:
        up = 1 if to_y < y else -1
        start, end = (x, y - up * HEIGHT / 2), (to_x, to_y + up * HEIGHT / 2)
    else:
        way = 1 if to_x > x else -1
        start = (x + way * BROAD[arrow.start.column] / 2, y)
        end = (to_x - way * BROAD[arrow.end.column] / 2, to_y)
    axes.annotate("", end, start, arrowprops={"shrinkA": 0, "shrinkB": 0, **style})
