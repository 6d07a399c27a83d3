"""The decoder of an inverter: a vector to an image, level by level, from its smallest size to the image's.

Axes in tensor names: B batch, C channels, H height, W width, D vector, E condition or width of a token, T tokens.
"""

import torch
from torch import Tensor, nn

from xinv.nets.attention import FeatureAttention
from xinv.nets.blocks import (
    BroadcastStart,
    ConvBlock,
    LinearStart,
    NearestUp,
    PixelShuffleUp,
    ResidualBlock,
    TransposedStart,
    layout_for,
    make_activation,
    make_norm,
    transposed_up,
)
from xinv.nets.design import InverterDesign
from xinv.nets.recompute import Levelled


class DecoderLevel(nn.Module):
    """Blocks at one size, after the skip of that size has joined; attention, where it has any; up to the next size."""

    def __init__(
        self,
        blocks: list[nn.Module],
        up: list[nn.Module],
        layout: torch.memory_format,
        attention: FeatureAttention | None,
        cross_attention: FeatureAttention | None,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.blocks = nn.ModuleList(blocks)
        self.attention = attention
        self.cross_attention = cross_attention
        self.up = nn.Sequential(*up)

    def forward(
        self,
        feature_BCHW: Tensor,
        skip_BCHW: Tensor | None,
        condition_BE: Tensor | None,
        token_BTE: Tensor | None,
    ) -> Tensor:
        if skip_BCHW is not None:
            feature_BCHW = torch.cat([feature_BCHW, skip_BCHW.to(feature_BCHW.dtype)], dim=1)
        feature_BCHW = feature_BCHW.contiguous(memory_format=self.layout)
        for block in self.blocks:
            feature_BCHW = block(feature_BCHW, condition_BE)
        if self.attention is not None:
            feature_BCHW = self.attention(feature_BCHW)
        if self.cross_attention is not None:
            feature_BCHW = self.cross_attention(feature_BCHW, token_BTE)
        return self.up(feature_BCHW)


class Decoder(Levelled):
    """A vector (B, D), skips by level, a condition (B, E) and tokens (B, T, E) to an image (B, C, H, W)."""

    def __init__(self, design: InverterDesign, vector: int, skips: list[int], channels: int, size: int) -> None:
        super().__init__()
        sizes = design.sizes(size)
        widths = design.channels(design.width, sizes)
        skips = skips + [0] * (len(sizes) - len(skips))
        attends, looks = design.attends_at(sizes), design.looks_at_tokens_at(sizes)
        self.start, fan_in = _start(design, vector, widths[-1], sizes[-1])
        self.levels = nn.ModuleList()
        for level in reversed(range(len(sizes))):
            fan_in += skips[level]
            blocks, fan_in = _blocks(design, design.blocks_at(level, len(sizes)), fan_in, widths[level])
            own = FeatureAttention(fan_in, sizes[level]) if attends[level] else None
            cross = FeatureAttention(fan_in, sizes[level], design.token_width) if looks[level] else None
            up: list[nn.Module] = []
            if level:
                last = level == 1 and design.blocks == 0
                to_width = channels if last else widths[level - 1]
                up, fan_in = _up(design, fan_in, to_width, sizes[level], sizes[level - 1], last)
            self.levels.append(DecoderLevel(blocks, up, layout_for(design.normalisation), own, cross))
        head: list[nn.Module] = []
        if design.residual:
            head += [make_norm(design.normalisation, fan_in), make_activation(design.activation)]
        if design.blocks or len(sizes) == 1:
            head.append(nn.Conv2d(fan_in, channels, 3, padding=1))
        if design.head == "sigmoid":
            head.append(nn.Sigmoid())
        self.head = nn.Sequential(*head)

    @property
    def output(self) -> nn.Conv2d | nn.ConvTranspose2d:
        """The convolution that makes the image's channels: of the head, or where it has none the last up-sampling."""
        return [part for part in self.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)][-1]

    def forward(
        self,
        vector_BD: Tensor,
        skips: list[Tensor | None],
        condition_BE: Tensor | None,
        token_BTE: Tensor | None,
    ) -> Tensor:
        feature_BCHW = self.start(vector_BD)
        for level, layer in zip(reversed(range(len(self.levels))), self.levels, strict=True):
            skip_BCHW = skips[level] if level < len(skips) else None
            feature_BCHW = self.through(layer, feature_BCHW, skip_BCHW, condition_BE, token_BTE)
        return self.through(self.head, feature_BCHW)


def _start(design: InverterDesign, vector: int, width: int, size: int) -> tuple[nn.Module, int]:
    if design.upsampling == "nearest":
        return BroadcastStart(size), vector
    if design.upsampling == "transposed":
        layer = TransposedStart(vector, width, size, exact=design.bottleneck == 0)
        norm, activation = make_norm(design.normalisation, width), make_activation(design.activation)
        return nn.Sequential(layer, norm, activation), width
    return LinearStart(vector, width, size), width


def _blocks(design: InverterDesign, count: int, fan_in: int, width: int) -> tuple[list[nn.Module], int]:
    block = ResidualBlock if design.residual else ConvBlock
    condition = design.condition if design.fusion == "film" else 0
    blocks: list[nn.Module] = []
    for _ in range(count):
        blocks.append(block(fan_in, width, design.normalisation, design.activation, condition))
        fan_in = width
    return blocks, fan_in


def _up(
    design: InverterDesign, fan_in: int, fan_out: int, from_size: int, to_size: int, last: bool
) -> tuple[list[nn.Module], int]:
    if design.upsampling == "nearest":
        return [NearestUp(to_size)], fan_in
    if design.upsampling == "pixel_shuffle":
        return [PixelShuffleUp(fan_in, fan_out, from_size, to_size)], fan_out
    layers: list[nn.Module] = [transposed_up(fan_in, fan_out, from_size, to_size)]
    if not last:
        layers += [make_norm(design.normalisation, fan_out), make_activation(design.activation)]
    return layers, fan_out
