"""What is learned: an objective turns a batch into the network's inputs, a loss per image and metrics per image.

Axes: B images, C channels, H rows, W columns, K classes, M map channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xinv.data.loader import Batch


@dataclass(frozen=True)
class Objective:
    """One way to learn. All functions are per image; the loop weighs, sums and reduces over ranks.

    Attributes:
        inputs: batch -> the network's positional inputs, on the batch's device.
        loss_B: (output, batch) -> loss of each image, fp32.
        metrics_B: (output, batch) -> name -> value of each image, fp32, reported beside the loss.
    """

    inputs: Callable[[Batch], tuple[Any, ...]]
    loss_B: Callable[[Tensor, Batch], Tensor]
    metrics_B: Callable[[Tensor, Batch], dict[str, Tensor]]


def _cross_entropy(logit_BK: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logit_BK, batch.label_B, reduction="none")


def _right(logit_BK: Tensor, batch: Batch) -> dict[str, Tensor]:
    return {"accuracy": (logit_BK.argmax(1) == batch.label_B).float()}


def _release(batch: Batch) -> tuple[Any, ...]:
    assert batch.prediction_BK is not None, "an inverter needs releases"
    return batch.prediction_BK, list(batch.maps.values())


def _squared_error(image_BCHW: Tensor, batch: Batch) -> Tensor:
    return (image_BCHW - batch.image_BCHW).square().flatten(1).mean(1)


def _clamped_error(image_BCHW: Tensor, batch: Batch) -> dict[str, Tensor]:
    """MSE of the picture one would show (values outside [0, 1] do not exist on a screen), as scoring measures it."""
    return {"mse": _squared_error(torch.clamp(image_BCHW.detach(), 0, 1), batch)}


OBJECTIVES: dict[str, Objective] = {
    "classify": Objective(lambda batch: (batch.image_BCHW,), _cross_entropy, _right),
    "invert": Objective(_release, _squared_error, _clamped_error),
}
"""classify: cross-entropy on the label. invert: the paper's reconstruction loss (Sec. 3, mean squared error)."""
