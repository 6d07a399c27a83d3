"""The space of inverters: one validated description for every one of them, and the known ones by name.

No torch in here, so that reading a config costs nothing.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xinv.errors import InputError

MAX_ATTENTION = 32
"""Largest level, in px, that attends: at 32 px a head weighs a million pairs of places, at 64 px sixteen million."""

REFERENCE_SIZE = 64
"""The level, in px, that `width` speaks of where the schedule is `resolution`."""


@dataclass(frozen=True)
class ReleaseShape:
    """What an inverter reads: the number of classes, and (channels, height, width) of every explanation map.

    `optional`: any of the maps may be withheld, so the inverter is told which of them are present.
    """

    classes: int
    maps: tuple[tuple[int, int, int], ...] = ()
    optional: bool = False


class InverterDesign(BaseModel):
    """Every choice that makes an inverter; `PRESETS` names the known ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prediction: Literal["logits", "log_confidences", "none"] = Field(
        "logits",
        description="How the prediction enters: as released; as log-confidences plus a shift, clamped at 0 "
        "(Yang et al. 2019); or not at all.",
    )
    shift: float = Field(50.0, gt=0, description="Added to log-confidences before the clamp (c in Yang et al. 2019).")
    flatten: bool = Field(False, description="Read the maps' raw values too, at their native size, as one vector.")
    summary: Literal["none", "pooled", "patches"] = Field(
        "none",
        description="Read the maps at a cost that large maps do not raise: the mean of every cell of a grid (pooled), "
        "or 16 learned mixtures of tokens of its cells (patches).",
    )
    grid: int = Field(
        16, ge=1, le=32, description="Most cells a side into which a map is cut, for summary and cross-attention."
    )
    encoder: Literal["none", "cnn", "unet"] = Field(
        "none", description="Convolutional encoder of the maps: none; to a vector; the same with skip connections."
    )
    encoder_depth: int | None = Field(None, ge=1, description="Encoder levels (each halves the size); null: all.")
    encoder_width: int | None = Field(None, ge=1, description="Like `width`, for the encoder; null: equal to `width`.")
    skip_size: int | None = Field(
        None,
        ge=2,
        description="unet: skips only from encoder levels of at most this size, and from the coarsest; null: from all.",
    )
    hidden: int = Field(64, ge=1, description="Length of the vector that the encoder ends in.")
    bottleneck: int = Field(
        512, ge=0, description="Length of the vector that joins prediction and explanation; 0: they go on unmixed."
    )
    fusion: Literal["concatenate", "film", "cross_attention"] = Field(
        "concatenate",
        description="concatenate: the prediction joins at the bottleneck. film: it modulates every decoder block too. "
        "cross_attention: decoder levels look at tokens of the explanation and of the prediction too.",
    )
    fusion_size: int = Field(
        16, ge=2, le=MAX_ATTENTION, description="Cross-attention in levels of at most this size, and in the coarsest."
    )
    tokens: Literal["patches", "encoder"] = Field(
        "patches",
        description="What cross-attention looks at: cells of the maps, or of the encoder's first level that the grid "
        "holds place by place (else its coarsest).",
    )
    token_width: int = Field(64, ge=1, description="Length of a token, for summary=patches and cross-attention.")
    condition: int = Field(64, ge=1, description="Length of the prediction's embedding for film.")
    upsampling: Literal["nearest", "transposed", "pixel_shuffle"] = Field(
        "transposed", description="How the decoder doubles the size."
    )
    blocks: int = Field(
        1, ge=0, description="Convolution blocks a decoder level; 0: the up-sampling layers are all there is."
    )
    full_size_blocks: bool = Field(
        False, description="Whether the level at full image size has blocks as well. Where it is the only one, it has."
    )
    attention_size: int | None = Field(
        None,
        ge=2,
        le=MAX_ATTENTION,
        description="Self-attention in decoder levels of at most this size, and in the coarsest; null: none.",
    )
    residual: bool = Field(False, description="Residual blocks of two convolutions in place of single convolutions.")
    normalisation: Literal["none", "group", "layer"] = Field(
        "none", description="Normalisation within blocks: none; of groups of channels; of each place on its own."
    )
    activation: Literal["relu", "leaky_relu", "gelu", "silu", "tanh"] = Field(
        "relu", description="Activation within blocks."
    )
    width: int = Field(
        16,
        ge=1,
        description="Channels at full image size (doubling), of a level of 64 px (resolution), or channels times size "
        "(inverse_size).",
    )
    width_limit: int = Field(512, ge=1, description="No level is wider than this (inverse_size aside).")
    width_floor: int = Field(8, ge=1, description="No level is narrower than this (resolution only).")
    schedule: Literal["doubling", "resolution", "inverse_size"] = Field(
        "doubling",
        description="doubling: channels double with every halving of the image. resolution: likewise, but counted from "
        "the level's own size in pixels, so that a larger image adds thin levels and leaves the others as they are. "
        "inverse_size: width // size (GNIME).",
    )
    smallest: int = Field(4, ge=2, description="The decoder starts from the last halving that is at least this large.")
    head: Literal["linear", "sigmoid"] = Field(
        "linear", description="Last step: none (values may leave [0, 1]) or a sigmoid."
    )

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        reads_vector = self.flatten or self.summary != "none" or self.encoder != "none"
        if self.prediction == "none" and not reads_vector:
            raise ValueError(
                "the inverter would start from nothing: choose a prediction, flatten, summary or an encoder"
            )
        if self.prediction == "none" and self.fusion == "film":
            raise ValueError("fusion=film modulates by the prediction, and prediction=none leaves none")
        if self.flatten and self.summary != "none":
            raise ValueError("summary reads what flatten reads already: choose flatten=false or summary=none")
        if self.skip_size is not None and self.encoder != "unet":
            raise ValueError("skip_size limits the skips of encoder=unet; set it to null, or choose that encoder")
        if self.schedule == "resolution" and self.width_floor > self.width_limit:
            raise ValueError(
                f"width_floor={self.width_floor} is more than width_limit={self.width_limit}: no width is both"
            )
        if self.blocks == 0 and (self.upsampling != "transposed" or self.encoder == "unet" or self.fusion == "film"):
            raise ValueError("blocks=0 needs upsampling=transposed, no unet and no film: nothing else would learn")
        if self.upsampling == "nearest" and self.bottleneck == 0:
            raise ValueError("upsampling=nearest repeats the bottleneck, so bottleneck must be at least 1")
        return self

    @model_validator(mode="after")
    def _attention_fits(self) -> Self:
        if self.tokens == "encoder" and (self.fusion != "cross_attention" or self.encoder == "none"):
            raise ValueError(
                "tokens=encoder is what fusion=cross_attention reads of an encoder: choose both, or tokens=patches"
            )
        if self.fusion != "cross_attention" and self.attention_size is None:
            return self
        if self.blocks == 0:
            raise ValueError(
                "attention follows a level's blocks, and blocks=0 leaves none: choose blocks of 1 or more, or "
                "attention_size=null and another fusion"
            )
        if self.smallest > MAX_ATTENTION // 2:
            raise ValueError(
                f"the coarsest level always attends, and smallest={self.smallest} lets it be larger than "
                f"{MAX_ATTENTION} px; lower smallest to {MAX_ATTENTION // 2} or less"
            )
        return self

    @property
    def reads_maps(self) -> bool:
        """Whether an explanation is used at all."""
        return self.flatten or self.encoder != "none" or self.reads_cells or self.summary == "pooled"

    @property
    def reads_cells(self) -> bool:
        """Whether tokens of the maps' own cells are made."""
        return self.summary == "patches" or (self.fusion == "cross_attention" and self.tokens == "patches")

    def sizes(self, size: int) -> list[int]:
        """Sizes of the levels, the image's first: 32 -> 32, 16, 8, 4."""
        sizes = [size]
        while sizes[-1] // 2 >= self.smallest:
            sizes.append(sizes[-1] // 2)
        return sizes

    def skips_from(self, sizes: list[int]) -> list[bool]:
        """Which of the encoder's levels, of these sizes, pass their activations to the decoder."""
        if self.encoder != "unet":
            return [False] * len(sizes)
        return _within(sizes[0] if self.skip_size is None else self.skip_size, sizes)

    def attends_at(self, sizes: list[int]) -> list[bool]:
        """Which of the decoder's levels, of these sizes, have self-attention."""
        return [False] * len(sizes) if self.attention_size is None else self._behind_blocks(self.attention_size, sizes)

    def looks_at_tokens_at(self, sizes: list[int]) -> list[bool]:
        """Which of the decoder's levels, of these sizes, have cross-attention."""
        crosses = self.fusion == "cross_attention"
        return self._behind_blocks(self.fusion_size, sizes) if crosses else [False] * len(sizes)

    def blocks_at(self, level: int, levels: int) -> int:
        """Blocks of the decoder's level (0: full image size), of so many levels."""
        return self.blocks if level or self.full_size_blocks or levels == 1 else 0

    def _behind_blocks(self, limit: int, sizes: list[int]) -> list[bool]:
        return [near and self.blocks_at(level, len(sizes)) > 0 for level, near in enumerate(_within(limit, sizes))]

    def channels(self, width: int, sizes: list[int]) -> list[int]:
        """Channels of every level in `sizes`. InputError where the schedule leaves a level without any."""
        if self.schedule == "doubling":
            return [min(width * 2**level, self.width_limit) for level in range(len(sizes))]
        if self.schedule == "resolution":
            return [self._channels_at(width, size) for size in sizes]
        if width < sizes[0]:
            raise InputError(
                f"schedule=inverse_size with width {width} has no channels left at {sizes[0]} px; widen it."
            )
        return [width // size for size in sizes]

    def _channels_at(self, width: int, size: int) -> int:
        # In eights, which groups of channels divide and which GPUs multiply best.
        eights = max(1, round(width * REFERENCE_SIZE / size / 8))
        return max(self.width_floor, min(self.width_limit, 8 * eights))


def _within(limit: int, sizes: list[int]) -> list[bool]:
    # The coarsest whatever its size: else a limit would mean nothing at some sizes of image, without a word.
    return [size <= limit or size == sizes[-1] for size in sizes]


# The five designs of the paper (Zhao et al., ICCV 2021, Fig. 2d-2g and the encoder without skips) share one decoder, so
# that a difference between them is a difference in what they read. The paper's widths are not public (no code, and no
# numbers in the copies that could be read): these are sized for the demo, and `width` scales them.
_PAPER: dict[str, Any] = {"upsampling": "transposed", "blocks": 1, "width": 16, "bottleneck": 256}
# WSP-LAB/GNIME, read as facts: layer tables in tests/test_inverter.py.
_GNIME: dict[str, Any] = {"upsampling": "nearest", "schedule": "inverse_size", "smallest": 3}
_FILM: dict[str, Any] = {
    "fusion": "film",
    "upsampling": "pixel_shuffle",
    "residual": True,
    "normalisation": "group",
    "activation": "silu",
    "head": "sigmoid",
    "full_size_blocks": True,
    "bottleneck": 256,
}

PRESETS: dict[str, InverterDesign] = {
    "prediction_only": InverterDesign(**_PAPER),
    "flatten": InverterDesign(**_PAPER, flatten=True),
    "cnn": InverterDesign(**_PAPER, encoder="cnn"),
    "unet": InverterDesign(**_PAPER, encoder="unet"),
    "flatten_unet": InverterDesign(**_PAPER, flatten=True, encoder="unet"),
    # What stands for Flatten where maps are large: its weights grow with the map's area, these with nothing.
    "pooled": InverterDesign(**_PAPER, summary="pooled"),
    "patches": InverterDesign(**_PAPER, summary="patches"),
    # Yang et al., CCS 2019, at 64 px: ngf = 2 * width = 128. GroupNorm stands where the reference has BatchNorm: the
    # same parameters, but ranks and batch mates stay independent. Confidences are not truncated to the top k.
    "yang_tcnn": InverterDesign(
        prediction="log_confidences",
        bottleneck=0,
        upsampling="transposed",
        blocks=0,
        normalisation="group",
        activation="tanh",
        width=64,
        width_limit=1024,
        head="sigmoid",
    ),
    "gnime_predmi": InverterDesign(**_GNIME, width=4096, bottleneck=1024),
    "gnime_expmi": InverterDesign(
        **_GNIME, width=1024, encoder_width=2048, bottleneck=512, hidden=64, encoder="unet", flatten=True
    ),
    "film_unet": InverterDesign(**_FILM, encoder="unet", width=24),
    # The same for 64 to 1024 px: a level's width is a matter of its own size, so that it can grow with the images, and
    # what is wide is small. The other one is its baseline, which sees predictions alone.
    "pyramid": InverterDesign(**_FILM, encoder="unet", width=48, schedule="resolution"),
    "pyramid_prediction_only": InverterDesign(**_FILM, width=48, schedule="resolution"),
}


def preset(name: str, **changes: Any) -> InverterDesign:
    """The preset called `name`, with some fields changed. InputError for an unknown name."""
    if name not in PRESETS:
        raise InputError(f"no inverter design is called '{name}'; known are {', '.join(sorted(PRESETS))}.")
    return InverterDesign(**{**PRESETS[name].model_dump(), **changes})
