"""Classifiers: targets under audit (`cnn`, `vit`, `gnime_cnn`) and the evaluator's other architecture (`residual`).

Axes in tensor names: B batch, C image channels, H height, W width, K classes, D embedding.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from xinv.errors import InputError
from xinv.nets.blocks import ResidualBlock, make_activation, make_norm
from xinv.nets.recompute import Levels
from xinv.nets.vit import ClassToken, PatchMap, PatchTokens, SelfAttention, TransformerBlock

CAM_SIZE = 14  # halving goes on while a map is at least this large, so that the last one is 7x7 to 13x13
MAX_FACTOR = 8  # no layer is wider than this many times the first
VIT_BLOCKS = 4
GNIME_LARGE = 64  # px from which GNIME's CNN has a third convolution, and dropout


class ClassifierSettings(BaseModel):
    """Which classifier to build."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Literal["cnn", "residual", "vit", "gnime_cnn"] = Field(
        "cnn",
        description="cnn: convolution, ReLU, pooling and a linear head, every explanation but those of attention works "
        "on it. residual: GroupNorm, GELU and skip connections; gradients and CAMs work on it, LRP does not. vit: a "
        "small vision transformer; as residual, and attention rollout. gnime_cnn: the target of GNIME at width 32.",
    )
    width: int = Field(
        32,
        ge=4,
        le=1024,
        description="Channels of the first convolution; doubles with every halving. vit: a quarter of a token's width; "
        "gnime_cnn: a quarter of the first convolution's.",
    )


class Classifier(nn.Module):
    """A network with a named last convolution and a penultimate embedding; `build_classifier` makes all kinds.

    Images are float32 in [0, 1], shape (B, C, H, W); logits are raw scores, shape (B, K). A network that answers
    several questions at once has its logits in `groups`, of so many each, side by side; empty: one question.
    """

    def __init__(self, features: nn.Sequential, embedding: nn.Module, head: nn.Linear, cam_name: str) -> None:
        super().__init__()
        self.features = features
        self.embedding = embedding
        self.head = head
        self.cam_name = cam_name
        self.groups: tuple[int, ...] = ()

    @property
    def cam_layer(self) -> nn.Module:
        """The module whose output is the last convolutional activation map (8x8 for a 32 px image).

        Of a `vit`, the patches' tokens before the last block, as a map.
        """
        return self.get_submodule(self.cam_name)

    @property
    def attention_layers(self) -> tuple[nn.Module, ...]:
        """The modules whose outputs are attention weights (B, heads, T, T), in order; none but in a `vit`."""
        return tuple(module.weights for module in self.modules() if isinstance(module, SelfAttention))

    def embed(self, image_BCHW: Tensor) -> Tensor:
        """The penultimate layer's activations, shape (B, D): what the head classifies."""
        embedding_BD: Tensor = self.embedding(torch.flatten(self.features(image_BCHW), 1))
        return embedding_BD

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Logits, shape (B, K)."""
        logit_BK: Tensor = self.head(self.embed(image_BCHW))
        return logit_BK


def build_classifier(settings: ClassifierSettings, channels: int, size: int, classes: int) -> Classifier:
    """A fresh classifier for square images of `size` px. Weights come from torch's global generator."""
    if size < 8 or channels < 1 or classes < 2:
        raise InputError(
            f"A classifier needs images of at least 8 px, 1 channel and 2 classes; got {size} px, {channels} channels "
            f"and {classes} classes."
        )
    return NETWORKS[settings.network](settings.width, channels, size, classes)


def level_sizes(size: int) -> list[int]:
    """Sizes of the activation maps from the image down to the one Grad-CAM reads: 32 -> 32, 16, 8."""
    sizes = [size]
    while sizes[-1] >= CAM_SIZE:
        sizes.append(sizes[-1] // 2)
    return sizes


def _widths(width: int, levels: int) -> list[int]:
    return [width * min(2**level, MAX_FACTOR) for level in range(levels)]


def _cnn(width: int, channels: int, size: int, classes: int) -> Classifier:
    # Layers that captum's LRP knows, each used once: no normalisation, no in-place or shared ReLU, no Flatten module.
    sizes = level_sizes(size)
    layers: list[nn.Module] = []
    fan_in = channels
    for width_here in _widths(width, len(sizes)):
        layers += [nn.Conv2d(fan_in, width_here, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        fan_in = width_here
    cam_name = f"features.{len(layers) - 2}"  # the last ReLU
    hidden = 8 * width
    embedding = nn.Sequential(nn.Linear(fan_in * (sizes[-1] // 2) ** 2, hidden), nn.ReLU())
    return Classifier(Levels(layers, range(3, len(layers) + 1, 3)), embedding, nn.Linear(hidden, classes), cam_name)


def _residual(width: int, channels: int, size: int, classes: int) -> Classifier:
    sizes = level_sizes(size)
    widths = _widths(width, len(sizes))
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
    ends = []
    for level, width_here in enumerate(widths):
        if level:
            layers.append(nn.Conv2d(widths[level - 1], width_here, 2, stride=2))
        layers.append(ResidualBlock(width_here, width_here, "group", "gelu"))
        ends.append(len(layers))
    layers += [make_norm("group", widths[-1]), make_activation("gelu")]
    cam_name = f"features.{len(layers) - 1}"
    layers.append(nn.AdaptiveAvgPool2d(1))
    levels = Levels(layers, [*ends[:-1], len(layers)])
    return Classifier(levels, nn.Identity(), nn.Linear(widths[-1], classes), cam_name)


def _vit(width: int, channels: int, size: int, classes: int) -> Classifier:
    # As many patches along a side as the other networks have places in their last map, one more where they cut.
    token = 4 * width
    tokens = PatchTokens(channels, size, size // level_sizes(size)[-1], token)
    blocks = [TransformerBlock(token) for _ in range(VIT_BLOCKS)]
    layers = [tokens, *blocks[:-1], PatchMap(tokens.side), blocks[-1], ClassToken(token)]
    features = Levels(layers, range(1, len(layers) + 1))
    return Classifier(features, nn.Identity(), nn.Linear(token, classes), f"features.{VIT_BLOCKS}.grid")


def _gnime_cnn(width: int, channels: int, size: int, classes: int) -> Classifier:
    """The target of GNIME (facts from its public code): 128 and 256 channels and a dense layer of 512.

    Its CelebA target, for 128 px, has a third convolution of 512 channels, and dropout around the dense layer.
    """
    large = size >= GNIME_LARGE
    layers: list[nn.Module] = []
    fan_in = channels
    for factor in (4, 8, 16) if large else (4, 8):
        layers += [nn.Conv2d(fan_in, factor * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        fan_in, size = factor * width, size // 2
    cam_name = f"features.{len(layers) - 2}"
    dense: list[nn.Module] = [nn.Linear(fan_in * size**2, 16 * width), nn.ReLU()]
    embedding = nn.Sequential(nn.Dropout(0.5), *dense, nn.Dropout(0.5)) if large else nn.Sequential(*dense)
    features = Levels(layers, range(3, len(layers) + 1, 3))
    return Classifier(features, embedding, nn.Linear(16 * width, classes), cam_name)


NETWORKS = {"cnn": _cnn, "residual": _residual, "vit": _vit, "gnime_cnn": _gnime_cnn}
