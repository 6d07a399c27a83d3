import itertools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from xinv.errors import InputError
from xinv.nets.inverter import PRESETS, InverterDesign, ReleaseShape, build_inverter
from xinv.plan.memory import Rank
from xinv.plan.section import section_of
from xinv.plan.step import step_of
from xinv.plan.zero import memory
from xinv.search.cost import cost
from xinv.train.settings import TrainingSettings
from xinv.train.weights import InverterSpec

MAPS = ((1, 16, 16), (3, 5, 7))


def shape_for(design: InverterDesign, optional: bool = False) -> ReleaseShape:
    return ReleaseShape(10, MAPS, optional) if design.reads_maps else ReleaseShape(10)


def step(network: torch.nn.Module, release: ReleaseShape, channels: int, size: int, batch: int, bf16: bool = False):
    """Forward and backward on real numbers."""
    logit_BK, maps = torch.randn(batch, release.classes), [torch.randn(batch, *shape) for shape in release.maps]
    image_BCHW = torch.rand(batch, channels, size, size)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        made_BCHW = network(logit_BK, maps)
    (made_BCHW - image_BCHW).square().mean().backward()


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_and_flops_are_those_of_the_real_network(name):
    release, channels, size, batch = shape_for(PRESETS[name]), 3, 16, 2
    network = build_inverter(PRESETS[name], release, channels, size)
    with FlopCounterMode(display=False) as counter:
        step(network, release, channels, size, batch)
    found = cost(PRESETS[name], release, channels, size, batch)
    assert found.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert found.flops == pytest.approx(counter.get_total_flops() / batch, rel=0.02)


def test_flops_by_hand():
    design = InverterDesign(
        upsampling="nearest", blocks=1, full_size_blocks=True, bottleneck=6, width=4, width_limit=8, smallest=4
    )
    found = cost(design, ReleaseShape(10), 1, 8, 5)
    # Multiply-adds of an image: bottleneck 10 -> 6; 3x3 convolutions 6 -> 8 at 4 px, 8 -> 4 and 4 -> 1 at 8 px. A step
    # does each of them forward, for its weights and for its input; the logits need no gradient.
    linear, deep, full, head = 10 * 6, 9 * 6 * 8 * 16, 9 * 8 * 4 * 64, 9 * 4 * 1 * 64
    assert found.flops == 2 * (2 * linear + 3 * (deep + full + head))
    assert found.parameters == (10 + 1) * 6 + (9 * 6 + 1) * 8 + (9 * 8 + 1) * 4 + (9 * 4 + 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_is_the_planners(precision):
    """Which tests/test_plan_step.py holds to what the engine really allocates."""
    design, maps = PRESETS["unet"], ((3, 32, 32),)
    spec = InverterSpec(design=design, channels=1, size=32, classes=10, methods=("gradient",), maps=maps)
    rank = Rank.of(16, 16, 1, "cpu")
    step = step_of(spec, "invert", precision=precision)
    planned = memory(step, section_of(TrainingSettings(), step.sizes), rank)
    found = cost(design, ReleaseShape(10, maps), 1, 32, 16, precision).memory_bytes
    assert found == planned.total


def test_nothing_is_allocated():
    """403 M weights in one layer: the paper's Flatten branch at 512 px; and a batch that no memory holds."""
    design, release = PRESETS["flatten"], ReleaseShape(10, ((6, 512, 512),))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        found = cost(design, release, 3, 512, 100_000)
    assert found.parameters > 256 * 6 * 512 * 512 and found.memory_bytes > 100_000 * 4 * (6 + 3) * 512 * 512
    changes = [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert max(itertools.accumulate(changes), default=0) < 1 << 20


def test_explanations_that_may_be_withheld_cost_their_marks():
    design = PRESETS["film_unet"]
    told, plain = (cost(design, shape_for(design, optional), 1, 32, 4) for optional in (True, False))
    assert told.parameters - plain.parameters == len(MAPS) * (design.bottleneck + design.condition)


def test_a_design_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="reads explanation maps"):
        cost(PRESETS["unet"], ReleaseShape(10), 1, 32, 8)
