"""The inverter for targets that explain nothing: it imagines the explanation first (Zhao et al., ICCV 2021, Fig. 2c).

    prediction --> explanation inverter --> imagined map --+--> image inverter --> image
              \\--------------------------------------------+

The explanation inverter is taught by the explanations of a surrogate, the attacker's own model ("attention transfer").
An imagined map is a function of the prediction, so by the data processing inequality it adds no information about the
image. Whatever is gained over a prediction-only inverter of the same capacity and budget is easier learning.

Axes: B images, C image channels, H W pixels, K classes, M map channels, h w map pixels.
"""

import torch
from torch import Tensor, nn

from xinv.errors import InputError
from xinv.nets.design import InverterDesign, ReleaseShape
from xinv.nets.inverter import build_inverter


class SurrogateInverter(nn.Module):
    """Prediction -> (image, imagined map). The map is in standardised units: mean 0, spread 1 over the lessons.

    Args:
        explainer: design of the explanation inverter, which reads the prediction alone.
        design: design of the image inverter, which reads the prediction and the imagined map.
        classes: K.
        map_shape: (M, h, w) of the surrogate's explanation; square, at least 8 px.
        channels, size: of the image.

    Raises:
        InputError: a design that does not fit, see `build_inverter`.
    """

    map_mean: Tensor
    map_scale: Tensor

    def __init__(
        self,
        explainer: InverterDesign,
        design: InverterDesign,
        classes: int,
        map_shape: tuple[int, int, int],
        channels: int,
        size: int,
    ) -> None:
        super().__init__()
        map_channels, height, width = map_shape
        if height != width:
            raise InputError(f"The surrogate's maps are {height} x {width}; imagined maps must be square.")
        self.explainer = build_inverter(explainer, ReleaseShape(classes=classes), map_channels, height)
        self.image = build_inverter(design, ReleaseShape(classes=classes, maps=(map_shape,)), channels, size)
        self.register_buffer("map_mean", torch.zeros(map_channels))
        self.register_buffer("map_scale", torch.ones(map_channels))

    def standardise(self, mean_M: Tensor, scale_M: Tensor) -> None:
        """Mean and spread of the lessons' maps, one value a map channel."""
        with torch.no_grad():
            self.map_mean.copy_(mean_M)
            self.map_scale.copy_(scale_M)

    @property
    def begins_at_mean(self) -> bool:
        """As `Inverter.begins_at_mean`."""
        return self.image.begins_at_mean

    def begin_at(self, level_C: Tensor) -> None:
        """The mean of the images, in [0, 1] for each channel (`Inverter.begin_at`)."""
        self.image.begin_at(level_C)

    def lesson(self, map_BMHW: Tensor) -> Tensor:
        """A surrogate's map in the units of imagined ones."""
        return (map_BMHW - self.map_mean[:, None, None]) / self.map_scale[:, None, None]

    def forward(self, prediction_BK: Tensor, maps: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) and imagined map (B, M, h, w), float32, from logits (B, K); `maps` are not looked at."""
        imagined_BMHW = self.explainer(prediction_BK, [])
        return self.image(prediction_BK, [imagined_BMHW]), imagined_BMHW


class ImageOnly(nn.Module):
    """A trained SurrogateInverter as scoring calls every inverter: (prediction, maps) -> image."""

    def __init__(self, network: SurrogateInverter) -> None:
        super().__init__()
        self.network = network

    def forward(self, prediction_BK: Tensor, maps: list[Tensor]) -> Tensor:
        image_BCHW: Tensor = self.network(prediction_BK)[0]
        return image_BCHW
