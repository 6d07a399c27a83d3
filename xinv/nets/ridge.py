"""The floor that any inverter must beat: a linear map from the release to the image, solved in closed form.

Axes: B images, C image channels, H W pixels, K classes, M map channels, h w map pixels, D features, P output pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 4096
"""At most so many map values enter (larger maps are pooled), and at most so many pixels come out (then enlarged)."""


class RidgeDecoder(nn.Module):
    """(prediction, maps) -> image: features @ weight_DP, with a constant among the features.

    Args:
        classes: K.
        maps: (M, h, w) of each map.
        channels, size: of the image.
    """

    weight_DP: Tensor

    def __init__(self, classes: int, maps: tuple[tuple[int, int, int], ...], channels: int, size: int) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        self.side = min(size, math.isqrt(FEATURES // channels))
        self.pooled = [_pooled(shape, FEATURES // max(1, len(maps))) for shape in maps]
        inputs = (
            1
            + classes
            + sum(shape[0] * height * width for shape, (height, width) in zip(maps, self.pooled, strict=True))
        )
        self.register_buffer("weight_DP", torch.zeros(inputs, channels * self.side**2))

    def features(self, prediction_BK: Tensor, maps: list[Tensor]) -> Tensor:
        """feature_BD, float32: a one, the logits, the map values."""
        parts = [torch.ones_like(prediction_BK[:, :1]), prediction_BK]
        for map_BMHW, shape in zip(maps, self.pooled, strict=True):
            pooled = map_BMHW if map_BMHW.shape[2:] == shape else F.adaptive_avg_pool2d(map_BMHW, shape)
            parts.append(pooled.flatten(1))
        return torch.cat([part.float() for part in parts], dim=1)

    def answers(self, image_BCHW: Tensor) -> Tensor:
        """pixel_BP, float32: the image as it is regressed on, made smaller where it is large."""
        if image_BCHW.shape[-1] != self.side:
            image_BCHW = F.interpolate(image_BCHW, size=(self.side, self.side), mode="area")
        return image_BCHW.flatten(1).float()

    def forward(self, prediction_BK: Tensor, maps: list[Tensor]) -> Tensor:
        """image_BCHW from logits and maps; values may leave [0, 1]."""
        pixel_BP = self.features(prediction_BK, maps) @ self.weight_DP
        image_BCHW = pixel_BP.view(-1, self.channels, self.side, self.side)
        if self.side == self.size:
            return image_BCHW
        return F.interpolate(image_BCHW, size=(self.size, self.size), mode="bilinear", align_corners=False)


def _pooled(shape: tuple[int, int, int], limit: int) -> tuple[int, int]:
    """Height and width of a map so that all its channels together have at most `limit` values."""
    channels, height, width = shape
    shrink = max(1.0, math.sqrt(channels * height * width / limit))
    return max(1, int(height / shrink)), max(1, int(width / shrink))
