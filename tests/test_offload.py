"""Offload and compilation change where and how a network is trained, and not what comes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_on_ranks
from safetensors.torch import load_file
from test_train import continued, interrupted

from xinv.extension import aio_possible
from xinv.nets.classifier import ClassifierSettings, build_classifier
from xinv.train.engine import Engine
from xinv.train.settings import TrainingSettings

OFFLOADS: list[tuple[int, dict[str, Any]]] = [
    (1, {"offload_optimizer": "cpu"}),
    (2, {"offload_optimizer": "cpu"}),
    (3, {"offload_optimizer": "cpu"}),
    (3, {"offload_optimizer": "cpu", "offload_weights": "cpu"}),
]


def trained(images: Path, folder: Path, cases: list[tuple[int, dict[str, Any]]]) -> list[list[Any]]:
    """Of each case the summaries of a run without its settings, of one with them, and of one cut and continued."""
    found = []
    for number, (stage, settings) in enumerate(cases):
        plain = continued(images, folder / f"plain{number}", stage, {})
        whole = continued(images, folder / f"whole{number}", stage, settings)
        interrupted(images, folder / f"cut{number}", stage, 8, settings)
        found.append([plain, whole, continued(images, folder / f"cut{number}", stage, settings)])
    return found


def check(folder: Path, found: list[list[Any]]) -> None:
    for number, (plain, whole, cut) in enumerate(found):
        assert whole == cut
        assert whole["validation"]["loss"] == pytest.approx(plain["validation"]["loss"], rel=1e-4)
        without, left, right = (
            load_file(folder / f"{name}{number}" / "weights.safetensors") for name in ("plain", "whole", "cut")
        )
        assert without.keys() == left.keys()
        assert all(torch.equal(left[name], right[name]) for name in left), f"case {number}"
        torch.testing.assert_close(left, without, rtol=1e-4, atol=1e-6)  # the gradient's norm is summed in other order


def test_offload_to_main_memory_trains_alike_and_resumes_to_the_bit(tiny_images: Path, tmp_path: Path) -> None:
    found, again = run_on_ranks(trained, 2, tmp_path, tiny_images, tmp_path, OFFLOADS)
    assert found == again
    check(tmp_path, found)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not aio_possible(), reason="no libaio")
def test_offload_of_weights_to_a_disk_does_as_well(tiny_images: Path, tmp_path: Path) -> None:
    """Minutes where DeepSpeed's operation is not built yet."""
    cases = [
        (3, {"offload_optimizer": where, "offload_weights": "nvme", "nvme": tmp_path}) for where in ("none", "cpu")
    ]
    found, _ = run_on_ranks(trained, 2, tmp_path, tiny_images, tmp_path, cases, limit=1000)
    check(tmp_path, found)


def first_forward(nvme: Path) -> tuple[bool, bool]:
    """Whether weights that are large enough to be swapped come back from the disk as they were, and are there."""
    torch.manual_seed(0)
    network = build_classifier(ClassifierSettings(width=64), 1, 32, 4)
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    settings = TrainingSettings(batch_size=2, zero_stage=3, offload_weights="nvme", nvme=nvme, precision="fp32")
    engine = Engine(network, settings, dist.get_world_size())
    engine.forward(torch.rand(1, 1, 32, 32))
    weights = engine.full_weights()
    engine.close()
    same = all(torch.equal(before[name], weight) for name, weight in weights.items())
    return same, any(path.stat().st_size for path in nvme.rglob("*.swp"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not aio_possible(), reason="no libaio")
def test_large_weights_are_on_the_disk_in_full_precision(tmp_path: Path) -> None:
    assert run_on_ranks(first_forward, 2, tmp_path, tmp_path / "nvme", limit=1000) == [(True, True)] * 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_network_trains_alike_at_every_stage_and_resumes(tiny_images: Path, tmp_path: Path) -> None:
    """Another order of the same sums: close, not equal. Cut and continued, it is the same to the bit."""
    compiled = {"compile": True, "recompute": True}
    for stage in range(4):
        plain = continued(tiny_images, tmp_path / f"plain{stage}", stage, {})
        whole = continued(tiny_images, tmp_path / f"whole{stage}", stage, compiled)
        interrupted(tiny_images, tmp_path / f"cut{stage}", stage, 8, compiled)
        assert continued(tiny_images, tmp_path / f"cut{stage}", stage, compiled) == whole
        assert whole["validation"]["loss"] == pytest.approx(plain["validation"]["loss"], rel=1e-3)
        left, right, eager = (
            load_file(tmp_path / f"{name}{stage}" / "weights.safetensors") for name in ("whole", "cut", "plain")
        )
        assert left.keys() == eager.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
