"""Activation checkpointing: the same gradients from less memory, in training alone, at every ZeRO stage."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_on_ranks
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xinv.nets.classifier import NETWORKS, ClassifierSettings, build_classifier
from xinv.nets.inverter import InverterDesign, ReleaseShape, build_inverter, preset
from xinv.nets.recompute import Levels, recompute
from xinv.nets.surrogate import SurrogateInverter
from xinv.train.engine import Engine, bf16_in_hardware
from xinv.train.settings import TrainingSettings

SIZE = 32
MAP = (1, 16, 16)
INVERTERS: dict[str, InverterDesign] = {
    "flatten_unet": preset("flatten_unet", width=16),
    "film_unet": preset("film_unet", width=8, attention_size=16),
    "no_skips": preset("cnn", width=16),
    "prediction_only": preset("prediction_only", width=16),
    "gnime_expmi": preset("gnime_expmi", width=64, encoder_width=64),
    "cross_attention": preset("film_unet", width=8, fusion="cross_attention"),
}
KINDS = (*NETWORKS, *INVERTERS, "surrogate")


def network_and_inputs(kind: str) -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(1)
    logit_BK, maps = torch.randn(6, 4), [torch.randn(6, *MAP)]
    if kind in NETWORKS:
        width = 4 if kind == "gnime_cnn" else 8
        settings = ClassifierSettings.model_validate({"network": kind, "width": width})
        return build_classifier(settings, 1, SIZE, 4), (torch.rand(6, 1, SIZE, SIZE),)
    if kind == "surrogate":
        design = INVERTERS["flatten_unet"]
        return SurrogateInverter(INVERTERS["prediction_only"], design, 4, MAP, 1, SIZE), (logit_BK,)
    design = INVERTERS[kind]
    release = ReleaseShape(4, (MAP,) if design.reads_maps else ())
    return build_inverter(design, release, 1, SIZE), (logit_BK, maps if design.reads_maps else [])


def loss_of(output: Any) -> Tensor:
    parts = output if isinstance(output, tuple) else (output,)
    return torch.stack([part.square().mean() for part in parts]).sum()


class Alive(TorchDispatchMode):
    """Bytes of what was made inside and is still there, views of the network's weights apart."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._made: dict[int, Any] = {}
        self._weights = {weight.untyped_storage()._cdata for weight in network.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._weights:
                    self._made[storage._cdata] = weakref.ref(storage)
        return out

    @property
    def bytes(self) -> int:
        held = [made() for made in self._made.values()]
        return sum(storage.nbytes() for storage in held if storage is not None)


def step(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients, and the bytes that wait for backward."""
    network.zero_grad()
    with Alive(network) as alive:
        loss = loss_of(network(*inputs))
        waiting = alive.bytes
    loss.backward()
    return loss.detach(), {name: part.grad.clone() for name, part in network.named_parameters()}, waiting


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_gradients_from_less_memory(kind: str) -> None:
    network, inputs = network_and_inputs(kind)
    network.train()
    loss, gradients, kept = step(network, inputs)
    recompute(network, True)
    again_loss, again, recomputed = step(network, inputs)
    assert torch.equal(loss, again_loss)
    assert all(torch.equal(gradients[name], again[name]) for name in gradients)
    assert recomputed < 0.8 * kept, f"{kind}: {recomputed} bytes wait for backward in place of {kept}"
    recompute(network, False)
    assert step(network, inputs)[2] == kept


@pytest.mark.parametrize("kind", ["vit", "film_unet"])
def test_nothing_is_recomputed_in_evaluation(kind: str) -> None:
    """A target is explained in evaluation mode, by hooks that count on one run of each module."""
    network, inputs = network_and_inputs(kind)
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    for part in network.modules():
        part.register_forward_hook(count)
    recompute(network, True)
    counts = []
    for training in (False, True):
        network.train(training)
        runs = 0
        loss_of(network(*inputs)).backward()
        counts.append(runs)
        runs = 0
        with torch.no_grad():
            network(*inputs)
        assert runs == counts[0], "without gradients there is nothing to recompute"
    assert counts[0] < counts[1]


def test_names_of_weights_are_those_of_a_plain_sequence() -> None:
    network, _ = network_and_inputs("cnn")
    assert [name for name, _ in network.named_parameters()][:2] == ["features.0.weight", "features.0.bias"]
    layers = [nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)]
    assert Levels(layers, [2, 3]).state_dict().keys() == nn.Sequential(*layers).state_dict().keys()


def trained(kind: str, stage: int, on: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of a first step and weights after it, of a rank's engine."""
    network, inputs = network_and_inputs(kind)
    settings = TrainingSettings(
        batch_size=12,
        zero_stage=stage,
        recompute=on,
        precision="bf16" if bf16_in_hardware(torch.device("cpu")) else "fp32",
        deepspeed={"zero_optimization": {"stage3_param_persistence_threshold": 0}},
    )
    engine = Engine(network, settings, dist.get_world_size())
    engine.train(True)
    engine.backward(loss_of(engine.forward(*inputs)))
    gradients = engine.full_gradients()
    engine.step()
    weights = engine.full_weights()
    engine.close()
    return gradients, weights


def all_stages(kind: str) -> list[tuple[bool, bool]]:
    """For each ZeRO stage whether (gradients, weights) are those of a network that keeps its activations."""
    found = []
    for stage in range(4):
        (gradients, weights), (again, weights_again) = (trained(kind, stage, on) for on in (False, True))
        assert gradients and gradients.keys() == again.keys()
        same = all(torch.equal(gradients[name], again[name]) for name in gradients)
        found.append((same, all(torch.equal(weights[name], weights_again[name]) for name in weights)))
    return found


@pytest.mark.parametrize("kind", ["residual", "film_unet", "surrogate"])
def test_every_zero_stage_computes_the_same_on_two_ranks(kind: str, tmp_path: Path) -> None:
    """ZeRO-3 gathers weights for a level's second run and lets go of them after it, before its gradients are done."""
    assert run_on_ranks(all_stages, 2, tmp_path, kind) == [[(True, True)] * 4] * 2
