"""The parts that classifiers and inverters are made of.

Axes in tensor names: B batch, C channels, H height, W width, D vector, E condition (embedding of the prediction).

Every parameter is read inside its own module's forward and nowhere else, so that ZeRO-3 gathers it in time.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xinv.errors import InputError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
MAX_GROUPS = 8


def make_activation(name: str) -> nn.Module:
    """A new activation module: never shared, because explanation hooks cannot tell two uses of one module apart."""
    return ACTIVATIONS[name]()


class PlaceNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each place of a map on its own (ConvNeXt: Liu et al., CVPR 2022)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def make_norm(name: str, channels: int) -> nn.Module:
    """`group`: GroupNorm with the most groups, up to 8, that divide `channels`. `layer`: PlaceNorm. `none`: nothing.

    There is no BatchNorm: its statistics tie a sample to its batch mates and differ from rank to rank.

    InputError for `layer` over a single channel, which it would turn into a constant.
    """
    if name == "none":
        return nn.Identity()
    if name == "layer":
        if channels < 2:
            raise InputError("normalisation=layer would erase a level of 1 channel; widen it, or use group or none.")
        return PlaceNorm(channels)
    assert name == "group", name
    groups = max(count for count in range(1, MAX_GROUPS + 1) if channels % count == 0)
    return nn.GroupNorm(groups, channels)


def layout_for(normalisation: str) -> torch.memory_format:
    """How a network with this normalisation lays out its activations.

    Convolutions and pooling are up to 1.5 times faster with channels last, GroupNorm is slower than they gain. Weights
    stay as they are: DeepSpeed cannot broadcast channels_last parameters.
    """
    return torch.contiguous_format if normalisation == "group" else torch.channels_last


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """A context in which `device` computes in the precision of what it is given."""
    if device.type == "meta":  # shapes alone: it has no autocast to leave, and torch raises if it is asked to
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class ExactLinear(nn.Linear):
    """A linear layer that stays in its weights' precision under autocast.

    It reads predictions: bf16 keeps 8 bits of a logit, and what the attack feeds on may be in the others.
    """

    def forward(self, input: Tensor) -> Tensor:
        with without_autocast(input.device):
            return F.linear(input.to(self.weight.dtype), self.weight, self.bias)


class Film(nn.Module):
    """Feature-wise linear modulation (Perez et al., AAAI 2018): scales and shifts every channel by the condition.

    The layer starts at zero, so that an untrained one changes nothing.
    """

    def __init__(self, condition: int, channels: int) -> None:
        super().__init__()
        self.affine = nn.Linear(condition, 2 * channels)
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)

    def forward(self, feature_BCHW: Tensor, condition_BE: Tensor) -> Tensor:
        scale_BC, shift_BC = self.affine(condition_BE).chunk(2, dim=1)
        return feature_BCHW * (1 + scale_BC[:, :, None, None]) + shift_BC[:, :, None, None]


class ConvBlock(nn.Module):
    """3x3 convolution, normalisation, modulation (where `condition` > 0), activation."""

    def __init__(
        self, fan_in: int, fan_out: int, normalisation: str = "none", activation: str = "relu", condition: int = 0
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(fan_in, fan_out, 3, padding=1)
        self.norm = make_norm(normalisation, fan_out)
        self.film = Film(condition, fan_out) if condition else None
        self.activation = make_activation(activation)

    def forward(self, feature_BCHW: Tensor, condition_BE: Tensor | None = None) -> Tensor:
        feature_BCHW = self.norm(self.convolution(feature_BCHW))
        if self.film is not None:
            feature_BCHW = self.film(feature_BCHW, condition_BE)
        return self.activation(feature_BCHW)


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al., ECCV 2016) of two 3x3 convolutions, the second one modulated.

    Where the number of channels changes, a 1x1 convolution carries the input past the block.
    """

    def __init__(
        self, fan_in: int, fan_out: int, normalisation: str = "group", activation: str = "silu", condition: int = 0
    ) -> None:
        super().__init__()
        self.norm_1 = make_norm(normalisation, fan_in)
        self.activation_1 = make_activation(activation)
        self.convolution_1 = nn.Conv2d(fan_in, fan_out, 3, padding=1)
        self.norm_2 = make_norm(normalisation, fan_out)
        self.film = Film(condition, fan_out) if condition else None
        self.activation_2 = make_activation(activation)
        self.convolution_2 = nn.Conv2d(fan_out, fan_out, 3, padding=1)
        self.shortcut = nn.Conv2d(fan_in, fan_out, 1) if fan_in != fan_out else nn.Identity()

    def forward(self, feature_BCHW: Tensor, condition_BE: Tensor | None = None) -> Tensor:
        change_BCHW = self.convolution_1(self.activation_1(self.norm_1(feature_BCHW)))
        change_BCHW = self.norm_2(change_BCHW)
        if self.film is not None:
            change_BCHW = self.film(change_BCHW, condition_BE)
        change_BCHW = self.convolution_2(self.activation_2(change_BCHW))
        return self.shortcut(feature_BCHW) + change_BCHW


class NearestUp(nn.Module):
    """Repeats pixels; the convolution that makes "nearest + convolution" is the next level's first block."""

    def __init__(self, to_size: int) -> None:
        super().__init__()
        self.to_size = to_size

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        return F.interpolate(feature_BCHW, size=(self.to_size, self.to_size), mode="nearest")


class PixelShuffleUp(nn.Module):
    """Sub-pixel convolution (Shi et al., CVPR 2016): 1x1 convolution to 4 times the channels, then a rearrangement."""

    def __init__(self, fan_in: int, fan_out: int, from_size: int, to_size: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(fan_in, 4 * fan_out, 1)
        self.extra = to_size - 2 * from_size  # 1 where an odd size was halved, else 0

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        feature_BCHW = F.pixel_shuffle(self.convolution(feature_BCHW), 2)
        if self.extra:
            feature_BCHW = F.pad(feature_BCHW, (0, self.extra, 0, self.extra), mode="replicate")
        return feature_BCHW


def transposed_up(fan_in: int, fan_out: int, from_size: int, to_size: int) -> nn.ConvTranspose2d:
    """4x4 transposed convolution of stride 2 (Yang et al. 2019); one more row and column where the size is odd."""
    extra = to_size - 2 * from_size
    assert extra in (0, 1), (from_size, to_size)
    return nn.ConvTranspose2d(fan_in, fan_out, 4, stride=2, padding=1, output_padding=extra)


class BroadcastStart(nn.Module):
    """A vector repeated at every place of a `size` x `size` map (GNIME's first up-sampling)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, vector_BD: Tensor) -> Tensor:
        return vector_BD[:, :, None, None].expand(-1, -1, self.size, self.size)


class LinearStart(nn.Module):
    """A linear layer from a vector to every value of the first map."""

    def __init__(self, fan_in: int, fan_out: int, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(fan_in, fan_out * size * size)
        self.shape = (fan_out, size, size)

    def forward(self, vector_BD: Tensor) -> Tensor:
        return self.linear(vector_BD).unflatten(1, self.shape)


class TransposedStart(nn.ConvTranspose2d):
    """A transposed convolution from a 1x1 map (the vector) to `size` x `size` (Yang et al. 2019).

    Computed as the matrix product that it is at one pixel: several times faster on a CPU. `exact`: see `ExactLinear`.
    """

    def __init__(self, fan_in: int, fan_out: int, size: int, exact: bool) -> None:
        super().__init__(fan_in, fan_out, size)
        self.exact = exact

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        weight_DN = self.weight.flatten(1)
        with without_autocast(input.device) if self.exact else nullcontext():
            feature_BN = input.to(weight_DN.dtype) @ weight_DN
        feature_BCHW = feature_BN.unflatten(1, self.weight.shape[1:])
        assert self.bias is not None
        return feature_BCHW + self.bias[:, None, None]
