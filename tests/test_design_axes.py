"""The axes of the design space beyond the presets: every one runs at every size, learns, and refuses what cannot be."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from inverters import inputs, parameters
from pydantic import ValidationError
from ranks import run_on_ranks
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from xinv.errors import InputError
from xinv.nets.attention import Attention
from xinv.nets.blocks import PlaceNorm
from xinv.nets.inverter import PRESETS, Inverter, InverterDesign, ReleaseShape, build_inverter
from xinv.nets.patches import PatchTokens
from xinv.train.loop import TrainJob, train
from xinv.train.losses import LossSettings
from xinv.train.settings import TrainingSettings
from xinv.train.weights import InverterSpec, load_inverter

TINY: dict[str, Any] = {"width": 4, "bottleneck": 16, "hidden": 8, "token_width": 16, "grid": 4}
AXES: dict[str, dict[str, Any]] = {
    "pooled": {"summary": "pooled"},
    "patches": {"summary": "patches"},
    "unmixed_patches": {"summary": "patches", "bottleneck": 0},
    "cross_patches": {"fusion": "cross_attention"},
    "cross_encoder": {"fusion": "cross_attention", "encoder": "cnn", "tokens": "encoder"},
    "cross_shallow_encoder": {"fusion": "cross_attention", "encoder": "unet", "tokens": "encoder", "encoder_depth": 1},
    "cross_everything": {"fusion": "cross_attention", "encoder": "unet", "summary": "patches", "attention_size": 8},
    "cross_full_size": {"fusion": "cross_attention", "full_size_blocks": True, "fusion_size": 32},
    "cross_map_alone": {"fusion": "cross_attention", "summary": "pooled", "prediction": "none"},
    "cross_shuffled": {"fusion": "cross_attention", "upsampling": "pixel_shuffle", "residual": True},
    "cross_nearest": {"fusion": "cross_attention", "upsampling": "nearest", "normalisation": "group"},
    "self": {"attention_size": 8, "flatten": True},
    "film_self": {"attention_size": 8, "fusion": "film", "encoder": "unet", "normalisation": "group"},
    "one_skip": {"encoder": "unet", "skip_size": 2},
    "some_skips": {"encoder": "unet", "skip_size": 8},
    "layer": {"encoder": "unet", "normalisation": "layer"},
    "layer_residual": {"encoder": "unet", "normalisation": "layer", "residual": True, "upsampling": "pixel_shuffle"},
    "one_level": {"encoder": "unet", "smallest": 15, "fusion": "film"},
    "one_level_cross": {"smallest": 15, "fusion": "cross_attention", "attention_size": 2},
}
MAPS = ((1, 16, 16), (2, 7, 5))


def design(axis: str, **changes: Any) -> InverterDesign:
    return InverterDesign(**{**TINY, **AXES[axis], **changes})


def build(
    axis: str, size: int = 16, channels: int = 1, maps: tuple[tuple[int, int, int], ...] = MAPS, **changes: Any
) -> Inverter:
    torch.manual_seed(0)
    return build_inverter(design(axis, **changes), ReleaseShape(3, maps), channels, size)


def awake(model: Inverter) -> Inverter:
    """With what starts as nothing (Film, attention beside a residual connection) drawn at random."""
    for name, parameter in model.named_parameters():
        if "film" in name or "attention.out" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


# --- every axis ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 3), (33, 1), (64, 3)])
def test_every_axis_runs_at_every_size(axis: str, size: int, channels: int) -> None:
    model = build(axis, size, channels, ((channels, size, size), (1, 7, 7), (2, 4, 6)))
    image_BCHW = model(*inputs(model))
    assert image_BCHW.shape == (2, channels, size, size)
    assert image_BCHW.dtype == torch.float32
    assert all(parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.parametrize("axis", AXES)
def test_gradients_reach_every_parameter(axis: str) -> None:
    model = awake(build(axis, activation="gelu"))  # a relu may be dead in nets this narrow
    model(*inputs(model, 4)).square().mean().backward()
    still = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.abs().sum() > 0]
    assert not still


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_learns(axis: str) -> None:
    mixed = {} if "bottleneck" in AXES[axis] else {"bottleneck": 32}
    model = build(axis, maps=((1, 16, 16),), activation="gelu", width=8, **mixed)
    image_BCHW = F.interpolate(torch.rand(4, 1, 4, 4), size=16)
    prediction_BK = torch.randn(4, 3)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(100):
        loss = F.mse_loss(model(prediction_BK, [image_BCHW - 0.5]), image_BCHW)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 < losses[0]  # their mean image would have 0.06


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_reads_all_of_its_release(axis: str) -> None:
    model = awake(build(axis))
    prediction_BK, maps = inputs(model)
    base_BCHW = model(prediction_BK, maps)
    for number in range(2):
        changed = [one + torch.randn_like(one) * (place == number) for place, one in enumerate(maps)]
        assert not torch.equal(model(prediction_BK, changed), base_BCHW)
    same = torch.equal(model(prediction_BK + 1 - 2 * torch.eye(2, 3), maps), base_BCHW)
    assert same == (model.design.prediction == "none")


@pytest.mark.parametrize("axis", AXES)
def test_releases_do_not_see_each_other(axis: str) -> None:
    model = awake(build(axis))
    prediction_BK, maps = inputs(model, batch=3)
    alone_BCHW = torch.cat([model(prediction_BK[row : row + 1], [m[row : row + 1] for m in maps]) for row in range(3)])
    torch.testing.assert_close(model(prediction_BK, maps), alone_BCHW, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", AXES)
def test_bfloat16_autocast_agrees_with_float32(axis: str) -> None:
    model = awake(build(axis))
    prediction_BK, maps = inputs(model)
    exact_BCHW = model(prediction_BK, maps)
    with torch.autocast("cpu", torch.bfloat16):
        fast_BCHW = model(prediction_BK, maps)
    assert fast_BCHW.dtype == torch.float32
    spread = exact_BCHW.std().item()
    assert (fast_BCHW - exact_BCHW).abs().max().item() < 0.1 * max(spread, 0.1)


@pytest.mark.parametrize("axis", AXES)
def test_withheld_maps_are_not_looked_at_and_known_to_be_withheld(axis: str) -> None:
    torch.manual_seed(0)
    model = awake(build_inverter(design(axis), ReleaseShape(3, MAPS, optional=True), 1, 16))
    model.standardise(torch.full((3,), 0.7), torch.full((3,), 2.0))
    prediction_BK, maps = inputs(model, batch=3)
    mask_BG = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    base_BCHW = model(prediction_BK, maps, mask_BG)
    assert torch.isfinite(base_BCHW).all()
    changed = [map_BMHW.clone() for map_BMHW in maps]
    changed[0][1:] = float("nan")
    changed[1][[0, 2]] += 5.0
    assert torch.equal(model(prediction_BK, changed, mask_BG), base_BCHW)
    average = [torch.full_like(map_BMHW, 0.7) for map_BMHW in maps]  # zero once standardised, as withheld ones are
    told_BCHW = model(prediction_BK, average, torch.zeros(3, 2))
    assert not torch.allclose(told_BCHW, model(prediction_BK, average, torch.ones(3, 2)))
    assert torch.equal(model(prediction_BK, average), model(prediction_BK, average, torch.ones(3, 2)))


@pytest.mark.parametrize("axis", AXES)
def test_weights_fit_a_second_build(axis: str) -> None:
    model, other = awake(build(axis)), build(axis)
    prediction_BK, maps = inputs(model)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(prediction_BK, maps), other(prediction_BK, maps))
    # The engine exports all buffers: one outside the state dict would make the file unreadable.
    assert {name for name, _ in model.named_buffers()} <= model.state_dict().keys()


def trained(images: Path, releases: Path, folder: Path, stage: int) -> dict[str, float]:
    """Validation figures after two epochs with explanation dropout. Runs on every rank."""
    everything = design(
        "cross_everything", normalisation="layer", skip_size=8, upsampling="pixel_shuffle", full_size_blocks=True
    )
    spec = InverterSpec(
        design=everything,
        channels=1,
        size=16,
        classes=4,
        methods=("gradient", "grad_cam"),
        maps=((1, 16, 16), (1, 4, 4)),
        explanation_dropout=0.3,
    )
    # Partitions every weight, whatever its size: one that is read outside its own module would be missing.
    zero = {"zero_optimization": {"stage3_param_persistence_threshold": 0}} if stage else {}
    job = TrainJob(
        folder=folder,
        objective="invert",
        network=spec,
        images=images,
        releases=releases,
        partition="attack",
        settings=TrainingSettings(epochs=2, batch_size=8, precision="fp32", zero_stage=stage, deepspeed=zero),
        loss=LossSettings(ssim=0.1, gradient=0.1),
        seed=3,
    )
    return train(job).validation


def test_zero_3_on_two_ranks_trains_what_one_process_does(
    tiny_images: Path, tiny_releases: Path, tmp_path: Path
) -> None:
    (one,) = run_on_ranks(trained, 1, tmp_path, tiny_images, tiny_releases, tmp_path / "one", 0)
    two, same = run_on_ranks(trained, 2, tmp_path, tiny_images, tiny_releases, tmp_path / "two", 3)
    assert two == same == pytest.approx(one, rel=1e-4)
    model = load_inverter(tmp_path / "two")
    assert isinstance(model, Inverter) and model.design.fusion == "cross_attention"


CHOICES: dict[str, list[Any]] = {
    "prediction": ["logits", "log_confidences", "none"],
    "flatten": [False, True],
    "summary": ["none", "pooled", "patches"],
    "grid": [1, 5, 16, 32],
    "encoder": ["none", "cnn", "unet"],
    "encoder_depth": [None, 1, 3],
    "encoder_width": [None, 3, 40],
    "skip_size": [None, 2, 16],
    "bottleneck": [0, 7, 64],
    "fusion": ["concatenate", "film", "cross_attention"],
    "fusion_size": [2, 8, 32],
    "tokens": ["patches", "encoder"],
    "upsampling": ["nearest", "transposed", "pixel_shuffle"],
    "blocks": [0, 1, 2],
    "full_size_blocks": [False, True],
    "attention_size": [None, 2, 32],
    "residual": [False, True],
    "normalisation": ["none", "group", "layer"],
    "width": [1, 3, 24],
    "smallest": [2, 3, 4, 16, 40],
    "head": ["linear", "sigmoid"],
}


def test_whatever_passes_as_a_design_makes_images_of_every_size() -> None:
    """Random points of the whole space, on fake tensors: what a search proposes must not fail for its shapes."""
    generator = random.Random(20211017)
    built = 0
    while built < 30:
        try:
            chosen = InverterDesign(**{name: generator.choice(values) for name, values in CHOICES.items()})
        except ValidationError:
            continue
        size, channels = generator.choice([8, 9, 28, 33, 64, 178]), generator.choice([1, 3])
        maps = ((channels, size, size), (1, 7, 7), (2, 5, 40)) if chosen.reads_maps else ()
        optional = generator.choice([False, bool(maps)])
        with FakeTensorMode():
            try:
                model = build_inverter(chosen, ReleaseShape(4, maps, optional), channels, size)
            except InputError as refusal:
                assert "erase a level of 1 channel" in str(refusal) and chosen.normalisation == "layer"
                continue
            assert model(*inputs(model)).shape == (2, channels, size, size), (chosen, size)
        built += 1


# --- what they cost --------------------------------------------------------------------------------------------------


def explained_cost(summary: str, size: int, channels: int) -> int:
    """Parameters that reading one full-size map adds to the default design."""
    with torch.device("meta"):
        without = build_inverter(InverterDesign(), ReleaseShape(10), channels, size)
        reading = InverterDesign(**({"flatten": True} if summary == "dense" else {"summary": summary}))
        return parameters(build_inverter(reading, ReleaseShape(10, ((channels, size, size),)), channels, size)) - (
            parameters(without)
        )


@pytest.mark.parametrize(("summary", "channels"), itertools.product(["pooled", "patches"], [1, 3]))
def test_summaries_cost_less_than_two_million_weights_at_any_size(summary: str, channels: int) -> None:
    costs = [explained_cost(summary, size, channels) for size in (28, 64, 128, 512, 1000, 1024)]
    assert max(costs) < 2_000_000
    assert explained_cost("dense", 128, 3) == 3 * 128 * 128 * 512  # 25 M, for comparison


def test_costs_counted_by_hand() -> None:
    assert explained_cost("pooled", 128, 3) == 3 * 16 * 16 * 512
    # 8x8 patches of 3 channels to 64, then 64 to 64; 20 position features; 16 mixtures of 256 tokens.
    tokens = (3 * 64 * 64 + 64) + (64 * 64 + 64) + (20 * 64 + 64)
    assert explained_cost("patches", 128, 3) == tokens + (256 * 16 + 16) + 16 * 64 * 512


def test_attention_parameters_counted_by_hand() -> None:
    with torch.device("meta"):
        plain = build_inverter(InverterDesign(encoder="cnn"), ReleaseShape(10, ((1, 32, 32),)), 1, 32)
        own = build_inverter(InverterDesign(encoder="cnn", attention_size=8), plain.release, 1, 32)
        cross_design = InverterDesign(encoder="cnn", fusion="cross_attention", tokens="encoder", fusion_size=4)
        cross = build_inverter(cross_design, plain.release, 1, 32)

    def attention(width: int, token: int) -> int:
        return (width * width + width) + (token + 1) * 2 * width + (width * width + width)

    def around(width: int) -> int:
        return 2 * width + (20 * width + width)  # norm and position

    assert parameters(own) - parameters(plain) == sum(attention(width, width) + around(width) for width in (64, 128))
    tokens = (32 * 64 + 64) + (64 * 64 + 64) + (20 * 64 + 64)  # of the encoder's level of 16 px, 32 channels wide
    look = attention(128, 64) + around(128) + 2 * 64
    assert parameters(cross) - parameters(plain) == tokens + look + (10 * 64 + 64)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("prediction_only", 891_745),
        ("flatten", 1_117_537),
        ("cnn", 968_641),
        ("unet", 1_014_865),
        ("flatten_unet", 1_240_657),
        ("yang_tcnn", 590_209),
        ("gnime_predmi", 21_314_960),
        ("gnime_expmi", 7_496_073),
        ("film_unet", 1_853_649),
    ],
)
def test_presets_are_what_they_were(name: str, count: int) -> None:
    """At 28 px, 1 channel, 5 classes, with maps of 1x28x28 and 2x7x7: counted before the axes here were added."""
    maps = ((1, 28, 28), (2, 7, 7)) if PRESETS[name].reads_maps else ()
    with torch.device("meta"):
        model = build_inverter(PRESETS[name], ReleaseShape(5, maps), 1, 28)
    assert parameters(model) == count
    assert not [module for module in model.modules() if isinstance(module, Attention | PatchTokens | PlaceNorm)]


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_designs_that_read_maps_and_releases_without_any_do_not_fit() -> None:
    for chosen in (InverterDesign(summary="pooled"), InverterDesign(fusion="cross_attention")):
        with pytest.raises(InputError, match="the release has none"):
            build_inverter(chosen, ReleaseShape(3), 1, 16)


def test_without_blocks_a_single_level_still_ends_in_an_image() -> None:
    model = build_inverter(InverterDesign(blocks=0, smallest=15), ReleaseShape(3), 3, 16)
    assert model(torch.randn(2, 3), []).shape == (2, 3, 16, 16)
