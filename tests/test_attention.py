"""Attention rollout against an answer worked out by hand, on the vision transformer, and what it refuses."""

import pytest
import torch
from torch import Tensor, nn
from toys import classes, small

from xinv.errors import InputError
from xinv.release.methods import METHODS


class Fixed(nn.Module):
    """Attention that looks at nothing: two heads whose mean is `weight_TT`."""

    def __init__(self, weight_TT: Tensor) -> None:
        super().__init__()
        tilt_TT = torch.zeros_like(weight_TT)
        tilt_TT[:, 0], tilt_TT[:, 1] = 0.1, -0.1
        self.register_buffer("weight_hTT", torch.stack([weight_TT + tilt_TT, weight_TT - tilt_TT]))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.weight_hTT.expand(len(image_BCHW), -1, -1, -1)  # type: ignore[operator,no-any-return]


class Layers(nn.Module):
    def __init__(self, *weights: Tensor, uses: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Fixed(weight_TT) for weight_TT in weights)
        self.unused = nn.Linear(1, 1)
        self.uses = uses
        self.eval()

    @property
    def attention_layers(self) -> tuple[nn.Module, ...]:
        return tuple(self.layers)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        for layer in self.layers:
            for _ in range(self.uses):
                layer(image_BCHW)
        return image_BCHW.flatten(1)[:, :2]


def test_by_hand() -> None:
    first, second = torch.full((5, 5), 0.2), torch.full((5, 5), 0.2)
    second[0] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])  # the class token looks at the first patch,
    first[1] = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])  # which has looked at the second
    model = Layers(first, second)
    METHODS["attention_rollout"].check(model, (1, 4, 4))
    map_BMHW = METHODS["attention_rollout"].explain(model, torch.rand(3, 1, 4, 4), classes(0, 1, 0))
    # Half of the class token stays, half comes from patch 1; in the layer below, half of each stays again:
    # 1/4 + 1/4 * 1/5 for patch 1, 1/4 * (1 + 1/5) for patch 2, 1/4 * 1/5 for the others.
    expected = torch.tensor([[0.30, 0.30], [0.05, 0.05]])
    torch.testing.assert_close(map_BMHW, expected.expand(3, 1, 2, 2))


def test_rollout_of_the_transformer_follows_the_image_and_no_class() -> None:
    model = small("vit", size=32, width=8)
    METHODS["attention_rollout"].check(model, (1, 32, 32))
    image_BCHW = torch.rand(2, 1, 32, 32)
    map_BMHW = METHODS["attention_rollout"].explain(model, image_BCHW, classes(0, 1))
    assert map_BMHW.shape == (2, 1, 8, 8)
    assert map_BMHW.min() > 0
    # What stays with the class token is missing: a sixteenth of it through four residual connections, and more.
    share_B = map_BMHW.sum((1, 2, 3))
    assert ((share_B > 0.5) & (share_B < 15 / 16)).all()
    assert not torch.allclose(map_BMHW[0], map_BMHW[1], rtol=1e-3, atol=0)
    assert torch.equal(METHODS["attention_rollout"].explain(model, image_BCHW, classes(2, 2)), map_BMHW)


def test_networks_without_usable_attention_are_refused() -> None:
    check = METHODS["attention_rollout"].check
    with pytest.raises(InputError, match="names no attention_layers"):
        check(small("cnn"), (1, 16, 16))
    with pytest.raises(InputError, match="names no attention_layers"):
        check(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), (1, 2, 2))
    with pytest.raises(InputError, match=r"layers\.0 \(Fixed\) gives \(2, 4, 4\)"):
        check(Layers(torch.full((4, 4), 0.25)), (1, 4, 4))
    with pytest.raises(InputError, match="1 attention_layers run 2 times"):
        check(Layers(torch.full((5, 5), 0.2), uses=2), (1, 4, 4))
