"""The metrics of leakage: what each is called, what it means, which way it points, how it is written down.

Free of torch, so that the report and the terminal can use it; `xinv.leak.metrics` computes them.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from xinv.errors import InputError

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Metric:
    """One score of a reconstruction against the original image; `short` is its label where space is scarce.

    `digits` are decimals as shown; a unit of "%" means that the value, a share in [0, 1], is shown times 100.
    `leak_direction` says which way of a difference means that more was leaked. `range` is what the value can be.
    """

    key: str
    label: str
    short: str
    meaning: str
    unit: str
    digits: int
    leak_direction: Literal["lower", "higher"]
    range: tuple[float, float]

    @property
    def sign(self) -> int:
        """+1 where a higher value means more leak, -1 where a lower one does."""
        return 1 if self.leak_direction == "higher" else -1

    @property
    def difference_unit(self) -> str:
        """The unit of a difference of two values: percentage points for shares."""
        return "points" if self.unit == "%" else self.unit

    @property
    def heading(self) -> str:
        """The label with its unit, for the head of a column."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def format(self, value: float) -> str:
        """`value` as shown to a reader, without the unit.

        A value that its decimals would round to nothing keeps one significant digit, so that a small leak does not
        read as none.
        """
        shown = value * 100 if self.unit == "%" else value
        text = f"{shown:.{self.digits}f}"
        if float(text) == 0.0:
            places = -math.floor(math.log10(abs(shown))) if abs(shown) > 1e-9 else self.digits
            text = f"{shown if abs(shown) > 1e-9 else 0.0:.{places}f}"
        return text.replace("-", MINUS)


METRICS: dict[str, Metric] = {
    "mse": Metric(
        key="mse",
        label="MSE",
        short="MSE",
        meaning="Mean squared error between reconstruction and original, over all pixels: 0 is a perfect copy.",
        unit="",
        digits=4,
        leak_direction="lower",
        range=(0.0, 1.0),
    ),
    "psnr": Metric(
        key="psnr",
        label="PSNR",
        short="PSNR",
        meaning="Peak signal-to-noise ratio: the same error on a logarithmic scale; 10 dB more is a tenth of it.",
        unit="dB",
        digits=2,
        leak_direction="higher",
        range=(0.0, 100.0),
    ),
    "ssim": Metric(
        key="ssim",
        label="SSIM",
        short="SSIM",
        meaning="Structural similarity: whether edges and textures sit in the same places, 1 is identical.",
        unit="",
        digits=3,
        leak_direction="higher",
        range=(-1.0, 1.0),
    ),
    "embedding_similarity": Metric(
        key="embedding_similarity",
        label="Embedding similarity",
        short="Embed",
        meaning="How alike original and reconstruction look to the evaluator, a network the attacker never saw: "
        "1 is indistinguishable to it.",
        unit="",
        digits=3,
        leak_direction="higher",
        range=(0.1353352832366127, 1.0),  # exp(-2): unit vectors are at most 2 apart
    ),
    "attack_accuracy_top1": Metric(
        key="attack_accuracy_top1",
        label="Attack accuracy",
        short="Top-1",
        meaning="Share of reconstructions in which the evaluator's first guess is the true class of the original.",
        unit="%",
        digits=1,
        leak_direction="higher",
        range=(0.0, 1.0),
    ),
}


def metrics_of(entries: Iterable[Mapping[str, object]]) -> list[Metric]:
    """The metrics that occur in any of the `metrics` mappings of scores.json, in the order of METRICS.

    InputError for one that this version does not know: its direction would be a guess.
    """
    present = {key for entry in entries for key in entry}
    unknown = sorted(present - METRICS.keys())
    if unknown:
        raise InputError(
            f"The scores hold the metric {unknown[0]!r}, which is unknown here; known: {', '.join(METRICS)}. "
            "Score again with this version, or report with the version that scored."
        )
    return [metric for key, metric in METRICS.items() if key in present]
