"""The small vision transformer and GNIME's target: shapes, sizes counted by hand, and that they learn."""

import pytest
import torch
from torch import nn
from toys import bright_quarter_accuracy, small

from xinv.nets.classifier import ClassifierSettings, build_classifier


@pytest.mark.parametrize(("size", "side"), [(8, 8), (16, 8), (28, 7), (32, 8), (64, 8), (100, 13)])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_of_the_transformer(size: int, side: int, channels: int) -> None:
    model = small("vit", channels=channels, size=size, classes=5)
    seen: list[torch.Tensor] = []
    for layer in (model.cam_layer, *model.attention_layers):
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    image_BCHW = torch.rand(2, channels, size, size)
    logit_BK = model(image_BCHW)
    assert logit_BK.shape == (2, 5)
    torch.testing.assert_close(model.head(model.embed(image_BCHW)), logit_BK)
    assert model.embed(image_BCHW).shape == (2, 16)
    maps = [output for output in seen[:5] if output.shape[2] == side]
    assert [tuple(output.shape) for output in maps] == [(2, 16, side, side)]
    attention = [output for output in seen[:5] if output.shape[2] == 1 + side**2]
    assert len(attention) == 4
    for weight_BhTT in attention:
        torch.testing.assert_close(weight_BhTT.sum(-1), torch.ones(2, 4, 1 + side**2))


def test_size_of_the_transformer_counted_by_hand() -> None:
    # 32 px, width 8: tokens of 32; patches of 4x4 px, 64 of them and the class token; four blocks; a last norm; a head.
    tokens = (3 * 16 * 32 + 32) + 32 + 65 * 32
    block = 2 * (2 * 32) + (32 * 96 + 96) + (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32)
    model = small("vit", channels=3, size=32, classes=10, width=8)
    assert sum(parameter.numel() for parameter in model.parameters()) == tokens + 4 * block + 2 * 32 + (32 * 10 + 10)


@pytest.mark.parametrize("size", [28, 30, 100])
def test_the_transformer_sees_every_pixel(size: int) -> None:
    model = small("vit", size=size)
    image_BCHW = torch.rand(1, 1, size, size, requires_grad=True)
    model(image_BCHW)[0, 0].backward()
    assert image_BCHW.grad is not None and (image_BCHW.grad != 0).all()


def test_sizes_of_gnimes_targets_counted_by_hand() -> None:
    # MNIST, 32 px: convolutions of 128 and 256, two halvings to 8x8, dense 512, 10 classes.
    expected = (9 * 128 + 128) + (128 * 256 * 9 + 256) + (256 * 64 * 512 + 512) + (512 * 10 + 10)
    model = build_classifier(ClassifierSettings(network="gnime_cnn"), 1, 32, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert not [module for module in model.modules() if isinstance(module, nn.Dropout)]
    # CelebA, 128 px, on the meta device: a third convolution of 512, three halvings to 16x16, dropout.
    expected = (3 * 9 * 128 + 128) + (128 * 256 * 9 + 256) + (256 * 512 * 9 + 512)
    expected += (512 * 256 * 512 + 512) + (512 * 1000 + 1000)
    with torch.device("meta"):
        model = build_classifier(ClassifierSettings(network="gnime_cnn"), 3, 128, 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert len([module for module in model.modules() if isinstance(module, nn.Dropout)]) == 2


def test_gnimes_last_map_is_the_one_before_the_last_pooling() -> None:
    model = small("gnime_cnn", size=32)
    seen: list[torch.Tensor] = []
    model.cam_layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(torch.rand(2, 1, 32, 32))
    assert seen[0].shape == (2, 32, 16, 16) and seen[0].min() >= 0


@pytest.mark.parametrize("network", ["vit", "gnime_cnn"])
def test_images_do_not_see_each_other(network: str) -> None:
    model = small(network)
    image_BCHW = torch.rand(5, 1, 16, 16)
    alone_BK = torch.cat([model(image_BCHW[row : row + 1]) for row in range(5)])
    torch.testing.assert_close(model(image_BCHW), alone_BK)


@pytest.mark.parametrize("network", ["vit", "gnime_cnn"])
def test_learns_where_the_bright_quarter_is(network: str) -> None:
    torch.manual_seed(0)
    model = build_classifier(ClassifierSettings(network=network, width=4), 1, 16, 4)
    accuracy = bright_quarter_accuracy(model, rate=2e-3, steps=110)
    assert accuracy > 0.9, accuracy
