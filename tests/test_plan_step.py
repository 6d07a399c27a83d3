"""A step without numbers against a real one: FLOPs by torch's counter, memory by torch's allocator."""

import itertools

import pytest
import torch
from measuring import Case, measure, planned, spec_of
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from xinv.nets.classifier import ClassifierSettings
from xinv.plan.step import batch_for, step_at, step_of
from xinv.train.engine import bf16_in_hardware
from xinv.train.losses import LossSettings
from xinv.train.objectives import OBJECTIVES
from xinv.train.weights import ClassifierSpec

NETWORKS = ("flatten", "unet", "flatten_unet", "film_unet", "cnn", "residual")


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("recompute", [False, True])
def test_flops_are_those_of_a_real_step(network: str, recompute: bool) -> None:
    from xinv.nets.recompute import recompute as recomputed

    spec, objective = spec_of(Case(network))
    built = spec.build()
    recomputed(built, recompute)
    learned = OBJECTIVES[objective](built, LossSettings())
    batch = batch_for(spec, 5)
    with FlopCounterMode(display=False) as counter:
        output = built(*learned.inputs(batch))
        (learned.loss_B(output, batch) * batch.weight_B).sum().backward()
    step = step_of(spec, objective, recompute=recompute)
    assert step.flops(5) == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert step.total == sum(parameter.numel() for parameter in built.parameters())


def test_memory_is_what_the_allocator_hands_out() -> None:
    cases = [Case(network, size=64, micro=8) for network in ("flatten_unet", "film_unet", "cnn", "residual")]
    cases += [Case("flatten_unet", size=64, micro=8, training={"recompute": True})]
    cases += [Case(network, micro=8) for network in ("prediction_only", "yang_tcnn", "gnime_expmi")]
    if bf16_in_hardware(torch.device("cpu")):
        cases += [Case(network, micro=16, training={"precision": "bf16"}) for network in ("flatten_unet", "film_unet")]
    for case, real in zip(cases, measure(cases), strict=True):
        assert planned(case)[0].total == pytest.approx(real["peak"], rel=0.1), case


def test_two_sizes_tell_all_others() -> None:
    spec, objective = spec_of(Case("film_unet"))
    every, one = step_of(spec, objective), step_at(spec, objective, 7)
    assert (every.held(7) == one.held(7)).all()
    assert every.flops(7) == one.flops(7)
    assert every.input_bytes == one.input_bytes


def test_recomputing_trades_arithmetic_for_memory() -> None:
    spec, objective = spec_of(Case("unet", size=64))
    kept, again = (step_of(spec, objective, recompute=on) for on in (False, True))
    assert again.held(16).max() < 0.8 * kept.held(16).max()
    assert kept.flops(16) < again.flops(16) < 1.5 * kept.flops(16)


def test_nothing_is_allocated() -> None:
    spec, objective = spec_of(Case("flatten", size=512))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = step_of(spec, objective)
    assert step.total > 256 * 3 * 512 * 512 and step.held(100_000).max() > 100_000 * 4 * 6 * 512 * 512
    changes = [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert max(itertools.accumulate(changes), default=0) < 1 << 20


def test_frozen_weights_get_no_gradient() -> None:
    spec = ClassifierSpec(settings=ClassifierSettings(), channels=1, size=16, classes=2)
    step = step_of(spec, "classify", frozen=("features",))
    assert not all(step.trained) and len(step.arrivals) == sum(step.trained)
