"""Gradient x input over gradient: exact where both are released as computed, and what is said where they are not."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import small, two_pixels

from xinv.nets.quotient import METHODS, THRESHOLD, QuotientDecoder
from xinv.release import methods
from xinv.release.formats import FormatSettings, decode, release

NOTHING = torch.zeros(1, 3)


def decoder(channels: int = 1, size: int = 16, mean: float = 0.25) -> QuotientDecoder:
    network = QuotientDecoder(channels, size)
    network.mean_CHW.fill_(mean)
    return network


def explained(image_BCHW: Tensor, classes: Any = 1, channels: int = 1) -> list[Tensor]:
    model = small(channels=channels)
    _, maps = methods.explain_all([methods.METHODS[name] for name in METHODS], model, image_BCHW, classes)
    return [maps[name] for name in METHODS]


@pytest.mark.parametrize(("classes", "channels"), [(1, 1), (1, 3), (2, 3), ("all", 3)])
def test_it_is_the_image_where_the_gradient_does_not_vanish(classes: Any, channels: int) -> None:
    image_BCHW = torch.rand(5, channels, 16, 16, generator=torch.Generator().manual_seed(1))
    maps = explained(image_BCHW, classes, channels)
    count = {1: 1, 2: 2, "all": 3}[classes]
    assert maps[0].shape == (5, count * channels, 16, 16)
    found_BCHW = decoder(channels)(NOTHING, maps)
    assert found_BCHW.dtype == torch.float32
    magnitude_BCHW = maps[0].view(5, count, channels, 16, 16).double().square().sum(1).sqrt()
    known_BCHW = magnitude_BCHW >= THRESHOLD * magnitude_BCHW.amax((1, 2, 3), keepdim=True)
    assert known_BCHW.float().mean() > 0.9
    assert (found_BCHW - image_BCHW).abs()[known_BCHW].max() < 1e-4
    assert (found_BCHW[~known_BCHW] == 0.25).all()


def test_least_squares_by_hand() -> None:
    """Two classes, gradients 3 and 4: 3 x = 1.2 and 4 x = 3.2 disagree; (3 * 1.2 + 4 * 3.2) / 25 = 0.656."""
    gradient_BMHW = torch.zeros(1, 2, 2, 2)
    gradient_BMHW[0, :, 0, 0] = torch.tensor([3.0, 4.0])
    product_BMHW = torch.zeros(1, 2, 2, 2)
    product_BMHW[0, :, 0, 0] = torch.tensor([1.2, 3.2])
    found = decoder(size=2)(NOTHING, [gradient_BMHW, product_BMHW])
    torch.testing.assert_close(found[0, 0], torch.tensor([[0.656, 0.25], [0.25, 0.25]]))


def test_small_gradients_take_the_mean_image_and_large_quotients_are_clipped() -> None:
    gradient = two_pixels(1.0, 0.9 * THRESHOLD).repeat(1, 1, 2, 1)
    product = two_pixels(-0.5, 0.0).repeat(1, 1, 2, 1)
    network = decoder(size=2)
    assert network(NOTHING, [gradient, product])[0, 0].tolist() == [[0.0, 0.25]] * 2
    assert network(NOTHING, [gradient, -3 * product])[0, 0].tolist() == [[1.0, 0.25]] * 2
    above = two_pixels(1.0, 1.1 * THRESHOLD).repeat(1, 1, 2, 1)
    assert network(NOTHING, [above, product])[0, 0].tolist() == [[0.0, 0.0]] * 2
    assert (network(NOTHING, [torch.zeros(1, 1, 2, 2)] * 2) == 0.25).all()


def test_the_squares_of_tiny_gradients_are_not_lost() -> None:
    image_BCHW = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    gradient_BMHW = torch.full_like(image_BCHW, 1e-30)
    torch.testing.assert_close(decoder()(NOTHING, [gradient_BMHW, gradient_BMHW * image_BCHW]), image_BCHW)


@pytest.mark.parametrize("name", ["minmax", "uint8", "bits", "top_k", "down_sample"])
def test_other_formats_give_an_image_but_not_the_image(name: Any) -> None:
    image_BCHW = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    form = FormatSettings(name=name)
    maps = [torch.from_numpy(decode(release(form, map_BMHW.numpy()))) for map_BMHW in explained(image_BCHW)]
    found_BCHW = decoder()(NOTHING, maps)
    assert found_BCHW.shape == image_BCHW.shape and float(found_BCHW.min()) >= 0 and float(found_BCHW.max()) <= 1
    error = float((found_BCHW - image_BCHW).square().mean())
    assert np.isfinite(error) and error > 1e-3
