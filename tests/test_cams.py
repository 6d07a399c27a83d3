"""Class activation maps against answers worked out by hand and against captum."""

import pytest
import torch
from torch import Tensor, nn
from toys import Cam, Refused, classes, small

from xinv.errors import InputError
from xinv.release.methods import METHODS

# The activations are x and 2x. Class 1's gradients are 1 and -1/4 everywhere; class 0's are 1 at the first place of the
# first channel, -1 at the last two of the second, so that their means are 1/4 and -1/2.
X = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
ZERO = torch.zeros(2, 2)
BY_HAND = {
    "grad_cam": (ZERO, X / 2),  # relu(x/4 - 2x/2) and relu(x - 2x/4)
    "hires_cam": (torch.tensor([[1.0, 0.0], [-6.0, -8.0]]), X / 2),
    "layer_cam": (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), X),
    # The activation sums to 10: a positive gradient of 1 weighs 1/(2 + 10) a place, at one place or at four.
    "grad_cam_pp": (X / 12, X / 3),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    model = Cam()
    METHODS[name].check(model, (1, 2, 2))
    map_BMHW = METHODS[name].explain(model, X.expand(2, 1, 2, 2), classes(0, 1))
    torch.testing.assert_close(map_BMHW, torch.stack(BY_HAND[name])[:, None])


def test_partial_cam_by_hand() -> None:
    map_BMHW = METHODS["partial_cam"].explain(Cam(), X.expand(2, 1, 2, 2), classes(0, 1))
    torch.testing.assert_close(map_BMHW[0], torch.stack([X / 4, -X]))
    torch.testing.assert_close(map_BMHW[1], torch.stack([X, -X / 2]))


def test_sigma_cam_is_grad_cam_of_every_class() -> None:
    map_BMHW = METHODS["sigma_cam"].explain(Cam(), X.expand(2, 1, 2, 2), classes(0, 1))
    torch.testing.assert_close(map_BMHW, torch.stack([ZERO, X / 2]).expand(2, 2, 2, 2))
    model, image_BCHW = small("residual", channels=3, classes=5), torch.rand(4, 3, 16, 16)
    map_BMHW = METHODS["sigma_cam"].explain(model, image_BCHW, classes(0, 0, 0, 0))
    for k in range(5):
        alone = METHODS["grad_cam"].explain(model, image_BCHW, torch.full((4,), k))
        torch.testing.assert_close(map_BMHW[:, k : k + 1], alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("network", ["cnn", "residual", "vit"])
def test_cams_are_captums(network: str) -> None:
    from captum.attr import LayerGradCam, LayerGradientXActivation

    model, class_B = small(network), classes(2, 0, 1)
    image_BCHW = torch.rand(3, 1, 16, 16)
    grad_cam = LayerGradCam(model, model.cam_layer)
    expected = grad_cam.attribute(image_BCHW, target=class_B, relu_attributions=True).detach()
    torch.testing.assert_close(METHODS["grad_cam"].explain(model, image_BCHW, class_B), expected)
    expected = grad_cam.attribute(image_BCHW, target=class_B, attr_dim_summation=False).detach()
    torch.testing.assert_close(METHODS["partial_cam"].explain(model, image_BCHW, class_B), expected)
    product = LayerGradientXActivation(model, model.cam_layer).attribute(image_BCHW, target=class_B).detach()
    torch.testing.assert_close(
        METHODS["hires_cam"].explain(model, image_BCHW, class_B), product.sum(1, keepdim=True), rtol=1e-5, atol=1e-7
    )


def test_hires_cam_sums_to_the_logit_where_one_linear_layer_follows() -> None:
    model = small("residual", classes=4)  # global mean and a linear head behind its last map
    image_BCHW, class_B = torch.rand(4, 1, 16, 16), classes(0, 1, 2, 3)
    map_BMHW = METHODS["hires_cam"].explain(model, image_BCHW, class_B)
    expected_B = (model(image_BCHW) - model.head.bias).diagonal().detach()
    torch.testing.assert_close(map_BMHW.sum((1, 2, 3)), expected_B, rtol=1e-4, atol=1e-6)


def test_grad_cam_pp_stays_finite_where_activations_are_negative() -> None:
    for network in ("residual", "vit"):
        map_BMHW = METHODS["grad_cam_pp"].explain(small(network), torch.rand(5, 1, 16, 16), classes(0, 1, 2, 0, 1))
        assert map_BMHW.isfinite().all() and map_BMHW.max() < 100 and map_BMHW.max() > 0


@pytest.mark.parametrize("name", ["grad_cam", "grad_cam_pp", "hires_cam", "layer_cam", "sigma_cam", "partial_cam"])
def test_a_cam_needs_a_map(name: str) -> None:
    with pytest.raises(InputError, match="names no cam_layer"):
        METHODS[name].check(Refused("nothing"), (1, 8, 8))
    flat = type("Flat", (Cam,), {"cam_layer": property(lambda self: self.head)})().eval()
    with pytest.raises(InputError, match=r"cam_layer head \(Linear\) gives \(2,\), which is no map"):
        METHODS[name].check(flat, (1, 2, 2))


class Overwriting(nn.Module):
    """Goes on in place behind its cam_layer, and before it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(3 * 16, 2)
        self.cam_layer = self.convolution
        self.eval()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        image_BCHW.sub_(0.5)
        return self.head(self.relu(self.convolution(image_BCHW)).flatten(1))  # type: ignore[no-any-return]


def test_what_a_network_overwrites_is_explained_as_it_was() -> None:
    torch.manual_seed(0)
    model, image_BCHW = Overwriting(), torch.rand(2, 1, 4, 4)
    before_BCHW = image_BCHW.clone()
    map_BMHW = METHODS["partial_cam"].explain(model, image_BCHW, classes(0, 1))
    assert torch.equal(image_BCHW, before_BCHW)
    activation_BAhw = model.convolution(image_BCHW - 0.5)
    gradient_BAhw = model.head.weight[[0, 1]].unflatten(1, (3, 4, 4)) * (activation_BAhw > 0)
    expected = gradient_BAhw.mean((2, 3), keepdim=True) * activation_BAhw
    torch.testing.assert_close(map_BMHW, expected.detach())
