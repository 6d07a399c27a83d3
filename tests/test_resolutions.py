"""From 28 to 1024 px, gray and colour: classifiers and their explanations, every inverter."""

import pytest
import torch

from xinv.nets.classifier import ClassifierSettings, build_classifier
from xinv.nets.design import PRESETS, ReleaseShape
from xinv.nets.inverter import build_inverter
from xinv.release.methods import METHODS, explain_all

SIZES = [28, 96, 250, 1024]


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (28, 3), (100, 3), (1024, 3)])
@pytest.mark.parametrize(
    ("network", "names"),
    [
        ("cnn", ("gradient", "gradient_input", "grad_cam", "sigma_cam", "lrp_zplus")),
        ("residual", ("gradient", "grad_cam", "hires_cam")),
        ("vit", ("gradient", "grad_cam", "attention_rollout")),
    ],
)
def test_explanations_of_every_classifier(network: str, names: tuple[str, ...], size: int, channels: int) -> None:
    torch.manual_seed(0)
    target = build_classifier(ClassifierSettings(network=network, width=4), channels, size, 3).eval()
    methods = [METHODS[name] for name in names]
    for method in methods:
        method.check(target, (channels, size, size))
    logit_BK, maps = explain_all(methods, target, torch.rand(1, channels, size, size), 1)
    assert logit_BK.shape == (1, 3) and set(maps) == set(names)
    for name, map_BMHW in maps.items():
        assert torch.isfinite(map_BMHW).all(), name
        if METHODS[name].shape == "C, H, W":
            assert map_BMHW.shape[1:] == (channels, size, size), name
        else:
            assert 7 <= map_BMHW.shape[3] <= 13, (name, map_BMHW.shape)


@pytest.mark.parametrize(("size", "channels"), [(size, channels) for size in SIZES for channels in (1, 3)])
@pytest.mark.parametrize("name", PRESETS)
def test_every_inverter_makes_images_of_every_size(name: str, size: int, channels: int) -> None:
    design = PRESETS[name]
    maps = ((channels, size, size), (1, 8, 8)) if design.reads_maps else ()
    with torch.device("meta"):
        network = build_inverter(design, ReleaseShape(3, maps), channels, size)
        made = network(torch.empty(2, 3), [torch.empty(2, *shape) for shape in maps])
    assert made.shape == (2, channels, size, size) and made.dtype == torch.float32
