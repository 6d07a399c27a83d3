"""Where an untrained inverter's output begins: at the images' mean, so that a sigmoid is not pushed to its flat end."""

import pytest
import torch

from xinv.nets.design import PRESETS, InverterDesign, ReleaseShape
from xinv.nets.inverter import build_inverter

DESIGNS = {
    **{name: design for name, design in PRESETS.items() if design.head == "sigmoid"},
    "one level": InverterDesign(head="sigmoid", flatten=True, smallest=32, blocks=0),
    "two blocks": InverterDesign(head="sigmoid", flatten=True, blocks=2, attention_size=16, residual=True),
}


@pytest.mark.parametrize("name", DESIGNS)
def test_a_sigmoid_begins_at_the_mean_of_the_images(name: str) -> None:
    maps = ((1, 8, 8),) if DESIGNS[name].reads_maps else ()
    network = build_inverter(DESIGNS[name], ReleaseShape(10, maps), 3, 32)
    level_C = torch.tensor([0.1, 0.5, 0.0])
    network.begin_at(level_C)
    with torch.no_grad():
        network.decoder.output.weight.zero_()
        image_BCHW = network(torch.randn(2, 10), [torch.randn(2, *shape) for shape in maps])
    expected = torch.tensor([0.1, 0.5, 0.01])[:, None, None].expand(2, 3, 32, 32)
    torch.testing.assert_close(image_BCHW, expected)


def test_a_linear_head_begins_as_it_did() -> None:
    network = build_inverter(PRESETS["flatten_unet"], ReleaseShape(10, ((1, 8, 8),)), 1, 32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.begin_at(torch.tensor([0.1]))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_dark_images_do_not_turn_a_sigmoid_black_for_good() -> None:
    """Images of which one pixel in ten is bright: without the start at their mean this network stays at zero."""
    errors = []
    for level in (None, 0.1):
        torch.manual_seed(0)
        design = InverterDesign(
            head="sigmoid", flatten=True, upsampling="pixel_shuffle", width=8, blocks=2, residual=True
        )
        network = build_inverter(design, ReleaseShape(10, ((1, 8, 8),)), 1, 32)
        if level is not None:
            network.begin_at(torch.tensor([level]))
        image_BCHW = (torch.rand(64, 1, 8, 8) < 0.1).float()
        truth_BCHW = image_BCHW.repeat_interleave(4, 2).repeat_interleave(4, 3)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        for _ in range(60):
            error = (network(torch.zeros(64, 10), [image_BCHW]) - truth_BCHW).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        errors.append(error.item() / truth_BCHW.square().mean().item())
    assert errors[1] < 0.5 < 0.95 < errors[0], errors
