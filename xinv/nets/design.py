"""The space of inverters: one validated description for every one of them, and the known ones by name.

No torch in here, so that reading a config costs nothing.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xinv.errors import InputError


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
    encoder: Literal["none", "cnn", "unet"] = Field(
        "none", description="Convolutional encoder of the maps: none; to a vector; the same with skip connections."
    )
    encoder_depth: int | None = Field(None, ge=1, description="Encoder levels (each halves the size); null: all.")
    encoder_width: int | None = Field(None, ge=1, description="Like `width`, for the encoder; null: equal to `width`.")
    hidden: int = Field(64, ge=1, description="Length of the vector that the encoder ends in.")
    bottleneck: int = Field(
        512, ge=0, description="Length of the vector that joins prediction and explanation; 0: they go on unmixed."
    )
    fusion: Literal["concatenate", "film"] = Field(
        "concatenate",
        description="concatenate: the prediction joins at the bottleneck. film: it modulates every decoder block too.",
    )
    condition: int = Field(64, ge=1, description="Length of the prediction's embedding for film.")
    upsampling: Literal["nearest", "transposed", "pixel_shuffle"] = Field(
        "transposed", description="How the decoder doubles the size."
    )
    blocks: int = Field(
        1, ge=0, description="Convolution blocks a decoder level; 0: the up-sampling layers are all there is."
    )
    full_size_blocks: bool = Field(False, description="Whether the level at full image size has blocks as well.")
    residual: bool = Field(False, description="Residual blocks of two convolutions in place of single convolutions.")
    normalisation: Literal["none", "group"] = Field("none", description="Normalisation within blocks.")
    activation: Literal["relu", "leaky_relu", "gelu", "silu", "tanh"] = Field(
        "relu", description="Activation within blocks."
    )
    width: int = Field(
        16, ge=1, description="Channels at full image size (doubling), or channels times size (inverse_size)."
    )
    width_limit: int = Field(512, ge=1, description="No level is wider than this (doubling only).")
    schedule: Literal["doubling", "inverse_size"] = Field(
        "doubling", description="Channels double with every halving, or are width // size (GNIME)."
    )
    smallest: int = Field(4, ge=2, description="The decoder starts from the last halving that is at least this large.")
    head: Literal["linear", "sigmoid"] = Field(
        "linear", description="Last step: none (values may leave [0, 1]) or a sigmoid."
    )

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.prediction == "none" and not self.reads_maps:
            raise ValueError("the inverter would read nothing: choose a prediction, flatten or an encoder")
        if self.prediction == "none" and self.fusion == "film":
            raise ValueError("fusion=film modulates by the prediction, and prediction=none leaves none")
        if self.blocks == 0 and (self.upsampling != "transposed" or self.encoder == "unet" or self.fusion == "film"):
            raise ValueError("blocks=0 needs upsampling=transposed, no unet and no film: nothing else would learn")
        if self.upsampling == "nearest" and self.bottleneck == 0:
            raise ValueError("upsampling=nearest repeats the bottleneck, so bottleneck must be at least 1")
        return self

    @property
    def reads_maps(self) -> bool:
        """Whether an explanation is used at all."""
        return self.flatten or self.encoder != "none"

    def sizes(self, size: int) -> list[int]:
        """Sizes of the levels, the image's first: 32 -> 32, 16, 8, 4."""
        sizes = [size]
        while sizes[-1] // 2 >= self.smallest:
            sizes.append(sizes[-1] // 2)
        return sizes

    def channels(self, width: int, sizes: list[int]) -> list[int]:
        """Channels of every level in `sizes`. InputError where the schedule leaves a level without any."""
        if self.schedule == "doubling":
            return [min(width * 2**level, self.width_limit) for level in range(len(sizes))]
        if width < sizes[0]:
            raise InputError(
                f"schedule=inverse_size with width {width} has no channels left at {sizes[0]} px; widen it."
            )
        return [width // size for size in sizes]


# The five designs of the paper (Zhao et al., ICCV 2021, Fig. 2d-2g and the encoder without skips) share one decoder, so
# that a difference between them is a difference in what they read. The paper's widths are not public (no code, and no
# numbers in the copies that could be read): these are sized for the demo, and `width` scales them.
_PAPER: dict[str, Any] = {"upsampling": "transposed", "blocks": 1, "width": 16, "bottleneck": 256}
# WSP-LAB/GNIME, read as facts: layer tables in tests/test_inverter.py.
_GNIME: dict[str, Any] = {"upsampling": "nearest", "schedule": "inverse_size", "smallest": 3}

PRESETS: dict[str, InverterDesign] = {
    "prediction_only": InverterDesign(**_PAPER),
    "flatten": InverterDesign(**_PAPER, flatten=True),
    "cnn": InverterDesign(**_PAPER, encoder="cnn"),
    "unet": InverterDesign(**_PAPER, encoder="unet"),
    "flatten_unet": InverterDesign(**_PAPER, flatten=True, encoder="unet"),
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
    "film_unet": InverterDesign(
        encoder="unet",
        fusion="film",
        upsampling="pixel_shuffle",
        residual=True,
        normalisation="group",
        activation="silu",
        full_size_blocks=True,
        head="sigmoid",
        width=24,
        bottleneck=256,
    ),
}


def preset(name: str, **changes: Any) -> InverterDesign:
    """The preset called `name`, with some fields changed. InputError for an unknown name."""
    if name not in PRESETS:
        raise InputError(f"no inverter design is called '{name}'; known are {', '.join(sorted(PRESETS))}.")
    return InverterDesign(**{**PRESETS[name].model_dump(), **changes})
