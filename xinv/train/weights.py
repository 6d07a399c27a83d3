"""A trained network on disk: `network.json` says how to build it, `weights.safetensors` holds its numbers."""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xinv.data.attributes import Attribute
from xinv.errors import InputError
from xinv.files import aside, read_json, write_json
from xinv.nets.classifier import Classifier, ClassifierSettings, build_classifier
from xinv.nets.inverter import Inverter, InverterDesign, ReleaseShape, build_inverter
from xinv.nets.quotient import QuotientDecoder
from xinv.nets.ridge import RidgeDecoder
from xinv.nets.surrogate import ImageOnly, SurrogateInverter

NETWORK = "network.json"
WEIGHTS = "weights.safetensors"


class ClassifierSpec(BaseModel):
    """All that is needed to build a classifier."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["classifier"] = "classifier"
    settings: ClassifierSettings
    channels: int
    size: int
    classes: int
    identities: tuple[str, ...] = Field(
        (), description="whom it tells apart, in the order of its logits; empty: it predicts labels"
    )
    attributes: tuple[Attribute, ...] = Field(
        (), description="what it reads in place of labels, in the order of its logits: a group each, a logit a value"
    )
    left_out: dict[str, str] = Field(
        default_factory=dict, description="attributes of the images that it was not asked to read, with the reasons"
    )

    def build(self) -> Classifier:
        network = build_classifier(self.settings, self.channels, self.size, self.classes)
        network.groups = tuple(len(attribute.values) for attribute in self.attributes)
        return network


class InverterSpec(BaseModel):
    """All that is needed to build an inverter for a given release."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["inverter"] = "inverter"
    design: InverterDesign
    channels: int
    size: int
    classes: int
    methods: tuple[str, ...] = Field(description="explanation methods in the order of the network's inputs")
    maps: tuple[tuple[int, int, int], ...] = Field(description="(M, h, w) of each method's map")
    explanation_dropout: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="probability with which training withholds each explanation of an image; the network is then told "
        "which ones are present. null: it always has all of them",
    )

    def build(self) -> Inverter:
        release = ReleaseShape(self.classes, self.maps, optional=self.explanation_dropout is not None)
        return build_inverter(self.design, release, self.channels, self.size)


class SurrogateSpec(BaseModel):
    """All that is needed to build an inverter that imagines the explanation, for a target that gives none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["surrogate"] = "surrogate"
    explainer: InverterDesign
    design: InverterDesign
    channels: int
    size: int
    classes: int
    methods: tuple[str, ...] = Field(min_length=1, max_length=1, description="the surrogate's explanation")
    maps: tuple[tuple[int, int, int], ...] = Field(min_length=1, max_length=1, description="(M, h, w) of its map")

    def build(self) -> SurrogateInverter:
        return SurrogateInverter(self.explainer, self.design, self.classes, self.maps[0], self.channels, self.size)


class RidgeSpec(BaseModel):
    """All that is needed to build a ridge decoder, whose weights `leak.closed_form` solves for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ridge"] = "ridge"
    channels: int
    size: int
    classes: int
    methods: tuple[str, ...]
    maps: tuple[tuple[int, int, int], ...]

    def build(self) -> RidgeDecoder:
        return RidgeDecoder(self.classes, self.maps, self.channels, self.size)


class QuotientSpec(BaseModel):
    """All that is needed to build a quotient decoder, whose mean image `closed_forms` fills in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["quotient"] = "quotient"
    channels: int
    size: int

    def build(self) -> QuotientDecoder:
        return QuotientDecoder(self.channels, self.size)


NetworkSpec = Annotated[ClassifierSpec | InverterSpec | SurrogateSpec, Field(discriminator="kind")]


InverterKind = InverterSpec | SurrogateSpec | RidgeSpec | QuotientSpec
"""Everything that makes an image of a release."""


def save_spec(folder: Path, spec: ClassifierSpec | InverterKind) -> None:
    """Write network.json."""
    write_json(folder / NETWORK, spec.model_dump(mode="json"))


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write a flat dict of CPU tensors as safetensors, atomically."""
    with aside(path) as draft:
        save_file(weights, draft)


def load_classifier(folder: Path) -> Classifier:
    """The trained classifier in a stage folder, in eval mode. InputError when the folder holds none."""
    network = load_classifier_spec(folder).build()
    fill(network, folder)
    return network.eval()


def load_classifier_spec(folder: Path) -> ClassifierSpec:
    """How the classifier in a stage folder is built. InputError when the folder holds none."""
    return read_spec(folder, ClassifierSpec)


def load_inverter(folder: Path) -> nn.Module:
    """The trained inverter in a stage folder, in eval mode: (prediction_BK, maps) -> image_BCHW. InputError when the
    folder holds none."""
    network = load_inverter_spec(folder).build()
    fill(network, folder)
    network.eval()
    return ImageOnly(network).eval() if isinstance(network, SurrogateInverter) else network


def load_inverter_spec(folder: Path) -> InverterKind:
    """What the inverter in a stage folder takes and gives."""
    kind = read_json(folder / NETWORK).get("kind")
    if kind == "surrogate":
        return read_spec(folder, SurrogateSpec)
    if kind == "quotient":
        return read_spec(folder, QuotientSpec)
    return read_spec(folder, RidgeSpec) if kind == "ridge" else read_spec(folder, InverterSpec)


Spec = TypeVar("Spec", bound=BaseModel)


def read_spec(folder: Path, kind: type[Spec]) -> Spec:
    """network.json of a stage folder as a spec of this kind. InputError when it describes something else."""
    try:
        return kind.model_validate(read_json(folder / NETWORK))
    except ValidationError as error:
        raise InputError(
            f"{folder / NETWORK} does not describe a {kind.__name__} ({error.error_count()} problems)."
        ) from error


def fill(network: nn.Module, folder: Path) -> None:
    """Put the weights of a stage folder into `network`. InputError when there are none, or of another shape."""
    try:
        network.load_state_dict(load_weights(folder))
    except RuntimeError as error:
        raise InputError(f"{folder / WEIGHTS} does not fit {NETWORK} beside it: {error}") from error


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a stage folder on the CPU, by name. InputError when there are none, or the file is damaged."""
    path = folder / WEIGHTS
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: this network was never trained to its end.") from None
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}") from error
