"""Occlusion and RISE against answers worked out by hand and by brute force."""

import pytest
import torch
from torch import Tensor, nn
from toys import classes, linear, small, two_pixels

from xinv.release import perturbation
from xinv.release.methods import METHODS
from xinv.release.perturbation import rise_masks, window


def test_occlusion_of_a_linear_network_is_what_each_window_contributes() -> None:
    model = linear([[1.0, -2.0], [3.0, 4.0]])
    map_BMHW = METHODS["occlusion"].explain(model, two_pixels(0.5, 0.25, 1.0, 2.0), classes(0, 1))
    torch.testing.assert_close(map_BMHW, two_pixels(0.5, -0.5, 3, 8))


@pytest.mark.parametrize(("size", "side"), [(8, 8), (12, 6), (16, 8), (28, 7), (30, 8)])
def test_windows_cover_the_image_once(size: int, side: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3 * size * size, 2, bias=False)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    image_BCHW = torch.rand(3, 3, size, size)
    map_BMHW = METHODS["occlusion"].explain(model, image_BCHW, classes(0, 1, 0))
    assert map_BMHW.shape == (3, 1, side, side)
    product_BCHW = layer.weight.detach()[[0, 1, 0]].reshape(3, 3, size, size) * image_BCHW
    step = window(size)
    for row in range(side):
        for column in range(side):
            part = product_BCHW[:, :, row * step : (row + 1) * step, column * step : (column + 1) * step]
            torch.testing.assert_close(map_BMHW[:, 0, row, column], part.sum((1, 2, 3)), rtol=1e-3, atol=1e-4)


def brute_force(model: nn.Module, image_CHW: Tensor, k: int) -> Tensor:
    """RISE's formula, mask by mask."""
    total_HW = torch.zeros(image_CHW.shape[1:])
    masks = rise_masks(*image_CHW.shape[1:])
    with torch.no_grad():
        for mask_HW in masks:
            total_HW += model((image_CHW * mask_HW)[None]).softmax(1)[0, k] * mask_HW
    return total_HW / (len(masks) * perturbation.RISE_KEPT)


def test_rise_by_brute_force() -> None:
    model = small(channels=3)
    image_BCHW = torch.rand(2, 3, 16, 16)
    map_BMHW = METHODS["rise"].explain(model, image_BCHW, classes(0, 2))
    assert map_BMHW.shape == (2, 1, 16, 16)
    torch.testing.assert_close(map_BMHW[0, 0], brute_force(model, image_BCHW[0], 0))
    torch.testing.assert_close(map_BMHW[1, 0], brute_force(model, image_BCHW[1], 2))


def test_rise_finds_the_pixel_that_matters() -> None:
    weight = torch.zeros(2, 256)
    weight[0, 5 * 16 + 11] = 12.0
    model = linear(weight.tolist())
    with torch.no_grad():
        model[1].bias[0] = -6.0  # certain of one class where the pixel is seen, of the other where it is not
    map_BMHW = METHODS["rise"].explain(model, torch.ones(1, 1, 16, 16), classes(0))
    place = map_BMHW[0, 0].flatten().argmax().item()
    assert abs(place // 16 - 5) <= 2 and abs(place % 16 - 11) <= 2


def test_rise_of_a_network_that_sees_nothing_is_its_probability() -> None:
    model = linear([[0.0] * 256, [0.0] * 256])
    map_BMHW = METHODS["rise"].explain(model, torch.rand(2, 1, 16, 16), classes(0, 1))
    torch.testing.assert_close(map_BMHW, torch.full_like(map_BMHW, 0.5), rtol=0.3, atol=0)
    torch.testing.assert_close(map_BMHW.mean().item(), 0.5, rtol=0.03, atol=0)


def test_masks_are_seeded_soft_and_different() -> None:
    torch.manual_seed(1)
    first = rise_masks(20, 24).clone()
    rise_masks.cache_clear()
    torch.manual_seed(2)
    assert torch.equal(rise_masks(20, 24), first)
    assert first.shape == (perturbation.RISE_MASKS, 20, 24)
    assert first.min() >= 0 and first.max() <= 1
    assert len({tuple(mask.flatten().tolist()) for mask in first}) == perturbation.RISE_MASKS


@pytest.mark.parametrize("name", ["occlusion", "rise"])
def test_results_do_not_depend_on_how_many_go_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image_BCHW, class_B = small(), torch.rand(3, 1, 16, 16), classes(0, 1, 2)
    found = []
    for rows in (1, 100, 10_000):
        monkeypatch.setattr(perturbation, "ROWS_AT_ONCE", rows)
        found.append(METHODS[name].explain(model, image_BCHW, class_B))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-6)
