"""Layer-wise relevance propagation against answers worked out by hand, and what it conserves."""

import pytest
import torch
from torch import Tensor, nn
from toys import Refused, Two, classes, loaded, small, two_pixels, without_biases

from xinv.errors import InputError
from xinv.release import relevance
from xinv.release.methods import METHODS

RULES = ("lrp_0", "lrp_epsilon", "lrp_gamma", "lrp_zplus")


def test_lrp_0_by_hand() -> None:
    # At (1, 2): hidden 4 = 1 + 2 + bias, the other dead; logit 8. The bias keeps its quarter.
    model = Two([[1.0, 1.0], [1.0, -1.0]], [1.0, 0.0], [[2.0, 5.0], [0.0, 1.0]])
    METHODS["lrp_0"].check(model, (1, 1, 2))
    torch.testing.assert_close(METHODS["lrp_0"].explain(model, two_pixels(1, 2), classes(0)), two_pixels(2, 4))


def test_lrp_epsilon_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Two([[1.0, 1.0], [1.0, -1.0]], [0.0, 0.0], [[2.0, 5.0], [0.0, 1.0]])
    METHODS["lrp_epsilon"].check(model, (1, 1, 2))
    image_BCHW = two_pixels(1, 2)  # hidden 3 and dead; logit 6
    monkeypatch.setattr(relevance, "LRP_EPSILON", 0.5)
    hidden = 3 * 2 / (6 + 0.5) * 6
    expected_BMHW = two_pixels(1 / (3 + 0.5) * hidden, 2 / (3 + 0.5) * hidden)
    torch.testing.assert_close(METHODS["lrp_epsilon"].explain(model, image_BCHW, classes(0)), expected_BMHW)
    monkeypatch.setattr(relevance, "LRP_EPSILON", 1e-9)
    torch.testing.assert_close(METHODS["lrp_epsilon"].explain(model, image_BCHW, classes(0)), two_pixels(2, 4))


def test_lrp_gamma_by_hand() -> None:
    # At (2, 1): hidden 1.5 = 2 - 0.5; logit 3, all of it the hidden unit's. The positive weight counts 1.25 times:
    # 2.5 and -0.5 of 2.
    model = Two([[1.0, -0.5], [-1.0, -1.0]], [0.0, 0.0], [[2.0, 1.0], [0.0, 0.0]])
    METHODS["lrp_gamma"].check(model, (1, 1, 2))
    map_BMHW = METHODS["lrp_gamma"].explain(model, two_pixels(2, 1), classes(0))
    torch.testing.assert_close(map_BMHW, two_pixels(2.5 / 2 * 3, -0.5 / 2 * 3))


def test_lrp_zplus_by_hand() -> None:
    # At (1, 2): hidden 4 = 1 + 2 + bias and 1 = 3 - 2. Only positive contributions take relevance, biases none.
    model = Two([[1.0, 1.0], [3.0, -1.0]], [1.0, 0.0], [[2.0, -1.0], [1.0, 1.0]])
    METHODS["lrp_zplus"].check(model, (1, 1, 2))
    map_BMHW = METHODS["lrp_zplus"].explain(model, two_pixels(1, 2, 1, 2), classes(0, 1))
    # Class 0: logit 7, all of it through the first unit: 7/3 and 14/3.
    # Class 1: logit 5 = 4 + 1; the first unit's 4 goes 4/3 and 8/3, the second unit's 1 to the first pixel alone.
    torch.testing.assert_close(map_BMHW, two_pixels(7 / 3, 14 / 3, 4 / 3 + 1, 8 / 3))


@pytest.mark.parametrize("name", ["lrp_0", "lrp_gamma"])
def test_every_logit_is_conserved_without_biases(name: str) -> None:
    model = without_biases(small(classes=4))
    image_BCHW = torch.rand(3, 1, 16, 16)
    logit_BK = model(image_BCHW).detach()
    assert logit_BK.min() < 0 < logit_BK.max()
    for k in range(4):
        map_BMHW = METHODS[name].explain(model, image_BCHW, torch.full((3,), k))
        torch.testing.assert_close(map_BMHW.sum((1, 2, 3)), logit_BK[:, k], rtol=1e-3, atol=1e-5)


def test_lrp_0_without_biases_is_gradient_times_input() -> None:
    model, class_B = without_biases(small(channels=3)), classes(0, 1, 2)
    image_BCHW = torch.rand(3, 3, 16, 16)
    expected_BMHW = METHODS["gradient_input"].explain(model, image_BCHW, class_B)
    torch.testing.assert_close(
        METHODS["lrp_0"].explain(model, image_BCHW, class_B), expected_BMHW, rtol=1e-2, atol=1e-5
    )
    # With biases it is not: they keep a share.
    model = small(channels=3)
    one, other = (METHODS[name].explain(model, image_BCHW, class_B) for name in ("lrp_0", "gradient_input"))
    assert not torch.allclose(one.sum((1, 2, 3)), model(image_BCHW).diagonal(), rtol=1e-2)
    assert torch.allclose(one, other, rtol=1e-2, atol=1e-5)  # but place by place the two are the same all the same


def test_gamma_stops_before_the_last_layer() -> None:
    # At (1, 1): hidden 1 and 2; logit 1 = 3 - 2, shared as it is, each part to its pixel.
    model = Two([[1.0, 0.0], [0.0, 2.0]], [0.0, 0.0], [[3.0, -1.0], [1.0, -0.5]])
    torch.testing.assert_close(METHODS["lrp_gamma"].explain(model, two_pixels(1, 1), classes(0)), two_pixels(3, -2))
    # A logit of 0 takes its shares through 0: they stay finite all the same.
    map_BMHW = METHODS["lrp_gamma"].explain(model, two_pixels(1, 1), classes(1))
    assert map_BMHW.isfinite().all() and map_BMHW.abs().max() < 10


def test_gamma_goes_from_lrp_0_to_zplus(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Two([[1.0, -0.5], [-1.0, -1.0]], [0.0, 0.0], [[2.0, 1.0], [0.0, 0.0]])
    found = {}
    for gamma in (0.0, 1e6):
        monkeypatch.setattr(relevance, "LRP_GAMMA", gamma)
        found[gamma] = METHODS["lrp_gamma"].explain(model, two_pixels(2, 1), classes(0))
    torch.testing.assert_close(found[0.0], METHODS["lrp_0"].explain(model, two_pixels(2, 1), classes(0)))
    torch.testing.assert_close(found[1e6], METHODS["lrp_zplus"].explain(model, two_pixels(2, 1), classes(0)))


def test_lrp_epsilon_absorbs_what_is_uncertain() -> None:
    model = small()
    image_BCHW, class_B = torch.rand(2, 1, 16, 16), classes(0, 1)
    map_BMHW = METHODS["lrp_epsilon"].explain(model, image_BCHW, class_B)
    assert map_BMHW.abs().sum() < METHODS["gradient_input"].explain(model, image_BCHW, class_B).abs().sum()


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(loaded(nn.Conv2d(1, 1, 1), [1.0], [0.0]), nn.ReLU(), nn.MaxPool2d(2))
        self.head = loaded(nn.Linear(1, 2), [[2.0], [1.0]], [0.0, 0.0])
        self.eval()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.head(self.layers(image_BCHW).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", RULES)
def test_lrp_follows_the_winner_of_a_pooling(name: str) -> None:
    model = Pooled()
    image_BCHW = torch.tensor([[1.0, 2.0], [3.0, 0.5]]).reshape(1, 1, 2, 2)
    METHODS[name].check(model, (1, 2, 2))
    map_BMHW = METHODS[name].explain(model, image_BCHW, classes(0))
    assert map_BMHW.nonzero().tolist() == [[0, 0, 1, 0]]
    if name != "lrp_epsilon":
        torch.testing.assert_close(map_BMHW.sum().item(), 6.0)


def test_lrp_zplus_is_not_negative_and_conserves_bright_images() -> None:
    model = small(channels=3, classes=4, width=8)
    with torch.no_grad():
        model.head.bias += 1  # a positive logit, so that relevance is positive
    image_BCHW = torch.rand(3, 3, 16, 16)
    logit_BK = model(image_BCHW)
    map_BMHW = METHODS["lrp_zplus"].explain(model, image_BCHW, logit_BK.argmax(1))
    assert map_BMHW.shape == image_BCHW.shape
    assert map_BMHW.min() >= 0
    torch.testing.assert_close(map_BMHW.sum((1, 2, 3)), logit_BK.amax(1).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("gelu", r"body\.1 \(GELU\)"),
        ("skip", "forward pass calls add"),
        ("functional", "forward pass calls relu"),
        ("twice", r"body\.1 \(ReLU\) is used 2 times"),
        ("branch", "cannot be followed layer by layer"),
    ],
)
@pytest.mark.parametrize("name", RULES)
def test_lrp_refuses_what_it_cannot_see(name: str, how: str, named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        METHODS[name].check(Refused(how), (1, 8, 8))
    assert "these work on this network: gradient, abs_gradient, gradient_input" in str(caught.value)
    for allowed in ("nothing", "identity"):
        METHODS[name].check(Refused(allowed), (1, 8, 8))


@pytest.mark.parametrize("name", RULES)
def test_modules_that_only_rearrange_hand_relevance_on(name: str) -> None:
    """A flat nn.Sequential gives what the same layers give with a function between them, which captum can follow."""
    model = small(classes=4)
    layers = [*model.features, nn.Identity(), nn.Flatten(), nn.Unflatten(1, (-1,)), *model.embedding, model.head]
    flat = nn.Sequential(*layers).eval()
    METHODS[name].check(flat, (1, 16, 16))
    image_BCHW, class_B = torch.rand(3, 1, 16, 16), classes(0, 1, 3)
    expected_BMHW = METHODS[name].explain(model, image_BCHW, class_B)
    assert expected_BMHW.abs().sum() > 0
    torch.testing.assert_close(METHODS[name].explain(flat, image_BCHW, class_B), expected_BMHW)


@pytest.mark.parametrize("name", ["lrp_gamma", "lrp_zplus"])
def test_rules_that_favour_positive_weights_refuse_layers_that_can_be_negative(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.MaxPool2d(6)).eval()
    METHODS["lrp_epsilon"].check(model, (1, 8, 8))
    with pytest.raises(InputError, match=r"1 \(Tanh\) has no rule"):
        METHODS[name].check(model, (1, 8, 8))
