"""The number of ranks may change between save and resume: 2, then 1, then 3, at every ZeRO stage, for all networks."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from dying import dying_after
from ranks import run_on_ranks
from safetensors.torch import load_file

from xinv.data.loader import Reader
from xinv.nets.classifier import ClassifierSettings, build_classifier
from xinv.nets.design import preset
from xinv.train.engine import Engine
from xinv.train.loop import TrainJob, train
from xinv.train.settings import TrainingSettings
from xinv.train.weights import ClassifierSpec, InverterSpec, NetworkSpec, SurrogateSpec

METHODS, MAPS = ("gradient",), ((1, 16, 16),)
SMALL: dict[str, Any] = {"width": 8, "encoder_width": 8, "bottleneck": 32, "hidden": 16}


def job_for(kind: str, images: Path, releases: Path, folder: Path, settings: dict[str, Any]) -> TrainJob:
    reader = Reader(images, "attack", releases, METHODS)
    (channels, size, _), classes = reader.image_shape, reader.classes
    common: dict[str, Any] = {"channels": channels, "size": size, "classes": classes}
    network: NetworkSpec
    if kind == "classifier":
        network = ClassifierSpec(settings=ClassifierSettings(network="residual", width=8), **common)
    elif kind == "inverter":
        network = InverterSpec(design=preset("flatten_unet", **SMALL), methods=METHODS, maps=MAPS, **common)
    else:
        design, explainer = preset("unet", **SMALL), preset("prediction_only", width=8, bottleneck=32)
        network = SurrogateSpec(explainer=explainer, design=design, methods=METHODS, maps=MAPS, **common)
    return TrainJob(
        folder=folder,
        objective={"classifier": "classify", "inverter": "invert", "surrogate": "invert_jointly"}[kind],
        network=network,
        images=images,
        releases=None if kind == "classifier" else releases,
        lessons=releases if kind == "surrogate" else None,
        partition="attack",
        settings=TrainingSettings(epochs=3, batch_size=7, precision="fp32", learning_rate=3e-3, **settings),
        seed=5,
    )


def as_far_as(step: int | None, *arguments: Any) -> dict[str, Any] | None:
    """Train, and die on every rank right after the checkpoint of `step`; None: to the end."""
    with dying_after(step), contextlib.suppress(KeyboardInterrupt):
        return train(job_for(*arguments)).model_dump()
    return None


CASES = [
    *(
        pytest.param(kind, {"zero_stage": stage})
        for kind in ("classifier", "inverter", "surrogate")
        for stage in range(4)
    ),
    *(pytest.param("inverter", {"zero_stage": stage, "offload_optimizer": "cpu"}) for stage in (1, 2, 3)),
    pytest.param("inverter", {"zero_stage": 3, "offload_optimizer": "cpu", "offload_weights": "cpu"}),
    pytest.param("surrogate", {"zero_stage": 3, "recompute": True}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_two_ranks_then_one_then_three(
    kind: str, settings: dict[str, Any], tiny_images: Path, tiny_releases: Path, tmp_path: Path
) -> None:
    given = (kind, tiny_images, tiny_releases)
    (whole,) = run_on_ranks(as_far_as, 1, tmp_path, None, *given, tmp_path / "whole", settings)
    cut = (*given, tmp_path / "cut", settings)
    assert run_on_ranks(as_far_as, 2, tmp_path, 4, *cut) == [None, None]
    assert run_on_ranks(as_far_as, 1, tmp_path, 8, *cut) == [None]
    first, *others = run_on_ranks(as_far_as, 3, tmp_path, None, *cut)
    assert whole is not None and first is not None and all(other == first for other in others)
    assert first["steps"] == whole["steps"] == 12
    for name, value in whole["validation"].items():
        assert first["validation"][name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    left, right = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert left.keys() == right.keys()


def shares() -> list[tuple[str, int, int]]:
    """(name, all elements, elements held here) of each weight of a small classifier at ZeRO-3."""
    network = build_classifier(ClassifierSettings(network="cnn", width=16), 3, 32, 4)
    engine = Engine(network, TrainingSettings(batch_size=4, zero_stage=3), dist.get_world_size())
    found = [(name, part.ds_numel, part.ds_tensor.numel()) for name, part in network.named_parameters()]
    persists = [name for name, part in network.named_parameters() if part.ds_persist]
    engine.close()
    assert persists == [name for name, whole, _ in found if whole < 1000], persists
    assert all(part.numel() == 0 for name, part in network.named_parameters() if name not in persists)
    return found


def test_zero_3_partitions_the_weights_of_convolutions(tmp_path: Path) -> None:
    """DeepSpeed's own threshold of 100,000 elements would leave every convolution of this network whole everywhere."""
    first, second = run_on_ranks(shares, 2, tmp_path)
    kernels = [
        (name, whole, here, there)
        for (name, whole, here), (_, _, there) in zip(first, second, strict=True)
        if name.startswith("features") and whole >= 1000
    ]
    assert len(kernels) == 2 and all(whole < 100_000 for _, whole, _, _ in kernels)
    for name, whole, here, there in kernels:
        assert here == there == whole // 2, name
