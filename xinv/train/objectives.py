"""What is learned: an objective turns a batch into the network's inputs, a loss per image and metrics per image.

Axes: B images, C channels, H rows, W columns, K classes, M map channels, G explanations, A attributes, V values of all
attributes.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xinv.data.attributes import first_guesses
from xinv.data.loader import Batch
from xinv.nets.classifier import Classifier
from xinv.nets.surrogate import SurrogateInverter
from xinv.train.losses import LossSettings, reconstruction_loss, squared_error

PLAIN = LossSettings()


@dataclass(frozen=True)
class Objective:
    """One way to learn. All functions are per image; the loop weighs, sums and reduces over ranks.

    Attributes:
        inputs: batch -> the network's positional inputs, on the batch's device.
        loss_B: (output, batch) -> what is trained on, of each image, fp32.
        selection_B: (output, batch) -> what a validation calls `loss` and keeps the lowest of, of each image, fp32. The
            same function as `loss_B`, but for inverters: there it is the MSE, whatever is trained on.
        metrics_B: (output, batch) -> name -> value of each image, fp32, reported beside the loss.
    """

    inputs: Callable[[Batch], tuple[Any, ...]]
    loss_B: Callable[[Any, Batch], Tensor]
    selection_B: Callable[[Any, Batch], Tensor]
    metrics_B: Callable[[Any, Batch], dict[str, Tensor]]


def _cross_entropy(logit_BK: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logit_BK, batch.label_B, reduction="none")


def _right(logit_BK: Tensor, batch: Batch) -> dict[str, Tensor]:
    return {"accuracy": (logit_BK.argmax(1) == batch.label_B).float()}


def _image(network: nn.Module) -> Callable[[Batch], tuple[Any, ...]]:
    """The image, laid out as the network computes fastest: of colour images the plain CNN's step takes 1.6 times less
    with channels last (bf16, CPU), a GroupNorm's 1.2 times more."""
    grouped = any(isinstance(part, nn.GroupNorm) for part in network.modules())
    layout = torch.contiguous_format if grouped else torch.channels_last
    return lambda batch: (batch.image_BCHW.contiguous(memory_format=layout),)


def _release(batch: Batch) -> tuple[Any, ...]:
    assert batch.prediction_BK is not None, "an inverter needs releases"
    inputs = batch.prediction_BK, list(batch.maps.values())
    return inputs if batch.present_BG is None else (*inputs, batch.present_BG)


def _squared_error(image_BCHW: Tensor, batch: Batch) -> Tensor:
    return squared_error(image_BCHW, batch.image_BCHW)


def _clamped_error(image_BCHW: Tensor, batch: Batch) -> dict[str, Tensor]:
    """MSE of the picture one would show (values outside [0, 1] do not exist on a screen), as scoring measures it."""
    return {"mse": _squared_error(torch.clamp(image_BCHW.detach(), 0, 1), batch)}


def _learn_from_target(logit_BK: Tensor, batch: Batch) -> Tensor:
    assert batch.prediction_BK is not None, "distillation needs the target's predictions"
    told_BK = batch.prediction_BK.softmax(1)
    return F.kl_div(F.log_softmax(logit_BK, 1), told_BK, reduction="none").sum(1)


def _agrees(logit_BK: Tensor, batch: Batch) -> dict[str, Tensor]:
    assert batch.prediction_BK is not None
    return {"agreement": (logit_BK.argmax(1) == batch.prediction_BK.argmax(1)).float(), **_right(logit_BK, batch)}


def _classify(network: nn.Module, loss: LossSettings = PLAIN) -> Objective:
    """Cross-entropy on the label."""
    return Objective(_image(network), _cross_entropy, _cross_entropy, _right)


def _classify_attributes(network: nn.Module, loss: LossSettings = PLAIN) -> Objective:
    """The sum over attributes of the cross-entropy of each one's group of logits; accuracy is the mean over them."""
    assert isinstance(network, Classifier) and network.groups, "a network with a group of logits an attribute"
    groups = network.groups

    def wrong(logit_BV: Tensor, batch: Batch) -> Tensor:
        assert batch.attribute_BA is not None, "an evaluator of attributes needs them"
        pairs = zip(logit_BV.split(list(groups), dim=1), batch.attribute_BA.unbind(1), strict=True)
        return torch.stack([F.cross_entropy(own_BV, truth_B, reduction="none") for own_BV, truth_B in pairs]).sum(0)

    def metrics(logit_BV: Tensor, batch: Batch) -> dict[str, Tensor]:
        assert batch.attribute_BA is not None
        return {"accuracy": (first_guesses(logit_BV, groups) == batch.attribute_BA).float().mean(1)}

    return Objective(_image(network), wrong, wrong, metrics)


def _distil(network: nn.Module, loss: LossSettings = PLAIN) -> Objective:
    """Kullback-Leibler divergence from the target's class probabilities (Hinton et al. 2015, at temperature 1)."""
    return Objective(_image(network), _learn_from_target, _learn_from_target, _agrees)


def _invert(network: nn.Module, loss: LossSettings = PLAIN) -> Objective:
    """The reconstruction loss that `loss` describes; selected by the paper's (Sec. 3), the MSE of the image."""

    def wrong(image_BCHW: Tensor, batch: Batch) -> Tensor:
        return reconstruction_loss(loss, image_BCHW, batch.image_BCHW)

    return Objective(_release, wrong, _squared_error, _clamped_error)


def _surrogate(network: nn.Module, loss: LossSettings = PLAIN, *, image: float, lesson: float) -> Objective:
    """`image` x reconstruction loss + `lesson` x mean squared error of the imagined map, in standardised units.

    Selected by the same sum with the MSE of the image for its reconstruction loss.
    """
    assert isinstance(network, SurrogateInverter)

    def error(imagined_BMHW: Tensor, batch: Batch) -> Tensor:
        (map_BMHW,) = batch.maps.values()
        return (imagined_BMHW - network.lesson(map_BMHW)).square().flatten(1).mean(1)

    def trained_on(output: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        image_BCHW, imagined_BMHW = output
        wrong_B = reconstruction_loss(loss, image_BCHW, batch.image_BCHW)
        return image * wrong_B + lesson * error(imagined_BMHW, batch)

    def selected_by(output: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        image_BCHW, imagined_BMHW = output
        return image * _squared_error(image_BCHW, batch) + lesson * error(imagined_BMHW, batch)

    def metrics(output: tuple[Tensor, Tensor], batch: Batch) -> dict[str, Tensor]:
        return {**_clamped_error(output[0], batch), "explanation_mse": error(output[1], batch)}

    return Objective(lambda batch: (batch.prediction_BK,), trained_on, selected_by, metrics)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "classify": _classify,
    "classify_attributes": _classify_attributes,
    "distil": _distil,
    "invert": _invert,
    "explain": functools.partial(_surrogate, image=0.0, lesson=1.0),
    "invert_explained": functools.partial(_surrogate, image=1.0, lesson=0.0),
    "invert_jointly": functools.partial(_surrogate, image=1.0, lesson=0.1),
}
"""Each takes the network and, of which classifiers make nothing, the `LossSettings` of inverters.

`explain`, then `invert_explained`, are the two stages of the surrogate attack; `invert_jointly` does both at once,
with a tenth of the weight on the map's error (in units of its variance). From random weights, `invert_explained` is the
control of the same capacity: the same network, taught by no explanation."""
