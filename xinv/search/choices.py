"""The section `space` of a search: which values each axis may take, and what a candidate may cost."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from xinv.nets.design import PRESETS, InverterDesign
from xinv.train.losses import LossSettings
from xinv.train.settings import TrainingSettings

Choices = tuple[int, ...]
Sizes = tuple[int | None, ...]
# One channel would be erased by normalisation=layer.
Widths = tuple[Annotated[int, Field(ge=2)], ...]
Shares = tuple[Annotated[float, Field(gt=0)], ...]
Rates = tuple[Annotated[float, Field(ge=0, lt=1)], ...]
Limit = Annotated[int, Field(ge=1)] | str | None


class SpaceSettings(BaseModel):
    """Values that each axis of the search may take; one value alone fixes it. Budgets bound what they make together.

    The meaning of each axis is that of the key of the same name in a design (`attack.designs`), in `attack.training` or
    in `attack.loss`; those that have no key of the same name are described here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    prediction: tuple[Literal["logits", "log_confidences", "none"], ...] = Field(
        ("logits", "log_confidences"), description="how the prediction enters"
    )
    reading: tuple[Literal["none", "flatten", "pooled", "patches"], ...] = Field(
        ("none", "flatten", "pooled", "patches"),
        description="what of the maps joins the vector beside an encoder: none, their values (flatten) or a summary",
    )
    encoder: tuple[Literal["none", "cnn", "unet"], ...] = Field(
        ("none", "cnn", "unet"), description="convolutional encoder of the maps"
    )
    fusion: tuple[Literal["concatenate", "film", "cross_attention"], ...] = Field(
        ("concatenate", "film", "cross_attention"), description="how the explanation and the prediction meet"
    )
    tokens: tuple[Literal["patches", "encoder"], ...] = Field(
        ("patches", "encoder"), description="what cross-attention looks at"
    )
    blocks: Choices = Field((1, 2), description="convolution blocks of a decoder level")
    upsampling: tuple[Literal["nearest", "transposed", "pixel_shuffle"], ...] = Field(
        ("nearest", "transposed", "pixel_shuffle"), description="how the decoder doubles the size"
    )
    bottleneck: Choices = Field((64, 128, 256, 512), description="length of the vector that joins all that is read")
    attention_size: Sizes = Field((None, 8, 16), description="largest decoder level with self-attention; null: none")
    smallest: Choices = Field((4, 8), description="least size at which the decoder may start")
    grid: Choices = Field((8, 16), description="cells a side into which maps are cut")
    token_width: Choices = Field((32, 64), description="length of a token")
    fusion_size: Choices = Field((8, 16), description="largest decoder level with cross-attention")
    condition: Choices = Field((32, 64, 128), description="length of the prediction's embedding for film")
    encoder_depth: Sizes = Field((2, 3, None), description="encoder levels; null: all")
    encoder_share: Shares = Field((0.5, 1.0, 2.0), description="the encoder's width, in widths of the decoder")
    hidden: Choices = Field((32, 64, 128, 256), description="length of the vector that the encoder ends in")
    skip_size: Sizes = Field((8, 16, None), description="largest encoder level with a skip connection; null: all have")
    width: Widths = Field((8, 12, 16, 24, 32, 48), description="channels at full image size; they double with halving")
    width_limit: Widths = Field((64, 128, 256, 512), description="no level is wider than this")
    full_size_blocks: tuple[bool, ...] = Field((False, True), description="whether the full image size has blocks too")
    residual: tuple[bool, ...] = Field((False, True), description="residual blocks in place of single convolutions")
    normalisation: tuple[Literal["none", "group", "layer"], ...] = Field(
        ("none", "group", "layer"), description="normalisation within blocks"
    )
    activation: tuple[Literal["relu", "leaky_relu", "gelu", "silu", "tanh"], ...] = Field(
        ("relu", "leaky_relu", "gelu", "silu"), description="activation within blocks"
    )
    head: tuple[Literal["linear", "sigmoid"], ...] = Field(("linear", "sigmoid"), description="last step")
    learning_rate: tuple[float, float] = Field(
        (5e-4, 1e-2), description="lowest and highest peak learning rate, sampled by its logarithm"
    )
    batch_size: Choices = Field((32, 64, 128), description="images per optimizer step")
    weight_decay: tuple[float, ...] = Field((0.0, 1e-3, 1e-2, 1e-1), description="decoupled weight decay")
    beta2: Rates = Field((0.95, 0.99, 0.999), description="Adam's decay rate of squared gradients")
    warmup: tuple[float, ...] = Field((0.05, 0.2), description="share of all steps in which the learning rate rises")
    l1: tuple[float, ...] = Field((0.0, 0.1, 0.5), description="weight of the absolute error beside the MSE's 1")
    ssim: tuple[float, ...] = Field((0.0, 0.02, 0.1), description="weight of 1 - SSIM")
    gradient: tuple[float, ...] = Field((0.0, 0.1), description="weight of the error of edges")
    frequency: tuple[float, ...] = Field((0.0, 0.05), description="weight of the error of the spectrum")
    max_parameters: Limit = Field(
        None, description="most numbers learned: a count, or the preset that has as many; null: no limit"
    )
    max_flops: Limit = Field(
        None, description="most FLOPs of a training step for each image: a count, or the preset that takes as many"
    )
    max_memory: ByteSize | None = Field(None, description="most memory of a trial beside its process, such as 2GiB")

    @field_validator("*", mode="before")
    @classmethod
    def _one_value_is_a_list_of_one(cls, value: Any, info: Any) -> Any:
        if info.field_name.startswith("max_") or isinstance(value, list | tuple):
            return value
        return [value, value] if info.field_name == "learning_rate" else [value]

    @model_validator(mode="after")
    def _holds_something(self) -> "SpaceSettings":
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, tuple) and not value:
                raise ValueError(f"the space is empty: {name} has no value; give one, or leave the key out")
            if isinstance(value, tuple) and name != "learning_rate" and len(set(value)) < len(value):
                raise ValueError(f"{name} names a value twice")
            if isinstance(value, tuple):
                _check(name, value)
            if isinstance(value, str) and value not in PRESETS:
                raise ValueError(f"{name} is {value!r}; give a number or one of the presets {', '.join(PRESETS)}")
        low, high = self.learning_rate
        if not 0 < low <= high:
            raise ValueError(f"learning_rate goes from {low} to {high}; give the lower first, both above 0")
        return self


def _check(name: str, values: tuple[Any, ...]) -> None:
    """ValueError where the key of a design, a training or a loss that an axis stands for cannot have such a value."""
    found = (model.model_fields.get(name) for model in (InverterDesign, TrainingSettings, LossSettings))
    field = next((field for field in found if field is not None), None)
    if field is None:
        return
    bare: Any = field.annotation
    kind: TypeAdapter[Any] = TypeAdapter(Annotated[bare, *field.metadata] if field.metadata else bare)
    for value in values:
        try:
            kind.validate_python(value)
        except ValidationError as error:
            raise ValueError(f"{name} cannot be {value!r}: {error.errors()[0]['msg']}") from None
