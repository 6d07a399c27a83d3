"""Gradient x input divided by the gradient: the image itself, where a target releases both explanations.

Axes: B images, N explained classes, C image channels, H W pixels, h w map pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

METHODS = ("gradient", "gradient_input")
"""The explanations that it divides, in the order of its inputs."""

THRESHOLD = 1e-6
"""A pixel whose gradient is below this share of the largest of its image is not divided: it is noise, or nothing."""


class QuotientDecoder(nn.Module):
    """(prediction, [gradient, gradient x input]) -> image in [0, 1]. It has no weights but the mean image.

    Each map holds the C channels of the image for the first explained class, then for the second, ... A pixel x of
    channel c is asked to satisfy g_n x = e_n for every class n, with g_n its gradient and e_n its gradient x input; the
    least squares solution is sum_n g_n e_n / sum_n g_n^2. From maps as they are computed (release format raw) this is x
    up to float32 rounding. Formats that lose scale or resolution make it wrong, and clipped to [0, 1]: it is what an
    attacker gets by dividing what was released. Maps smaller than the image are divided first and enlarged then. Pixels
    whose gradient magnitude sqrt(sum_n g_n^2) is below THRESHOLD of the largest in their image take the mean image.

    Args:
        channels, size: of the image.
    """

    mean_CHW: Tensor

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        self.register_buffer("mean_CHW", torch.zeros(channels, size, size))

    def forward(self, prediction_BK: Tensor, maps: list[Tensor]) -> Tensor:
        """image_BCHW, float32. The prediction is not read."""
        gradient_BNChw, product_BNChw = (
            map_BMhw.double().unflatten(1, (-1, self.channels)) for map_BMhw in maps
        )  # float64: the square of a small float32 is 0
        energy_BChw = gradient_BNChw.square().sum(1)
        magnitude_BChw = energy_BChw.sqrt()
        largest_B111 = magnitude_BChw.amax((1, 2, 3), keepdim=True)
        known_BChw = (magnitude_BChw >= THRESHOLD * largest_B111) & (energy_BChw > 0)
        share_BChw = (gradient_BNChw * product_BNChw).sum(1) / torch.where(known_BChw, energy_BChw, 1.0)
        share_BChw = share_BChw.clamp(0, 1).float()
        if share_BChw.shape[2:] != (self.size, self.size):
            full = (self.size, self.size)
            share_BChw = F.interpolate(share_BChw, size=full, mode="bilinear", align_corners=False)
            known_BChw = F.interpolate(known_BChw.float(), size=full, mode="nearest") > 0
        return torch.where(known_BChw, share_BChw, self.mean_CHW)
