"""Explanations against answers worked out by hand on networks of a few weights, and what must be refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xinv.errors import InputError
from xinv.nets.classifier import ClassifierSettings, build_classifier
from xinv.release import methods
from xinv.release.methods import METHODS, method


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


def two_pixels(*pixels: float) -> Tensor:
    return torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 1, 2)


def classes(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def test_gradients_of_a_linear_network_are_its_weights() -> None:
    linear = loaded(nn.Linear(2, 3), [[1.0, -2.0], [3.0, 4.0], [-5.0, 6.0]], [0.5, 0.5, 0.5])
    model = nn.Sequential(nn.Flatten(), linear).eval()
    image_BCHW, class_B = two_pixels(0.5, 0.25, 1.0, 0.0), classes(0, 2)
    expected = {
        "gradient": two_pixels(1, -2, -5, 6),
        "abs_gradient": two_pixels(1, 2, 5, 6),
        "gradient_input": two_pixels(0.5, -0.5, -5, 0),
    }
    for name, map_BMHW in expected.items():
        METHODS[name].check(model, (1, 1, 2))
        torch.testing.assert_close(METHODS[name].explain(model, image_BCHW, class_B), map_BMHW)


def test_gradient_stops_at_a_dead_unit() -> None:
    model = Two([[1.0, 1.0], [1.0, -1.0]], [0.0, 0.0], [[2.0, 5.0], [0.0, 0.0]])
    # At (1, 2) the second unit is at -1 and dead: 2 * (1, 1). At (2, 1) it lives: 2 * (1, 1) + 5 * (1, -1).
    map_BMHW = METHODS["gradient"].explain(model, two_pixels(1, 2, 2, 1), classes(0, 0))
    torch.testing.assert_close(map_BMHW, two_pixels(2, 2, 7, -3))


def test_grad_cam_of_one_convolution() -> None:
    model = Cam()
    METHODS["grad_cam"].check(model, (1, 2, 2))
    image_BCHW = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(2, 1, 2, 2)
    map_BMHW = METHODS["grad_cam"].explain(model, image_BCHW, classes(0, 1))
    # Class 0: mean gradients 1/4 and -1/2, so relu(x/4 - 2x/2) = 0. Class 1: 1 and -1/4, so relu(x - 2x/4) = x/2.
    torch.testing.assert_close(map_BMHW[0], torch.zeros(1, 2, 2))
    torch.testing.assert_close(map_BMHW[1], image_BCHW[1] / 2)


def test_lrp_epsilon_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Two([[1.0, 1.0], [1.0, -1.0]], [0.0, 0.0], [[2.0, 5.0], [0.0, 1.0]])
    METHODS["lrp_epsilon"].check(model, (1, 1, 2))
    image_BCHW = two_pixels(1, 2)  # hidden 3 and dead; logit 6
    monkeypatch.setattr(methods, "LRP_EPSILON", 0.5)
    hidden = 3 * 2 / (6 + 0.5) * 6
    expected_BMHW = two_pixels(1 / (3 + 0.5) * hidden, 2 / (3 + 0.5) * hidden)
    torch.testing.assert_close(METHODS["lrp_epsilon"].explain(model, image_BCHW, classes(0)), expected_BMHW)
    monkeypatch.setattr(methods, "LRP_EPSILON", 1e-9)
    torch.testing.assert_close(METHODS["lrp_epsilon"].explain(model, image_BCHW, classes(0)), two_pixels(2, 4))


def test_lrp_epsilon_conserves_the_logit_without_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "LRP_EPSILON", 1e-9)
    torch.manual_seed(0)
    model = build_classifier(ClassifierSettings(network="cnn", width=4), 1, 16, 3).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    image_BCHW = torch.rand(4, 1, 16, 16)
    logit_BK = model(image_BCHW)
    class_B = logit_BK.argmax(1)
    map_BMHW = METHODS["lrp_epsilon"].explain(model, image_BCHW, class_B)
    torch.testing.assert_close(map_BMHW.sum((1, 2, 3)), logit_BK.amax(1).detach(), rtol=1e-3, atol=1e-5)
    # And without biases it is gradient * input, wherever no denominator is tiny.
    other_BMHW = METHODS["gradient_input"].explain(model, image_BCHW, class_B)
    torch.testing.assert_close(map_BMHW, other_BMHW, rtol=1e-2, atol=1e-5)


def test_lrp_epsilon_absorbs_what_is_uncertain() -> None:
    torch.manual_seed(0)
    model = build_classifier(ClassifierSettings(network="cnn", width=4), 1, 16, 3).eval()
    image_BCHW, class_B = torch.rand(2, 1, 16, 16), classes(0, 1)
    map_BMHW = METHODS["lrp_epsilon"].explain(model, image_BCHW, class_B)
    assert map_BMHW.abs().sum() < METHODS["gradient_input"].explain(model, image_BCHW, class_B).abs().sum()


def test_lrp_zplus_by_hand() -> None:
    # At (1, 2): hidden 4 = 1 + 2 + bias and 1 = 3 - 2. Only positive contributions take relevance, biases none.
    model = Two([[1.0, 1.0], [3.0, -1.0]], [1.0, 0.0], [[2.0, -1.0], [1.0, 1.0]])
    METHODS["lrp_zplus"].check(model, (1, 1, 2))
    map_BMHW = METHODS["lrp_zplus"].explain(model, two_pixels(1, 2, 1, 2), classes(0, 1))
    # Class 0: logit 7, all of it through the first unit: 7/3 and 14/3.
    # Class 1: logit 5 = 4 + 1; the first unit's 4 goes 4/3 and 8/3, the second unit's 1 to the first pixel alone.
    torch.testing.assert_close(map_BMHW, two_pixels(7 / 3, 14 / 3, 4 / 3 + 1, 8 / 3))


def test_lrp_follows_the_winner_of_a_pooling() -> None:
    head = loaded(nn.Linear(1, 2), [[2.0], [1.0]], [0.0, 0.0])
    layers = nn.Sequential(loaded(nn.Conv2d(1, 1, 1), [1.0], [0.0]), nn.ReLU(), nn.MaxPool2d(2))

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = layers, head

        def forward(self, image_BCHW: Tensor) -> Tensor:
            return self.head(self.layers(image_BCHW).flatten(1))  # type: ignore[no-any-return]

    model = Pooled().eval()
    image_BCHW = torch.tensor([[1.0, 2.0], [3.0, 0.5]]).reshape(1, 1, 2, 2)
    for name in ("lrp_zplus", "lrp_epsilon"):
        METHODS[name].check(model, (1, 2, 2))
        map_BMHW = METHODS[name].explain(model, image_BCHW, classes(0))
        assert map_BMHW.nonzero().tolist() == [[0, 0, 1, 0]]
    torch.testing.assert_close(METHODS["lrp_zplus"].explain(model, image_BCHW, classes(0)).sum().item(), 6.0)


def test_lrp_zplus_is_not_negative_and_conserves_bright_images() -> None:
    torch.manual_seed(0)
    model = build_classifier(ClassifierSettings(network="cnn", width=8), 3, 16, 4).eval()
    with torch.no_grad():
        model.head.bias += 1  # a positive logit, so that relevance is positive
    image_BCHW = torch.rand(3, 3, 16, 16)
    logit_BK = model(image_BCHW)
    map_BMHW = METHODS["lrp_zplus"].explain(model, image_BCHW, logit_BK.argmax(1))
    assert map_BMHW.shape == image_BCHW.shape
    assert map_BMHW.min() >= 0
    torch.testing.assert_close(map_BMHW.sum((1, 2, 3)), logit_BK.amax(1).detach(), rtol=1e-3, atol=1e-4)


NATIVE = dict.fromkeys(METHODS, (3, 32, 32)) | {"grad_cam": (1, 8, 8)}


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_equals_its_images_one_by_one(name: str) -> None:
    torch.manual_seed(0)
    model = build_classifier(ClassifierSettings(network="cnn", width=8), 3, 32, 4).eval()
    image_BCHW, class_B = torch.rand(5, 3, 32, 32), classes(0, 3, 1, 2, 1)
    map_BMHW = METHODS[name].explain(model, image_BCHW, class_B)
    assert map_BMHW.shape == (5, *NATIVE[name])
    assert map_BMHW.dtype == torch.float32
    assert not map_BMHW.requires_grad
    alone = [METHODS[name].explain(model, image_BCHW[row : row + 1], class_B[row : row + 1]) for row in range(5)]
    torch.testing.assert_close(map_BMHW, torch.cat(alone), rtol=1e-4, atol=1e-6 * map_BMHW.abs().max().item() + 1e-8)
    # The class is each image's own: another one gives another map.
    other_BMHW = METHODS[name].explain(model, image_BCHW, (class_B + 1) % 4)
    assert all(not torch.equal(map_BMHW[row], other_BMHW[row]) for row in range(5))


@pytest.mark.parametrize("name", METHODS)
def test_the_model_is_left_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    model = build_classifier(ClassifierSettings(network="cnn", width=4), 1, 16, 3).eval()
    before, addresses = copy.deepcopy(model.state_dict()), [p.data_ptr() for p in model.parameters()]
    attributes = {key: sorted(vars(module)) for key, module in model.named_modules()}
    image_BCHW = torch.rand(2, 1, 16, 16)
    METHODS[name].check(model, (1, 16, 16))
    METHODS[name].explain(model, image_BCHW, classes(0, 1))
    with pytest.raises((IndexError, RuntimeError, AssertionError)):
        METHODS[name].explain(model, image_BCHW, classes(0, 99))  # fails in the middle
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {key: sorted(vars(module)) for key, module in model.named_modules()} == attributes
    for module in model.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
    assert not image_BCHW.requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_the_callers_modes_change_nothing(name: str) -> None:
    torch.manual_seed(0)
    model = build_classifier(ClassifierSettings(network="cnn", width=4), 1, 16, 3).eval()
    image_BCHW, class_B = torch.rand(2, 1, 16, 16), classes(0, 1)
    expected_BMHW = METHODS[name].explain(model, image_BCHW, class_B)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(METHODS[name].explain(model, image_BCHW, class_B), expected_BMHW)
    with torch.inference_mode():
        assert torch.equal(METHODS[name].explain(model, image_BCHW.clone(), class_B.clone()), expected_BMHW)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(METHODS[name].explain(model, image_BCHW, class_B), expected_BMHW)
    model.features[0].train()
    with pytest.raises(InputError, match="evaluation mode"):
        METHODS[name].explain(model, image_BCHW, class_B)


class Refused(nn.Module):
    """`how` says what captum's LRP would not see, or not know."""

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


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("gelu", r"body\.1 \(GELU\)"),
        ("identity", r"unused \(Identity\)"),
        ("skip", "forward pass calls add"),
        ("functional", "forward pass calls relu"),
        ("twice", r"body\.1 \(ReLU\) is used 2 times"),
        ("branch", "cannot be followed layer by layer"),
    ],
)
@pytest.mark.parametrize("name", ["lrp_epsilon", "lrp_zplus"])
def test_lrp_refuses_what_it_cannot_see(name: str, how: str, named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        METHODS[name].check(Refused(how), (1, 8, 8))
    assert "these work on this network: gradient, abs_gradient, gradient_input." in str(caught.value)
    METHODS[name].check(Refused("nothing"), (1, 8, 8))


def test_what_the_message_recommends_does_work() -> None:
    model = build_classifier(ClassifierSettings(network="residual", width=4), 1, 16, 3).eval()
    with pytest.raises(InputError, match=r"features\.1\.norm_1 \(GroupNorm\)") as caught:
        METHODS["lrp_zplus"].check(model, (1, 16, 16))
    recommended = str(caught.value).split("these work on this network: ")[1].rstrip(".").split(", ")
    assert recommended == ["gradient", "abs_gradient", "gradient_input", "grad_cam"]
    for name in recommended:
        METHODS[name].check(model, (1, 16, 16))
        assert METHODS[name].explain(model, torch.rand(2, 1, 16, 16), classes(0, 1)).abs().sum() > 0


def test_zplus_refuses_layers_that_can_be_negative() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.MaxPool2d(6)).eval()
    METHODS["lrp_epsilon"].check(model, (1, 8, 8))
    with pytest.raises(InputError, match=r"1 \(Tanh\) has no rule"):
        METHODS["lrp_zplus"].check(model, (1, 8, 8))


def test_grad_cam_needs_a_map() -> None:
    with pytest.raises(InputError, match="names no cam_layer"):
        METHODS["grad_cam"].check(Refused("nothing"), (1, 8, 8))
    flat = type("Flat", (Cam,), {"cam_layer": property(lambda self: self.head)})().eval()
    with pytest.raises(InputError, match=r"cam_layer head \(Linear\) gives \(2,\), which is no map"):
        METHODS["grad_cam"].check(flat, (1, 2, 2))


def test_inplace_activations_are_explained_like_others() -> None:
    torch.manual_seed(0)
    model = build_classifier(ClassifierSettings(network="cnn", width=4), 1, 16, 3).eval()
    image_BCHW, class_B = torch.rand(2, 1, 16, 16), classes(0, 1)
    expected = {name: METHODS[name].explain(model, image_BCHW, class_B) for name in METHODS}
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    for name, map_BMHW in expected.items():
        METHODS[name].check(model, (1, 16, 16))
        torch.testing.assert_close(METHODS[name].explain(model, image_BCHW, class_B), map_BMHW)


def test_names_and_the_unknown_one() -> None:
    assert all(name == entry.name for name, entry in METHODS.items())
    assert method("grad_cam") is METHODS["grad_cam"]
    with pytest.raises(InputError, match=r"'gradcam'; known are gradient, .*lrp_zplus"):
        method("gradcam")
