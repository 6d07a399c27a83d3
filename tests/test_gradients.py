"""Gradient explanations against answers worked out by hand, and the theorems that hold for them."""

import pytest
import torch
from torch import Tensor, nn
from toys import Refused, Two, classes, linear, loaded, small, two_pixels

from xinv.errors import InputError
from xinv.release.gradients import NOISE_SHARE, NOISY_COPIES, content_seed
from xinv.release.methods import METHODS


def test_explanations_of_a_linear_network_are_its_weights() -> None:
    model = linear([[1.0, -2.0], [3.0, 4.0], [-5.0, 6.0]])
    image_BCHW, class_B = two_pixels(0.5, 0.25, 1.0, 0.0), classes(0, 2)
    weights, products = two_pixels(1, -2, -5, 6), two_pixels(0.5, -0.5, -5, 0)
    expected = {
        "gradient": weights,
        "abs_gradient": weights.abs(),
        "gradient_input": products,
        "integrated_gradients": products,
        "smoothgrad": weights,
        "deeplift": products,
    }
    for name, map_BMHW in expected.items():
        METHODS[name].check(model, (1, 1, 2))
        torch.testing.assert_close(METHODS[name].explain(model, image_BCHW, class_B), map_BMHW)


def test_gradient_stops_at_a_dead_unit() -> None:
    model = Two([[1.0, 1.0], [1.0, -1.0]], [0.0, 0.0], [[2.0, 5.0], [0.0, 0.0]])
    # At (1, 2) the second unit is at -1 and dead: 2 * (1, 1). At (2, 1) it lives: 2 * (1, 1) + 5 * (1, -1).
    map_BMHW = METHODS["gradient"].explain(model, two_pixels(1, 2, 2, 1), classes(0, 0))
    torch.testing.assert_close(map_BMHW, two_pixels(2, 2, 7, -3))


@pytest.mark.parametrize("network", ["cnn", "residual", "vit"])
def test_gradients_are_captums(network: str) -> None:
    from captum.attr import InputXGradient, Saliency

    model, class_B = small(network, channels=3), classes(2, 0, 1)
    image_BCHW = torch.rand(3, 3, 16, 16)
    leaf_BCHW = image_BCHW.clone().requires_grad_()
    expected_BMHW = Saliency(model).attribute(leaf_BCHW, target=class_B, abs=False)
    torch.testing.assert_close(METHODS["gradient"].explain(model, image_BCHW, class_B), expected_BMHW)
    expected_BMHW = InputXGradient(model).attribute(leaf_BCHW, target=class_B).detach()
    torch.testing.assert_close(METHODS["gradient_input"].explain(model, image_BCHW, class_B), expected_BMHW)


def test_integrated_gradients_by_hand() -> None:
    model = Two([[1.0, 1.0], [0.0, 0.0]], [-1.0, 0.0], [[1.0, 0.0], [2.0, 0.0]])
    # On the way from black to (1, 2) the unit lives for the last two thirds: its weights count for 2/3 of the pixels.
    map_BMHW = METHODS["integrated_gradients"].explain(model, two_pixels(1, 2), classes(1))
    torch.testing.assert_close(map_BMHW, two_pixels(4 / 3, 8 / 3), rtol=0.05, atol=0)


def smooth(channels: int) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 9, 5),
        nn.Tanh(),
        nn.Linear(5, 3),
    ).eval()


def difference_from_black(model: nn.Module, image_BCHW: Tensor, class_B: Tensor) -> Tensor:
    with torch.no_grad():
        change_BK = model(image_BCHW) - model(torch.zeros_like(image_BCHW))
    return change_BK.gather(1, class_B[:, None])[:, 0]


@pytest.mark.parametrize("name", ["integrated_gradients", "deeplift"])
def test_a_smooth_network_is_explained_completely(name: str) -> None:
    model, class_B = smooth(2), classes(0, 1, 2, 1)
    METHODS[name].check(model, (2, 8, 8))
    image_BCHW = torch.rand(4, 2, 8, 8)
    map_BMHW = METHODS[name].explain(model, image_BCHW, class_B)
    expected_B = difference_from_black(model, image_BCHW, class_B)
    torch.testing.assert_close(map_BMHW.sum((1, 2, 3)), expected_B, rtol=1e-4, atol=1e-6)
    # Gradient * input is not complete here, so the test could fail.
    plain_B = METHODS["gradient_input"].explain(model, image_BCHW, class_B).sum((1, 2, 3))
    assert not torch.allclose(plain_B, expected_B, rtol=1e-2)


def test_smoothgrad_by_hand() -> None:
    # The unit lives where the second pixel is positive: of its noisy copies, those whose noise is.
    model = Two([[0.0, 1.0], [0.0, 0.0]], [0.0, 0.0], [[3.0, 0.0], [1.0, 0.0]])
    image_BCHW = two_pixels(1, 0)
    source = torch.Generator().manual_seed(content_seed(image_BCHW[0]))
    noise_S = torch.stack([torch.randn(1, 1, 2, generator=source)[0, 0, 1] for _ in range(NOISY_COPIES)])
    alive = int((NOISE_SHARE * noise_S > 0).sum())
    assert 0 < alive < NOISY_COPIES
    map_BMHW = METHODS["smoothgrad"].explain(model, image_BCHW, classes(0))
    torch.testing.assert_close(map_BMHW, two_pixels(0, 3 * alive / NOISY_COPIES))
    # No range, no noise: at (-1, -1) the unit is dead in every copy.
    assert METHODS["smoothgrad"].explain(model, two_pixels(-1, -1), classes(0)).abs().sum() == 0


def test_noise_belongs_to_the_image_and_not_to_the_batch() -> None:
    model = small()
    image_BCHW = torch.rand(3, 1, 16, 16).mul(255).round() / 255
    explain = METHODS["smoothgrad"].explain
    torch.manual_seed(1)
    first = explain(model, image_BCHW, classes(0, 1, 2))
    torch.manual_seed(2)  # the global generator has no part in it
    mixed = explain(model, image_BCHW[[2, 0]], classes(2, 0))
    torch.testing.assert_close(mixed, first[[2, 0]], rtol=1e-4, atol=1e-7)
    assert content_seed(image_BCHW[0]) != content_seed(image_BCHW[1])
    assert content_seed(image_BCHW[0]) == content_seed(image_BCHW[0] + 1e-7)  # as another device may round


def test_guided_backprop_by_hand() -> None:
    model = Two([[1.0, 1.0], [1.0, -1.0]], [0.0, 0.0], [[2.0, -5.0], [0.0, 1.0]])
    METHODS["guided_backprop"].check(model, (1, 1, 2))
    # At (2, 1) both units live. The gradient is 2 * (1, 1) - 5 * (1, -1); the ReLUs let nothing negative through.
    explained = METHODS["guided_backprop"].explain(model, two_pixels(2, 1), classes(0))
    torch.testing.assert_close(explained, two_pixels(2, 2))
    torch.testing.assert_close(METHODS["gradient"].explain(model, two_pixels(2, 1), classes(0)), two_pixels(-3, 7))


def test_deeplift_by_hand() -> None:
    model = Two([[1.0, 1.0], [0.0, 0.0]], [-1.0, 0.0], [[2.0, 0.0], [0.0, 0.0]])
    METHODS["deeplift"].check(model, (1, 1, 2))
    # The unit goes from -1 (dead, 0) at black to 2 at (1, 2): of a change of 3 it lets 2 through, twice.
    map_BMHW = METHODS["deeplift"].explain(model, two_pixels(1, 2), classes(0))
    torch.testing.assert_close(map_BMHW, two_pixels(4 / 3, 8 / 3))


def test_deeplift_is_complete_through_poolings() -> None:
    model, class_B = small(channels=2, width=8), classes(0, 1, 2, 0)
    METHODS["deeplift"].check(model, (2, 16, 16))
    image_BCHW = torch.rand(4, 2, 16, 16)
    map_BMHW = METHODS["deeplift"].explain(model, image_BCHW, class_B)
    expected_B = difference_from_black(model, image_BCHW, class_B)
    torch.testing.assert_close(map_BMHW.sum((1, 2, 3)), expected_B, rtol=1e-3, atol=1e-5)


class Differences(nn.Module):
    """Four pixels: the larger of a - b and c - d."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = loaded(nn.Conv2d(1, 1, (1, 2), stride=2), [1.0, -1.0], [0.0])
        self.pool = nn.MaxPool2d((1, 2))
        self.head = loaded(nn.Linear(1, 2), [[1.0], [2.0]], [0.0, 0.0])
        self.eval()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.head(self.pool(self.convolution(image_BCHW)).flatten(1))  # type: ignore[no-any-return]


def test_deeplift_of_an_image_does_not_depend_on_the_first_of_its_batch() -> None:
    """captum takes the gradient of the batch's first image wherever a pooled value equals the baseline's."""
    model, class_B = Differences(), classes(0, 0)
    METHODS["deeplift"].check(model, (1, 1, 4))
    image_BCHW = torch.tensor([[0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.5, 0.5]]).reshape(2, 1, 1, 4)
    together = METHODS["deeplift"].explain(model, image_BCHW, class_B)
    alone = METHODS["deeplift"].explain(model, image_BCHW[1:], class_B[1:])
    torch.testing.assert_close(together[1:], alone)
    torch.testing.assert_close(together[0].flatten(), torch.tensor([0.0, 0.0, 1.0, 0.0]))


@pytest.mark.parametrize(
    ("name", "how", "named"),
    [
        ("guided_backprop", "gelu", r"body\.1 \(GELU\) is no nn\.ReLU"),
        ("guided_backprop", "functional", "forward pass calls relu, which guided backpropagation cannot see"),
        ("guided_backprop", "branch", "cannot be followed layer by layer"),
        ("deeplift", "gelu", r"body\.1 \(GELU\) has no rule in DeepLIFT"),
        ("deeplift", "functional", "forward pass calls relu, which DeepLIFT cannot see"),
        ("deeplift", "twice", r"body\.1 \(ReLU\) is used 2 times"),
    ],
)
def test_what_would_silently_be_the_plain_gradient_is_refused(name: str, how: str, named: str) -> None:
    model = Refused(how)
    with pytest.raises(InputError, match=named) as caught:
        METHODS[name].check(model, (1, 8, 8))
    assert "these work on this network: gradient, abs_gradient" in str(caught.value)
    for allowed in ("nothing", "skip", "identity"):
        METHODS[name].check(Refused(allowed), (1, 8, 8))


def test_other_networks_that_the_hooks_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"has no nn\.ReLU module"):
        METHODS["guided_backprop"].check(linear([[1.0, 2.0]]), (1, 1, 2))
    with pytest.raises(InputError, match=r"features\.1\.norm_1 \(GroupNorm\) has no rule in DeepLIFT"):
        METHODS["deeplift"].check(small("residual"), (1, 16, 16))
    overlapping = nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d(3, stride=2), nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(InputError, match=r"1 \(MaxPool2d\) has windows that overlap"):
        METHODS["deeplift"].check(overlapping, (1, 8, 8))


def test_guided_backprop_sees_every_use_of_a_relu() -> None:
    model = Refused("twice")
    METHODS["guided_backprop"].check(model, (1, 8, 8))
    image_BCHW = torch.rand(2, 1, 8, 8)
    # A second ReLU changes nothing for values that are positive already.
    expected = METHODS["guided_backprop"].explain(Refused("nothing"), image_BCHW, classes(0, 1))
    once = Refused("nothing")
    once.load_state_dict(model.state_dict())
    expected = METHODS["guided_backprop"].explain(once, image_BCHW, classes(0, 1))
    torch.testing.assert_close(METHODS["guided_backprop"].explain(model, image_BCHW, classes(0, 1)), expected)
