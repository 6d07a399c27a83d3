"""The layer that class activation maps read: found where a network makes it plain, proposed where it does not."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import small

from xinv.errors import InputError
from xinv.nets.cam_layer import cam_candidates, find_cam_layer
from xinv.release.methods import METHODS

IMAGE = torch.rand(1, 3, 16, 16)


class Residual(nn.Module):
    """Two blocks whose skip connections pass every convolution by, and a ReLU that runs many times."""

    def __init__(self, ends_in: str = "pool") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 5)
        self.ends_in = ends_in
        self.eval()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        feature_BCHW = self.blocks(self.stem(image_BCHW))
        if self.ends_in == "two branches":
            feature_BCHW = feature_BCHW + image_BCHW.mean(1, keepdim=True)
        return self.head(feature_BCHW.mean((2, 3)))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, value: Tensor) -> Tensor:
        inner = self.relu(self.norm(self.first(self.relu(value.clone()))))
        inner += value
        return self.relu(inner)  # type: ignore[no-any-return]


class Patches(nn.Module):
    """A transformer: its only convolution cuts the patches, far from the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.mix = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 5)
        self.eval()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        token_BTD = self.patches(image_BCHW).flatten(2).transpose(1, 2)
        return self.head(self.mix(token_BTD).mean(1))  # type: ignore[no-any-return]


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 5)
        self.eval()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        feature_BCHW = F.relu(self.second(F.max_pool2d(F.relu(self.first(image_BCHW)), 2)))
        return self.head(feature_BCHW.mean((2, 3)))  # type: ignore[no-any-return]


def plain() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    last = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout())
    head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    return nn.Sequential(body, last, head).eval()


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (plain(), "1.2"),  # the last ReLU; neither the dropout and the container behind it nor the pooling
        (Functional(), "second"),  # what follows is no module
        (Residual(), "blocks.1"),  # the last convolution is passed by
        (Residual("two branches"), None),
        (Patches(), None),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 5)).eval(), None),
        (nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten(), nn.Linear(4, 5)).eval(), None),  # 1x1 is no map
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_found_where_it_is_plain(model: nn.Module, layer: str | None) -> None:
    assert find_cam_layer(model, IMAGE) == layer


def test_our_own_cnn_gets_the_layer_that_it_names() -> None:
    model = small("cnn", channels=3)
    assert find_cam_layer(model, IMAGE) == model.cam_name


def test_the_refusal_proposes_layers() -> None:
    assert cam_candidates(Residual("two branches"), IMAGE) == [
        "blocks.0",
        "blocks.1.first",
        "blocks.1.norm",
        "blocks.1",
    ]
    with pytest.raises(InputError, match=r"names no cam_layer.*target\.layer: patches give maps.*gradient"):
        METHODS["grad_cam"].check(Patches(), (3, 16, 16))
    with pytest.raises(InputError, match=r"no part of it gives a map"):
        METHODS["grad_cam"].check(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)).eval(), (3, 16, 16))
