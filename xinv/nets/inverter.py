"""One design space for every inverter: from a release (prediction and explanation maps) back to the image.

    prediction --+-------------------------------------------+ (FiLM)
    maps --------+- flatten --+- bottleneck - start - level - level - ... - head - image
                 +- summary --+                        |       |
                 +- encoder --+                        |       |
                 |      +------------ skips -----------+-------+        (unet)
                 +----------------- tokens ------------+-------+        (cross-attention)

Axes in tensor names: B batch, C image channels, H height, W width, K classes, M map channels, D vector, E condition or
width of a token, T tokens, G explanations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xinv.errors import InputError
from xinv.nets.blocks import ExactLinear, make_activation
from xinv.nets.decoder import Decoder
from xinv.nets.design import PRESETS, InverterDesign, ReleaseShape, preset
from xinv.nets.encoder import Encoder
from xinv.nets.patches import Cells, PatchTokens, TokenMixer

__all__ = ["PRESETS", "Inverter", "InverterDesign", "ReleaseShape", "build_inverter", "preset"]

MIN_SIZE = 8
MIXTURES = 16
MARGIN = 0.01
"""Least distance from 0 and 1 of the level at which an output begins: a sigmoid learns slowly near its ends."""


class PredictionBranch(nn.Module):
    """Logits (B, K) as the inverter reads them; float32, no parameters."""

    def __init__(self, kind: str, shift: float) -> None:
        super().__init__()
        self.kind = kind
        self.shift = shift

    def forward(self, logit_BK: Tensor) -> Tensor:
        logit_BK = logit_BK.float()
        if self.kind == "logits":
            return logit_BK
        return (F.log_softmax(logit_BK, dim=1) + self.shift).clamp(min=0)


class Inverter(nn.Module):
    """Reconstructs an image from a release; `build_inverter` makes it from a design.

    Maps are standardised by the buffers `map_mean` and `map_scale` (one value a map channel, the maps' channels in
    order; 0 and 1 until `standardise` sets them). The encoder sees them resized to the image (bilinear; where they are
    larger, means), the flatten branch at their native size, where they are smallest and nothing is lost; summary and
    tokens are of native size too.

    Where the release is `optional`, explanations may be withheld image by image: a withheld one is zero after
    standardisation (its mean), and which ones are present is an input of its own, since an average map and no map are
    two things. It joins the vector that the bottleneck reads, and what `fusion` makes of the prediction: the condition
    of film, the token of cross_attention.
    """

    map_mean: Tensor
    map_scale: Tensor

    def __init__(self, design: InverterDesign, release: ReleaseShape, channels: int, size: int) -> None:
        super().__init__()
        self.design = design
        self.release = release
        self.size = size
        map_channels = sum(shape[0] for shape in release.maps)
        self.register_buffer("map_mean", torch.zeros(map_channels))
        self.register_buffer("map_scale", torch.ones(map_channels))
        self.cells = [Cells(height, width, design.grid) for _, height, width in release.maps]
        self.encoder: Encoder | None = None
        self.map_tokens = nn.ModuleList()
        self.summary: TokenMixer | None = None
        told = len(release.maps) if release.optional else 0
        facts = told + (release.classes if design.prediction != "none" else 0)
        if design.prediction != "none":
            self.prediction = PredictionBranch(design.prediction, design.shift)
        if design.encoder != "none":
            self.encoder = Encoder(design, map_channels, design.sizes(size))
        if design.reads_cells:
            self.map_tokens.extend(
                PatchTokens(shape, design.grid, design.token_width, design.activation) for shape in release.maps
            )
        if design.summary == "patches":
            self.summary = TokenMixer(sum(cells.count for cells in self.cells), MIXTURES)
        vector = facts + self._read_values()
        self.bottleneck = nn.Sequential()
        if design.bottleneck:
            self.bottleneck = nn.Sequential(ExactLinear(vector, design.bottleneck), make_activation(design.activation))
            vector = design.bottleneck
        self.condition = nn.Sequential()
        if design.fusion == "film":
            self.condition = nn.Sequential(ExactLinear(facts, design.condition), make_activation(design.activation))
        self.context: ExactLinear | None = None
        self.level_tokens: PatchTokens | None = None
        if design.fusion == "cross_attention" and facts:
            self.context = ExactLinear(facts, design.token_width)
        if design.tokens == "encoder":
            self.level_tokens = self._level_tokens()
        skips: list[int] = []
        if self.encoder is not None:
            skips = [width if on else 0 for width, on in zip(self.encoder.widths, self.encoder.skips, strict=True)]
        self.decoder = Decoder(design, vector, skips, channels, size)

    def _read_values(self) -> int:
        """How many values of the explanation join the vector."""
        design, maps, values = self.design, self.release.maps, 0
        if design.flatten:
            values += sum(m * h * w for m, h, w in maps)
        if design.summary == "pooled":
            values += sum(m * cells.count for (m, _, _), cells in zip(maps, self.cells, strict=True))
        if self.summary is not None:
            values += MIXTURES * design.token_width
        return values + (design.hidden if self.encoder is not None else 0)

    def _level_tokens(self) -> PatchTokens:
        """Tokens of the encoder's first level that the grid holds place by place, else of its coarsest."""
        assert self.encoder is not None
        sizes, design = self.encoder.sizes, self.design
        self.level = next((level for level, size in enumerate(sizes) if size <= design.grid), len(sizes) - 1)
        shape = (self.encoder.widths[self.level], sizes[self.level], sizes[self.level])
        return PatchTokens(shape, design.grid, design.token_width, design.activation)

    @torch.no_grad()
    def standardise(self, mean_M: Tensor, scale_M: Tensor) -> None:
        """Set what maps are standardised by: (map - mean) / scale, one value a map channel. InputError if unusable."""
        count = len(self.map_mean)
        if mean_M.shape != (count,) or scale_M.shape != (count,):
            raise InputError(
                f"The inverter reads {count} map channels, so mean and scale need {count} values each; got shapes "
                f"{tuple(mean_M.shape)} and {tuple(scale_M.shape)}."
            )
        if not (torch.isfinite(mean_M).all() and torch.isfinite(scale_M).all() and (scale_M > 0).all()):
            raise InputError("Map means must be finite and map scales finite and positive; a constant map has scale 1.")
        self.map_mean.copy_(mean_M)
        self.map_scale.copy_(scale_M)

    @property
    def begins_at_mean(self) -> bool:
        """Whether `begin_at` does anything."""
        return self.design.head == "sigmoid"

    @torch.no_grad()
    def begin_at(self, level_C: Tensor) -> None:
        """Let training begin around the mean of the images, `level_C` in [0, 1] for each channel.

        A sigmoid needs it. Where most pixels are dark, the first steps all push its output down; without this many a
        design overshoots to where the sigmoid is flat, and stays black for ever. Other heads find the mean in a few
        steps, and begin as torch has it.
        """
        if self.begins_at_mean:
            bias_C = self.decoder.output.bias
            assert bias_C is not None
            bias_C.copy_(level_C.clamp(MARGIN, 1 - MARGIN).logit())

    def forward(self, prediction_BK: Tensor, maps: list[Tensor], present_BG: Tensor | None = None) -> Tensor:
        """Image (B, C, H, W), float32, from logits (B, K) and one (B, M, h, w) tensor a map, in the release's order.

        `present_BG`, for an optional release alone: 1 where an image's explanation is given, 0 where it is withheld and
        its map not looked at, whatever it holds. None: all are given.
        """
        shapes = tuple(tuple(map_BMHW.shape[1:]) for map_BMHW in maps)
        assert shapes == self.release.maps, f"maps of shapes {shapes}, expected {self.release.maps}"
        maps, told = self._present(self._standardised(maps), present_BG)
        design = self.design
        facts = [self.prediction(prediction_BK)] if design.prediction != "none" else []
        parts = list(facts)
        facts += told
        if design.flatten:
            parts += [torch.flatten(map_BMHW, 1) for map_BMHW in maps]
        if design.summary == "pooled":
            parts += [cells.means(map_BMHW) for cells, map_BMHW in zip(self.cells, maps, strict=True)]
        tokens: list[Tensor] = []
        if design.reads_cells:
            tokens = [embed(map_BMHW) for embed, map_BMHW in zip(self.map_tokens, maps, strict=True)]
        if self.summary is not None:
            parts.append(self.summary(torch.cat(tokens, dim=1)))
        skips: list[Tensor | None] = []
        if self.encoder is not None:
            hidden_BD, features = self.encoder(torch.cat([self._resized(map_BMHW) for map_BMHW in maps], dim=1))
            parts.append(hidden_BD)
            skips = [feature if on else None for feature, on in zip(features, self.encoder.skips, strict=True)]
            if self.level_tokens is not None:
                tokens = [self.level_tokens(features[self.level])]
        vector_BD = self.bottleneck(torch.cat([part.float() for part in parts + told], dim=1))
        condition_BE = self.condition(torch.cat(facts, dim=1)) if design.fusion == "film" else None
        if self.context is not None:
            tokens.append(self.context(torch.cat(facts, dim=1))[:, None])
        token_BTE = torch.cat(tokens, dim=1) if design.fusion == "cross_attention" else None
        image_BCHW: Tensor = self.decoder(vector_BD, skips, condition_BE, token_BTE)
        return image_BCHW.float()

    def _present(self, maps: list[Tensor], present_BG: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """The maps with withheld ones at zero, and which ones are present, where the release is optional."""
        if not self.release.optional:
            assert present_BG is None, "this inverter was not made for withheld explanations"
            return maps, []
        batch = len(maps[0])
        if present_BG is None:
            present_BG = maps[0].new_ones((batch, len(maps)), dtype=torch.float32)
        assert present_BG.shape == (batch, len(maps)), f"a mask of shape {tuple(present_BG.shape)}"
        maps = [
            map_BMHW.masked_fill((present_B == 0)[:, None, None, None], 0.0)
            for map_BMHW, present_B in zip(maps, present_BG.unbind(1), strict=True)
        ]
        return maps, [present_BG.float()]

    def _standardised(self, maps: list[Tensor]) -> list[Tensor]:
        counts = [shape[0] for shape in self.release.maps]
        means, scales = self.map_mean.split(counts), self.map_scale.split(counts)
        return [
            (map_BMHW - mean_M[:, None, None]) / scale_M[:, None, None]
            for map_BMHW, mean_M, scale_M in zip(maps, means, scales, strict=True)
        ]

    def _resized(self, map_BMHW: Tensor) -> Tensor:
        if map_BMHW.shape[2:] == (self.size, self.size):
            return map_BMHW
        if map_BMHW.shape[2] > self.size:  # of a network that grows: bilinear would look at a few of the values
            return F.adaptive_avg_pool2d(map_BMHW, self.size)
        return F.interpolate(map_BMHW, size=(self.size, self.size), mode="bilinear", align_corners=False)


def build_inverter(design: InverterDesign, release: ReleaseShape, channels: int, size: int) -> Inverter:
    """A fresh inverter to square images of `size` px with `channels` channels. Weights: torch's global generator.

    InputError when design and release do not fit: no map for a design that reads maps, or maps that it would ignore.
    """
    if size < MIN_SIZE or channels < 1 or release.classes < 1:
        raise InputError(
            f"An inverter needs images of at least {MIN_SIZE} px, 1 channel and 1 class; got {size} px, {channels} "
            f"channels and {release.classes} classes."
        )
    if design.reads_maps and not release.maps:
        raise InputError(
            "This inverter reads explanation maps and the release has none; name a method or a design without."
        )
    if release.maps and not design.reads_maps:
        raise InputError(
            "This inverter ignores explanation maps, so give it a release without any (the prediction alone)."
        )
    return Inverter(design, release, channels, size)
