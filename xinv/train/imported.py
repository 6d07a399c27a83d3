"""A target that its owner has trained: the function that builds it and the file that holds its weights.

In a stage folder it lies like any trained network: `network.json` says how to build it (a function's name, in place of
an architecture) and `weights.safetensors` is a copy of the owner's file. Nothing is ever unpickled.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from xinv.errors import InputError
from xinv.files import read_json
from xinv.nets.imported import FUNCTION, build_imported
from xinv.train.weights import NETWORK, WEIGHTS, ClassifierSpec, load_classifier, load_classifier_spec, read_spec

NAMED = 3  # how many tensors a message names


class ImportedSettings(BaseModel):
    """A trained network of the user's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    function: str = Field(
        alias="import",
        description="package.module:function, which builds the network: a torch.nn.Module that maps images (B, C, H, "
        "W) in [0, 1] to logits (B, K); looked for in the folder where xinv is started, then among installed modules",
    )
    weights: Path = Field(description="its trained weights, a .safetensors file with the names of its state_dict()")
    arguments: dict[str, JsonValue] = Field(default_factory=dict, description="what the function is called with")
    layer: str | None = Field(
        None,
        coerce_numbers_to_str=True,  # `layer: 5` of an nn.Sequential is a number to YAML
        description="dotted name of the module whose output class activation maps read; null: the last convolutional "
        "map, where the network makes plain which that is",
    )

    @model_validator(mode="before")
    @classmethod
    def _not_trained_here(cls, value: Any) -> Any:
        both = [key for key in ("network", "training") if isinstance(value, dict) and key in value]
        if both:
            raise ValueError(
                f"an imported target is trained already and takes no {' and no '.join(both)}; expected either import, "
                "weights, arguments and layer, or network and training"
            )
        return value

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, value: str) -> str:
        if not FUNCTION.fullmatch(value):
            raise ValueError(f"expected package.module:function, such as my_models:build, got {value!r}")
        return value

    @model_serializer(mode="wrap")
    def _by_its_key(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`import`, which cannot be an attribute's name, so that a dump loads again."""
        return {"import" if name == "function" else name: value for name, value in handler(self).items()}


class ImportedSpec(BaseModel):
    """All that is needed to build the network of an imported target, provided that its function can be imported."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["imported"] = "imported"
    function: str
    arguments: dict[str, JsonValue]
    layer: str | None = Field(description="what class activation maps read; null: no layer offers itself")
    channels: int
    size: int
    classes: int

    def build(self, directory: Path | None = None) -> nn.Module:
        """The network as the function makes it, untrained, in evaluation mode.

        Its weights come from the global generators (torch's, and whichever else the function uses): seed them first.
        `directory`: where the function's module is looked for first; None: the working directory.
        """
        return build_imported(self.function, self.arguments, self.layer, directory or Path.cwd())


def load_target_spec(folder: Path) -> ClassifierSpec | ImportedSpec:
    """How the target in a stage folder, ours or imported, is built. InputError when the folder holds none."""
    if read_json(folder / NETWORK).get("kind") == "imported":
        return read_spec(folder, ImportedSpec)
    return load_classifier_spec(folder)


def load_target(folder: Path, directory: Path | None = None) -> nn.Module:
    """The trained target in a stage folder, ours or imported, in evaluation mode.

    `directory`: see `ImportedSpec.build`. InputError: no target, weights that do not fit, a function that is not there.
    """
    if read_json(folder / NETWORK).get("kind") != "imported":
        return load_classifier(folder)
    network = read_spec(folder, ImportedSpec).build(directory)
    fill_exactly(network, folder / WEIGHTS)
    return network.eval()


def fill_exactly(network: nn.Module, path: Path) -> None:
    """Put the tensors of a safetensors file into `network`: one for each of its own, none besides.

    A tensor that the network holds under several names (tied weights) may be in the file under one of them, as
    `safetensors.torch.save_model` writes it. InputError: no such file, another format, names or shapes that differ.
    """
    found = _read(path)
    state = network.state_dict()
    own = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    given = {_place(own[name]) for name in found if name in own}
    tied = {name for name, value in own.items() if _place(value) in given}
    wrong = {
        # What is no tensor (a module's extra state) can be in no safetensors file.
        "tensors missing": [name for name in state if name not in found and name not in tied],
        "unexpected tensors": [name for name in sorted(found) if name not in own],
        "tensors of another shape": [
            f"{name} {tuple(found[name].shape)}, expected {tuple(own[name].shape)}"
            for name in own
            if name in found and found[name].shape != own[name].shape
        ],
    }
    if any(wrong.values()):
        told = "; ".join(f"{len(names)} {what}: {_few(names)}" for what, names in wrong.items() if names)
        raise InputError(
            f"{path} does not fit the network that target.import builds: {told}. Check target.arguments, and that "
            "the file holds the state_dict() of this very network."
        )
    network.load_state_dict(found, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(
            f"{path} is missing; expected the target's trained weights (target.weights), as "
            "safetensors.torch.save_file(network.state_dict(), path) writes them."
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(
            f"{path} is no safetensors file ({error}). Files that torch.save wrote are not read, because loading one "
            "can run code: write safetensors.torch.save_file(network.state_dict(), path)."
        ) from None


def _place(value: Tensor) -> tuple[int, torch.Size]:
    """Where a tensor lies: the same for two names of one tensor."""
    return (value.data_ptr() or id(value)), value.shape


def _few(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def file_digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read piece by piece."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
