"""The metrics of leakage: what each is called, what it means, which way it points, how it is written down.

Free of torch, so that the report and the terminal can use it; `xinv.leak.metrics` computes them.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from xinv.errors import InputError

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Metric:
    """One score of a reconstruction against the original image; `short` is its label where space is scarce.

    `digits` are decimals as shown; a unit of "%" means that the value, a share in [0, 1], is shown times 100.
    `leak_direction` says which way of a difference means that more was leaked. `range` is what the value can be.
    `about`: what of the original must be in the reconstruction: its pixels, its class, who it shows, or attributes that
    the target does not predict. `attribute` is the name of the one that a score is of, and empty for scores of all.
    `evaluator` is the name of the further evaluator that judged, and empty for the first one.
    """

    key: str
    label: str
    short: str
    meaning: str
    unit: str
    digits: int
    leak_direction: Literal["lower", "higher"]
    range: tuple[float, float]
    about: Literal["image", "class", "person", "attributes"] = "image"
    attribute: str = ""
    evaluator: str = ""

    @property
    def headline(self) -> bool:
        """Whether the main tables show it: people, attributes and further evaluators have tables of their own."""
        return self.about not in ("person", "attributes") and not self.evaluator

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


RANKS = (1, 5, 20)
"""How many people a search of the gallery returns, where re-identification is measured."""


def _rank(k: int) -> Metric:
    return Metric(
        key=f"reidentification_rank{k}",
        label=f"Re-identified, rank {k}",
        short=f"Rank-{k}",
        meaning="Share of reconstructions whose person is "
        + ("the one" if k == 1 else f"among the {k} people")
        + " of the gallery most similar to it in the evaluator's embedding.",
        unit="%",
        digits=1,
        leak_direction="higher",
        range=(0.0, 1.0),
        about="person",
    )


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
    "ms_ssim": Metric(
        key="ms_ssim",
        label="MS-SSIM",
        short="MS-SSIM",
        meaning="Structural similarity at five scales, from the finest detail to the layout of the whole.",
        unit="",
        digits=3,
        leak_direction="higher",
        range=(0.0, 1.0),
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
        about="class",
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
        about="class",
    ),
    "attack_accuracy_top5": Metric(
        key="attack_accuracy_top5",
        label="Top-5 accuracy",
        short="Top-5",
        meaning="Share of reconstructions in which the true class is among the evaluator's first five guesses.",
        unit="%",
        digits=1,
        leak_direction="higher",
        range=(0.0, 1.0),
        about="class",
    ),
    **{f"reidentification_rank{k}": _rank(k) for k in RANKS},
    "verification_tar": Metric(
        key="verification_tar",
        label="Verification",
        short="TAR",
        meaning="Share of reconstructions that pass for the true person where strangers pass at the false accept rate "
        "stated (TAR at FAR).",
        unit="%",
        digits=1,
        leak_direction="higher",
        range=(0.0, 1.0),
        about="person",
    ),
    "attributes_recovered": Metric(
        key="attributes_recovered",
        label="Attributes recovered",
        short="Attrib",
        meaning="Share of the attributes that the target never predicts (glasses, sex, ...) whose true value the "
        "evaluator reads in the reconstruction. Guessing the commonest value of each gets a good part of them right.",
        unit="%",
        digits=1,
        leak_direction="higher",
        range=(0.0, 1.0),
        about="attributes",
    ),
}

SINGLE = "attribute"
"""Begins the scores of single attributes: `attribute:glasses`, by a further evaluator `attribute:glasses:cnn`."""


def metric_of(key: str) -> Metric:
    """The metric called `key` in the scores: `ssim`, or `attack_accuracy_top1:cnn` where a further evaluator judged;
    see `SINGLE` for those of one attribute.

    InputError for one that this version does not know: its direction would be a guess.
    """
    base, *rest = key.split(":")
    if base == SINGLE and len(rest) in (1, 2) and all(rest):
        return _judged_by(_single(rest[0]), key, rest[1] if len(rest) == 2 else "")
    evaluator = rest[0] if rest else ""
    if base not in METRICS or len(rest) > 1 or (rest and not evaluator):
        raise InputError(
            f"The scores hold the metric {key!r}, which is unknown here; known: {', '.join(METRICS)}. "
            "Score again with this version, or report with the version that scored."
        )
    return _judged_by(METRICS[base], key, evaluator)


def _single(attribute: str) -> Metric:
    return replace(
        METRICS["attributes_recovered"],
        key=f"{SINGLE}:{attribute}",
        label=attribute,
        short=attribute,
        meaning=f"Share of reconstructions in which the evaluator reads the true value of {attribute}.",
        attribute=attribute,
    )


def _judged_by(metric: Metric, key: str, evaluator: str) -> Metric:
    if not evaluator:
        return metric
    return replace(
        metric,
        key=key,
        label=f"{metric.label} ({evaluator})",
        short=f"{metric.short} ({evaluator})",
        meaning=f"{metric.meaning} Here by the evaluator {evaluator}.",
        evaluator=evaluator,
    )


def metrics_of(entries: Iterable[Mapping[str, object]]) -> list[Metric]:
    """The metrics that occur in any of the `metrics` mappings of scores.json, in the order of METRICS (those of single
    attributes last, in the order in which they occur), and each by the first evaluator before further ones. InputError
    for one that this version does not know.
    """
    present = dict.fromkeys(key for entry in entries for key in entry)
    order = {key: place for place, key in enumerate((*METRICS, SINGLE))}
    return sorted(map(metric_of, present), key=lambda metric: (order[metric.key.partition(":")[0]], metric.evaluator))
