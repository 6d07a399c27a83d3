"""Maps cut into cells: the mean of each, or a token of each. Their cost is bounded at every size of map.

Axes in tensor names: B batch, M map channels, H height, W width, T tokens (the cells, row by row), E width of a token.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from xinv.nets.attention import Position
from xinv.nets.blocks import make_activation

MAX_PATCH = 32
"""Most pixels a side that a token's layer reads. Larger cells (of maps over 512 px, in a grid of 16) are averaged down
to that, because the layer's weights would grow with the square of the side."""


@dataclass(frozen=True)
class Cells:
    """A map of `height` x `width` px in square cells of `side` px, at most `grid` a side; the last may stick out."""

    height: int
    width: int
    grid: int

    @property
    def side(self) -> int:
        """Pixels a side of a cell: above MAX_PATCH, a multiple of what is averaged."""
        return self.averaged * -(-max(self.height, self.width) // (self.grid * self.averaged))

    @property
    def averaged(self) -> int:
        """So many pixels a side are averaged before a token's layer reads them."""
        return -(-max(self.height, self.width) // (self.grid * MAX_PATCH))

    @property
    def rows(self) -> int:
        return -(-self.height // self.side)

    @property
    def columns(self) -> int:
        return -(-self.width // self.side)

    @property
    def count(self) -> int:
        return self.rows * self.columns

    def filled(self, map_BMHW: Tensor) -> Tensor:
        """The map with zeros (its mean, once it is standardised) where cells stick out below and to the right."""
        return F.pad(map_BMHW, (0, self.columns * self.side - self.width, 0, self.rows * self.side - self.height))

    def means(self, map_BMHW: Tensor) -> Tensor:
        """(B, M * count): the mean of every cell; pixels that a cell lacks count as zero."""
        return F.avg_pool2d(self.filled(map_BMHW), self.side).flatten(1)


class PatchTokens(nn.Module):
    """Tokens (B, T, E) of a map (B, M, H, W): two layers over each cell, and its place in the picture.

    Args:
        shape: (M, H, W) of the map, which may be an encoder's feature map.
        grid: most cells a side.
        token_width: E.
        activation: name, between the two layers.
    """

    def __init__(self, shape: tuple[int, int, int], grid: int, token_width: int, activation: str) -> None:
        super().__init__()
        channels, height, width = shape
        self.cells = cells = Cells(height, width, grid)
        patch = cells.side // cells.averaged
        self.embed = nn.Sequential(
            nn.Conv2d(channels, token_width, patch, stride=patch),
            make_activation(activation),
            nn.Conv2d(token_width, token_width, 1),
        )
        span = (cells.rows * cells.side / height, cells.columns * cells.side / width)
        self.position = Position(cells.rows, cells.columns, token_width, span)

    def forward(self, map_BMHW: Tensor) -> Tensor:
        map_BMHW = self.cells.filled(map_BMHW)
        if self.cells.averaged > 1:
            map_BMHW = F.avg_pool2d(map_BMHW, self.cells.averaged)
        return self.embed(map_BMHW).flatten(2).transpose(1, 2) + self.position()


class TokenMixer(nn.Module):
    """Tokens (B, T, E) to a vector (B, mixtures * E): learned weighted sums over the places.

    With the layers that made the tokens it is a factorised dense layer over the map: what is in a cell, then where.
    """

    def __init__(self, tokens: int, mixtures: int) -> None:
        super().__init__()
        self.linear = nn.Linear(tokens, mixtures)

    def forward(self, token_BTE: Tensor) -> Tensor:
        return self.linear(token_BTE.transpose(1, 2)).flatten(1)
