"""Networks of a few weights, whose explanations can be worked out by hand, and a task that small ones learn."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xinv.nets.classifier import Classifier, ClassifierSettings, build_classifier


def loaded(layer: nn.Module, weight: list[object], bias: list[float]) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight).reshape(layer.weight.shape))
        layer.bias.copy_(torch.tensor(bias))
    return layer


class Two(nn.Module):
    """Two pixels, two hidden units, classes: relu(W x + b) V."""

    def __init__(self, first: list[object], bias: list[float], second: list[object]) -> None:
        super().__init__()
        self.first = loaded(nn.Linear(2, 2), first, bias)
        self.relu = nn.ReLU()
        self.second = loaded(nn.Linear(2, 2), second, [0.0, 0.0])
        self.eval()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.second(self.relu(self.first(torch.flatten(image_BCHW, 1))))  # type: ignore[no-any-return]


class Cam(nn.Module):
    """A 1x1 convolution to two channels (x and 2x), ReLU, and a linear head over 2x2x2 activations."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = loaded(nn.Conv2d(1, 2, 1), [1.0, 2.0], [0.0, 0.0])
        self.relu = nn.ReLU()
        head = [[1.0, 0, 0, 0, 0, 0, -1, -1], [1.0, 1, 1, 1, -0.25, -0.25, -0.25, -0.25]]
        self.head = loaded(nn.Linear(8, 2), head, [0.0, 0.0])
        self.eval()

    @property
    def cam_layer(self) -> nn.Module:
        return self.relu

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.head(torch.flatten(self.relu(self.convolution(image_BCHW)), 1))  # type: ignore[no-any-return]


class Refused(nn.Module):
    """`how` says what captum's hooks would not see, or not know."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GELU() if how == "gelu" else nn.ReLU())
        self.unused = nn.Identity() if how == "identity" else nn.ReLU()
        self.head = nn.Linear(4 * 8 * 8, 3)
        self.eval()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        feature_BCHW = self.body(image_BCHW)
        if self.how == "skip":
            feature_BCHW = feature_BCHW + self.unused(image_BCHW)
        elif self.how == "functional":
            feature_BCHW = F.relu(feature_BCHW)
        elif self.how == "twice":
            feature_BCHW = self.body[1](feature_BCHW)
        elif self.how == "branch" and feature_BCHW.sum() > 0:
            feature_BCHW = self.unused(feature_BCHW)
        return self.head(feature_BCHW.flatten(1))  # type: ignore[no-any-return]


def linear(weight: list[list[float]]) -> nn.Module:
    """A linear network without bias."""
    return nn.Sequential(
        nn.Flatten(), loaded(nn.Linear(len(weight[0]), len(weight)), weight, [0.0] * len(weight))
    ).eval()


def small(network: str = "cnn", channels: int = 1, size: int = 16, classes: int = 3, width: int = 4) -> Classifier:
    """An untrained classifier, the same in every call."""
    torch.manual_seed(0)
    return build_classifier(ClassifierSettings(network=network, width=width), channels, size, classes).eval()


def bright_quarter_accuracy(model: nn.Module, rate: float, steps: int) -> float:
    """How often `model`, of 1 channel, 16 px and 4 classes, is right on new images after `steps` steps of learning
    which quarter of noise is brighter."""
    label_B = torch.arange(96) % 4
    image_BCHW = torch.rand(96, 1, 16, 16) * 0.5
    for image_CHW, label in zip(image_BCHW, label_B.tolist(), strict=True):
        image_CHW[:, label // 2 * 8 :, label % 2 * 8 :][:, :8, :8] += 0.3
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(image_BCHW[:64]), label_B[:64]).backward()
        optimiser.step()
    return (model(image_BCHW[64:]).argmax(1) == label_B[64:]).float().mean().item()


def without_biases(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return model


def two_pixels(*pixels: float) -> Tensor:
    return torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 1, 2)


def classes(*numbers: int) -> Tensor:
    return torch.tensor(numbers)
