"""The parts of a small vision transformer (Dosovitskiy et al., ICLR 2021), pre-norm, with a class token.

Axes in tensor names: B batch, C image channels, H height, W width, T tokens (the class token first, then the patches
row by row), D width of a token, h and w patches along the image's sides.

Every parameter is read inside its own module's forward and nowhere else, so that ZeRO-3 gathers it in time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 4
MLP_FACTOR = 2


class PatchTokens(nn.Module):
    """Patches of `patch` px as tokens, with a class token in front and learned positions.

    An image side that `patch` does not divide is filled up with black: every pixel is seen.
    """

    def __init__(self, channels: int, size: int, patch: int, width: int) -> None:
        super().__init__()
        self.side = -(-size // patch)
        self.fill = self.side * patch - size
        self.projection = nn.Conv2d(channels, width, patch, stride=patch)
        self.first = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + self.side**2, width))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        patch_BDhw = self.projection(F.pad(image_BCHW, (0, self.fill, 0, self.fill)))
        token_BTD = patch_BDhw.flatten(2).transpose(1, 2)
        token_BTD = torch.cat([self.first.expand(len(token_BTD), -1, -1), token_BTD], dim=1)
        return token_BTD + self.position


class SelfAttention(nn.Module):
    """Multi-head attention whose weights are the output of a module, where explanations can see them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, 3 * width)
        self.weights = nn.Softmax(dim=-1)  # gives (B, heads, T, T)
        self.out = nn.Linear(width, width)

    def forward(self, token_BTD: Tensor) -> Tensor:
        query, key, value = self.mix(token_BTD).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weight_BhTT = self.weights(query @ key.transpose(2, 3) / query.shape[-1] ** 0.5)
        return self.out((weight_BhTT @ value).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention, then a two-layer perceptron, each behind a layer normalisation and beside a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width)
        self.norm_2 = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, MLP_FACTOR * width), nn.GELU(), nn.Linear(MLP_FACTOR * width, width)
        )

    def forward(self, token_BTD: Tensor) -> Tensor:
        token_BTD = token_BTD + self.attention(self.norm_1(token_BTD))
        return token_BTD + self.perceptron(self.norm_2(token_BTD))


class Grid(nn.Module):
    """Patch tokens as a map: its output is what class activation maps read."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, token_BTD: Tensor) -> Tensor:
        return token_BTD.transpose(1, 2).unflatten(2, (self.side, self.side))


class PatchMap(nn.Module):
    """Passes all tokens on, the patches by way of `grid`.

    It stands before the last block: behind it, only the class token reaches the logits.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.grid = Grid(side)

    def forward(self, token_BTD: Tensor) -> Tensor:
        patch_BDhw = self.grid(token_BTD[:, 1:])
        return torch.cat([token_BTD[:, :1], patch_BDhw.flatten(2).transpose(1, 2)], dim=1)


class ClassToken(nn.Module):
    """The normalised class token, (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, token_BTD: Tensor) -> Tensor:
        return self.norm(token_BTD[:, 0])
