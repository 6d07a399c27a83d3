"""What a target will release, before there is one: shape and type of every map, from its layers alone.

Axes: C image channels, H height, W width, K classes; A, h, w of the cam_layer's output.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xinv.data.fields import FieldSchema
from xinv.errors import InputError
from xinv.release.formats import bytes_per_image, stored
from xinv.release.methods import METHODS
from xinv.release.perturbation import window
from xinv.release.precompute import PREDICTION, ReleaseSettings

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Released:
    """One field of a release set: how it is stored, and the bytes of it that one image gives out."""

    schema: FieldSchema
    bytes: int


def released(network: nn.Module, image: Shape, classes: int, settings: ReleaseSettings) -> dict[str, Released]:
    """Every field of the release set of a target, by its name without the ending, the prediction first.

    `network`: the target, trained or not; on the meta device too, but for one that needs numbers to run.
    InputError where a method has no map of this network (`METHODS[name].check` says why).
    """
    found = {"prediction": Released(FieldSchema(dtype="float32", shape=(classes,)), 4 * classes)}
    cam = _cam(network, image) if any("h, w" in METHODS[name].shape for name in settings.methods) else None
    explained = classes if settings.classes == "all" else settings.classes
    for name in settings.methods:
        channels, height, width = _native(name, network, image, classes, cam)
        channels *= explained if METHODS[name].per_class else 1
        colours = image[0] if METHODS[name].shape.startswith("C,") else 1
        native = (channels, height, width)
        size = bytes_per_image(settings.format, native, colours)
        found[name] = Released(stored(settings.format, native, colours), size)
    return found


def schemas(found: Mapping[str, Released]) -> dict[str, FieldSchema]:
    """As a release set's index names them."""
    return {PREDICTION if name == "prediction" else f"{name}.npy": one.schema for name, one in found.items()}


def _native(name: str, network: nn.Module, image: Shape, classes: int, cam: Shape | None) -> Shape:
    _, height, width = image
    kind = METHODS[name].shape
    if kind == "C, H, W":
        return image
    if kind == "1, H, W":
        return 1, height, width
    if kind == "1, G, G":
        return 1, -(-height // window(height)), -(-width // window(width))
    if kind == "1, P, P":
        layers: Sequence[nn.Module] = network.attention_layers  # type: ignore[assignment]
        side = math.isqrt(_output(network, layers[0], image)[-1] - 1)
        return 1, side, side
    assert cam is not None, f"a map of shape {kind}"
    return {"1, h, w": 1, "K, h, w": classes, "A, h, w": cam[0]}[kind], cam[1], cam[2]


def _cam(network: nn.Module, image: Shape) -> Shape:
    """(A, h, w) of what the cam_layer gives for one image."""
    layer = getattr(network, "cam_layer", None)
    if layer is None:
        raise InputError(
            "Class activation maps need a network with a cam_layer, and this one names none (target.layer)."
        )
    _, maps, height, width = _output(network, layer, image)
    return maps, height, width


def _output(network: nn.Module, layer: nn.Module, image: Shape) -> tuple[int, ...]:
    """The shape of what a layer gives for one image."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            network(torch.empty(1, *image, device=device))
    finally:
        handle.remove()
    return tuple(seen[-1].shape)
