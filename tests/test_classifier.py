"""Classifiers: shapes, the Grad-CAM layer, sizes counted by hand, and that they learn."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from toys import bright_quarter_accuracy

from xinv.errors import InputError
from xinv.nets.classifier import ClassifierSettings, build_classifier

NETWORKS = ("cnn", "residual")


def cam_output(model: nn.Module, layer: nn.Module, image_BCHW: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(image_BCHW)
    handle.remove()
    assert len(seen) == 1
    return seen[0]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("size", "cam"), [(8, 8), (16, 8), (28, 7), (32, 8), (64, 8), (100, 12)])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(network: str, size: int, cam: int, channels: int) -> None:
    model = build_classifier(ClassifierSettings(network=network, width=4), channels, size, classes=5)
    image_BCHW = torch.rand(2, channels, size, size)
    logit_BK = model(image_BCHW)
    assert logit_BK.shape == (2, 5)
    embedding_BD = model.embed(image_BCHW)
    assert embedding_BD.ndim == 2
    torch.testing.assert_close(model.head(embedding_BD), logit_BK)
    assert cam_output(model, model.cam_layer, image_BCHW).shape[2:] == (cam, cam)


def test_cnn_size_counted_by_hand() -> None:
    # 32 px, width 16: convolutions 1-16-32-64 of 3x3, three halvings to 4x4, 1024 -> 128 -> 10; weights and biases.
    convolutions = (1 * 16 * 9 + 16) + (16 * 32 * 9 + 32) + (32 * 64 * 9 + 64)
    linear = (64 * 4 * 4 * 128 + 128) + (128 * 10 + 10)
    model = build_classifier(ClassifierSettings(network="cnn", width=16), 1, 32, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == convolutions + linear


def test_cnn_is_made_of_what_lrp_knows() -> None:
    model = build_classifier(ClassifierSettings(network="cnn"), 3, 64, 7)
    leaves = [module for module in model.modules() if not list(module.children())]
    assert {type(leaf) for leaf in leaves} == {nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Linear}
    assert not any(leaf.inplace for leaf in leaves if isinstance(leaf, nn.ReLU))


@pytest.mark.parametrize("network", NETWORKS)
def test_images_do_not_see_each_other(network: str) -> None:
    model = build_classifier(ClassifierSettings(network=network, width=8), 1, 16, 4)  # in training mode
    image_BCHW = torch.rand(5, 1, 16, 16)
    alone_BK = torch.cat([model(image_BCHW[row : row + 1]) for row in range(5)])
    torch.testing.assert_close(model(image_BCHW), alone_BK)


@pytest.mark.parametrize("network", NETWORKS)
def test_learns_where_the_bright_quarter_is(network: str) -> None:
    torch.manual_seed(0)
    model = build_classifier(ClassifierSettings(network=network, width=8), 1, 16, 4)
    accuracy = bright_quarter_accuracy(model, rate=5e-3, steps=40)
    assert accuracy > 0.9, accuracy


def test_same_seed_same_weights() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(7)
        weights.append(build_classifier(ClassifierSettings(), 1, 32, 10).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 7, 10), (0, 32, 10), (1, 32, 1)])
def test_impossible_shapes_are_refused(channels: int, size: int, classes: int) -> None:
    with pytest.raises(InputError, match=rf"got {size} px, {channels} channels and {classes} classes"):
        build_classifier(ClassifierSettings(), channels, size, classes)


@pytest.mark.parametrize("wrong", [{"network": "vgg"}, {"width": 1}, {"depth": 3}])
def test_unknown_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ClassifierSettings.model_validate(wrong)
