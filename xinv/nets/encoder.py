"""The encoder of an inverter: explanation maps to a vector, level by level, with what each level sees on the way.

Axes in tensor names: B batch, C channels, H height, W width, M map channels.
"""

import torch
from torch import Tensor, nn

from xinv.nets.blocks import ConvBlock, ResidualBlock, layout_for, make_activation
from xinv.nets.design import InverterDesign
from xinv.nets.recompute import Levelled


class Encoder(Levelled):
    """Maps (B, M, H, W) to a vector (B, hidden) and, on the way, one activation map a level before it is pooled.

    `widths` and `sizes` are those of the activation maps; `skips` says which of them go to the decoder.
    """

    def __init__(self, design: InverterDesign, maps: int, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes = sizes[: design.encoder_depth]
        self.skips = design.skips_from(sizes)
        self.widths = design.channels(design.encoder_width or design.width, sizes)
        block = ResidualBlock if design.residual else ConvBlock
        self.levels = nn.ModuleList()
        fan_in = maps
        if design.residual:  # a pre-activation block must not begin by normalising a single raw channel
            self.stem: nn.Module = nn.Conv2d(maps, self.widths[0], 3, padding=1)
            fan_in = self.widths[0]
        else:
            self.stem = nn.Identity()
        for width in self.widths:
            self.levels.append(block(fan_in, width, design.normalisation, design.activation))
            fan_in = width
        self.pool = nn.MaxPool2d(2)
        self.layout = layout_for(design.normalisation)
        self.hidden = nn.Linear(fan_in * (sizes[-1] // 2) ** 2, design.hidden)
        self.activation = make_activation(design.activation)

    def forward(self, map_BMHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        feature_BCHW = self.stem(map_BMHW)
        for level in self.levels:
            activation_BCHW, feature_BCHW = self.through(self._descend, level, feature_BCHW)
            features.append(activation_BCHW)
        return self.activation(self.hidden(torch.flatten(feature_BCHW, 1))), features

    def _descend(self, level: nn.Module, feature_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The activation map of a level, and what goes on to the next one."""
        feature_BCHW = level(feature_BCHW).contiguous(memory_format=self.layout)
        return feature_BCHW, self.pool(feature_BCHW)
