"""Attention for inverters: places of a feature map look at each other, or at tokens of an explanation.

Axes in tensor names: B batch, C channels, H height, W width, N places (row by row), T tokens, h heads, d width of a
head, D width of a query, E width of a token, F features of a position.

Written as two matrix products and a softmax, not as torch's fused attention: on a GPU the gradients of that are added
up in varying order, and an audit must give the same answer twice. So memory grows as places times tokens, and
`InverterDesign` bounds both.

Every parameter is read inside its own module's forward and nowhere else, so that ZeRO-3 gathers it in time.
"""

import math

import torch
from torch import Tensor, nn

MAX_HEADS = 8
MIN_HEAD_WIDTH = 16
OCTAVES = 5  # the finest wave has a half-period of 1/16 of the side: what tells neighbours on the largest grid apart


def head_count(width: int) -> int:
    """The most heads, up to 8, that divide `width` and have 16 channels or more each; 1 where there are none."""
    fitting = [n for n in range(2, MAX_HEADS + 1) if width % n == 0 and width // n >= MIN_HEAD_WIDTH]
    return max(fitting, default=1)


class Position(nn.Module):
    """A vector (N, D) for every cell of a grid: a linear layer over sines and cosines of its centre's coordinates.

    Coordinates are shares of the picture's sides, whatever the grid, so that a place of one grid can find the cell of
    another that covers it (Fourier features: Tancik et al., NeurIPS 2020).

    Args:
        rows, columns: of the grid.
        width: D.
        span: how far the grid reaches, in sides of the picture (above 1 where the last cells stick out).
    """

    code_NF: Tensor

    def __init__(self, rows: int, columns: int, width: int, span: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__()
        y_N, x_N = torch.meshgrid(
            *((torch.arange(n) + 0.5) / n * reach for n, reach in zip((rows, columns), span, strict=True)),
            indexing="ij",
        )
        angle_NF = torch.cat(
            [axis.reshape(-1, 1) * math.pi * 2.0 ** torch.arange(OCTAVES) for axis in (y_N, x_N)], dim=1
        )
        self.register_buffer("code_NF", torch.cat([angle_NF.sin(), angle_NF.cos()], dim=1))
        self.linear = nn.Linear(4 * OCTAVES, width)

    def forward(self) -> Tensor:
        return self.linear(self.code_NF)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., NeurIPS 2017): queries (B, N, D) read tokens (B, T, E).

    It gives (B, N, D).

    Args:
        width: D.
        token_width: E.
        silent: start with an output of zero, for a branch beside a residual connection.
    """

    def __init__(self, width: int, token_width: int, silent: bool) -> None:
        super().__init__()
        self.heads = head_count(width)
        self.query = nn.Linear(width, width)
        self.token = nn.Linear(token_width, 2 * width)
        self.out = nn.Linear(width, width)
        if silent:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, query_BND: Tensor, token_BTE: Tensor) -> Tensor:
        query_BhNd = self.query(query_BND).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key_BhTd, value_BhTd = self.token(token_BTE).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weight_BhNT = (query_BhNd @ key_BhTd.transpose(2, 3) / query_BhNd.shape[-1] ** 0.5).softmax(dim=-1)
        return self.out((weight_BhNT @ value_BhTd).transpose(1, 2).flatten(2))


class FeatureAttention(nn.Module):
    """Every place of a feature map (B, C, size, size) looks at all others, or at tokens, and adds what it finds.

    Layer normalisation precedes it whatever the design's normalisation: dot products of raw features would saturate the
    softmax. Untrained, it changes nothing (as `Film`).

    Args:
        channels, size: of the feature map.
        token_width: E of the tokens that it looks at; None: at its own places (self-attention).
    """

    def __init__(self, channels: int, size: int, token_width: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.position = Position(size, size, channels)
        self.token_norm = None if token_width is None else nn.LayerNorm(token_width)
        self.attention = Attention(channels, token_width or channels, silent=True)

    def forward(self, feature_BCHW: Tensor, token_BTE: Tensor | None = None) -> Tensor:
        place_BNC = self.norm(feature_BCHW.flatten(2).transpose(1, 2)) + self.position()
        source = place_BNC if self.token_norm is None else self.token_norm(token_BTE)
        change_BNC = self.attention(place_BNC, source)
        return feature_BCHW + change_BNC.transpose(1, 2).unflatten(2, feature_BCHW.shape[2:])
