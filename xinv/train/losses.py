"""How far a reconstruction is from its image, as inverters learn it: a weighted sum of terms, each a figure per image.

No term asks another network: what an evaluator looks for must not be taught to the attacker it judges.

Axes: B images, C channels, H rows, W columns.
"""

import math
from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

WINDOW_RADIUS = 5
WINDOW_SIGMA = 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


class LossSettings(BaseModel):
    """Weights of the terms of the reconstruction loss; the default is the mean squared error alone, as in the paper.

    Whatever is trained on, the weights that are kept are those of the lowest validation MSE (of the values as they are,
    not clamped): attacks trained on different losses are selected, and can be compared, by one figure.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mse: float = Field(1.0, ge=0, description="weight of the mean squared error (Zhao et al., ICCV 2021, Sec. 3)")
    l1: float = Field(0.0, ge=0, description="weight of the mean absolute error")
    ssim: float = Field(0.0, ge=0, description="weight of 1 - SSIM, the SSIM of scores.json")
    gradient: float = Field(
        0.0, ge=0, description="weight of the mean absolute error of differences between neighbouring pixels (edges)"
    )
    frequency: float = Field(
        0.0, ge=0, description="weight of the mean modulus of the error's orthonormal 2-D Fourier transform"
    )

    @model_validator(mode="after")
    def _learns_something(self) -> "LossSettings":
        if not any(self.weights().values()):
            raise ValueError("every weight of the loss is 0, so nothing would be learned; give mse or another one")
        return self

    def weights(self) -> dict[str, float]:
        """Weight by term."""
        return self.model_dump()


def squared_error(image_BCHW: Tensor, truth_BCHW: Tensor) -> Tensor:
    """Mean over C, H and W of the squared difference, (B,)."""
    return (image_BCHW - truth_BCHW).square().flatten(1).mean(1)


def absolute_error(image_BCHW: Tensor, truth_BCHW: Tensor) -> Tensor:
    """Mean over C, H and W of the absolute difference, (B,)."""
    return (image_BCHW - truth_BCHW).abs().flatten(1).mean(1)


def gradient_error(image_BCHW: Tensor, truth_BCHW: Tensor) -> Tensor:
    """Absolute error of vertical and of horizontal finite differences, the mean of the two, (B,)."""
    error_BCHW = image_BCHW - truth_BCHW  # differences are linear: those of the error are the errors of them
    return (error_BCHW.diff(dim=2).abs().flatten(1).mean(1) + error_BCHW.diff(dim=3).abs().flatten(1).mean(1)) / 2


def frequency_error(image_BCHW: Tensor, truth_BCHW: Tensor) -> Tensor:
    """Mean over C and frequencies of the modulus of the difference of the spectra (orthonormal 2-D FFT), (B,).

    The complex difference, so that phases count: a difference of magnitudes alone would leave it open where things are.
    """
    return torch.fft.fft2(image_BCHW - truth_BCHW, norm="ortho").abs().flatten(1).mean(1)


def dissimilarity(image_BCHW: Tensor, truth_BCHW: Tensor) -> Tensor:
    """1 - SSIM, (B,): the SSIM of `leak.metrics.image_metrics`, of the values as they are (none is clamped).

    Images of at least 6 px. Written out here because torchmetrics convolves: on a GPU that may round to TF32, of which
    a difference of two squares leaves little, and the gradients of its reflection are added up in varying order.
    """
    own_BCHW, own_square_BCHW, product_BCHW = _blurred(
        torch.cat([image_BCHW, image_BCHW.square(), image_BCHW * truth_BCHW])
    ).chunk(3)
    true_BCHW, true_square_BCHW = _blurred(torch.cat([truth_BCHW, truth_BCHW.square()])).chunk(2)
    variance_BCHW = (own_square_BCHW - own_BCHW.square()).clamp_min(0)
    variance_BCHW = variance_BCHW + (true_square_BCHW - true_BCHW.square()).clamp_min(0)
    covariance_BCHW = product_BCHW - own_BCHW * true_BCHW
    luminance_BCHW = (2 * own_BCHW * true_BCHW + SSIM_C1) / (own_BCHW.square() + true_BCHW.square() + SSIM_C1)
    structure_BCHW = (2 * covariance_BCHW + SSIM_C2) / (variance_BCHW + SSIM_C2)
    return 1 - (luminance_BCHW * structure_BCHW).flatten(1).mean(1)


def _blurred(image_BCHW: Tensor) -> Tensor:
    """The Gaussian window's mean around every pixel, borders reflected."""
    bell = [math.exp(-0.5 * (step / WINDOW_SIGMA) ** 2) for step in range(-WINDOW_RADIUS, WINDOW_RADIUS + 1)]
    for axis in (2, 3):
        length = image_BCHW.shape[axis]
        before = image_BCHW.narrow(axis, 1, WINDOW_RADIUS).flip(axis)
        after = image_BCHW.narrow(axis, length - 1 - WINDOW_RADIUS, WINDOW_RADIUS).flip(axis)
        padded = torch.cat([before, image_BCHW, after], dim=axis)
        image_BCHW = padded.narrow(axis, 0, length) * (bell[0] / sum(bell))
        for step in range(1, len(bell)):
            image_BCHW = torch.add(image_BCHW, padded.narrow(axis, step, length), alpha=bell[step] / sum(bell))
    return image_BCHW


TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": squared_error,
    "l1": absolute_error,
    "ssim": dissimilarity,
    "gradient": gradient_error,
    "frequency": frequency_error,
}


def reconstruction_loss(settings: LossSettings, image_BCHW: Tensor, truth_BCHW: Tensor) -> Tensor:
    """The weighted sum of the terms, (B,), of a reconstruction, whose values may leave [0, 1], and its image."""
    parts = [weight * TERMS[name](image_BCHW, truth_BCHW) for name, weight in settings.weights().items() if weight]
    total_B = parts[0]
    for part_B in parts[1:]:
        total_B = total_B + part_B
    return total_B
