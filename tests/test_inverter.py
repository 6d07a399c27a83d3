"""Inverters: every preset runs at every size, and the known designs have the layers of their references."""

import copy
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from inverters import inputs, parameters
from torch import Tensor, nn

from xinv.errors import InputError
from xinv.nets.blocks import Film
from xinv.nets.inverter import PRESETS, Inverter, ReleaseShape, build_inverter, preset


def build(name: str, size: int = 32, channels: int = 1, classes: int = 10, maps: object = None) -> Inverter:
    design = PRESETS[name]
    if maps is None:
        maps = ((1, size, size),) if design.reads_maps else ()
    return build_inverter(design, ReleaseShape(classes, maps), channels, size)


def conv(fan_in: int, fan_out: int, kernel: int = 3) -> int:
    return fan_in * fan_out * kernel * kernel + fan_out


def dense(fan_in: int, fan_out: int) -> int:
    return fan_in * fan_out + fan_out


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [16, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_preset_runs_at_every_size(name: str, size: int, channels: int) -> None:
    maps = ((channels, size, size), (1, 7, 7), (2, 4, 6)) if PRESETS[name].reads_maps else ()
    narrow = preset(name, width=PRESETS[name].width // 4, bottleneck=PRESETS[name].bottleneck // 4)
    model = build_inverter(narrow, ReleaseShape(5, maps), channels, size)
    image_BCHW = model(*inputs(model))
    assert image_BCHW.shape == (2, channels, size, size)
    assert image_BCHW.dtype == torch.float32
    image_BCHW.square().mean().backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_gnime_expmi_has_the_layers_of_its_reference() -> None:
    # WSP-LAB/GNIME scripts/models.py, ExpMI at 32x32x1, 10 classes: encoder 2048 // size, decoder 1024 // size.
    encoder = conv(1, 64) + conv(64, 128) + conv(128, 256) + conv(256, 512) + dense(512 * 2 * 2, 64)
    bottleneck = dense(64 + 32 * 32 + 10, 512)
    decoder = conv(512 + 512, 256) + conv(256 + 256, 128) + conv(128 + 128, 64) + conv(64 + 64, 1)
    assert encoder + bottleneck + decoder == 5_341_825
    model = build("gnime_expmi")
    assert parameters(model) == 5_341_825
    assert weight_shapes(model) == [
        (64, 1, 3, 3),
        (128, 64, 3, 3),
        (256, 128, 3, 3),
        (512, 256, 3, 3),
        (64, 2048),
        (512, 1098),
        (256, 1024, 3, 3),
        (128, 512, 3, 3),
        (64, 256, 3, 3),
        (1, 128, 3, 3),
    ]


def test_gnime_expmi_at_the_references_other_size() -> None:
    # 128x128x3, 1,000 classes (its CelebA setting): six encoder levels of 16, 32, 64, 128, 256, 512 channels.
    encoder = conv(3, 16) + conv(16, 32) + conv(32, 64) + conv(64, 128) + conv(128, 256) + conv(256, 512)
    bottleneck = dense(512 * 2 * 2, 64) + dense(64 + 3 * 128 * 128 + 1000, 512)
    decoder = conv(512 + 512, 256) + conv(256 + 256, 128) + conv(128 + 128, 64) + conv(64 + 64, 32)
    decoder += conv(32 + 32, 16) + conv(16 + 16, 3)
    model = build("gnime_expmi", 128, 3, 1000, maps=((3, 128, 128),))
    assert parameters(model) == encoder + bottleneck + decoder


def test_gnime_predmi_has_the_layers_of_its_reference() -> None:
    # The same file, predmi_mnist; and predmi_celeba at 128 px with 1,000 classes and 3 channels.
    digits = dense(10, 1024) + conv(1024, 1024) + conv(1024, 512) + conv(512, 256) + conv(256, 1)
    assert parameters(build("gnime_predmi")) == digits == 15_350_785
    faces = dense(1000, 1024) + conv(1024, 1024) + conv(1024, 512) + conv(512, 256) + conv(256, 128)
    faces += conv(128, 64) + conv(64, 3)
    assert parameters(build("gnime_predmi", 128, 3, 1000)) == faces


def test_yang_has_the_layers_of_its_reference() -> None:
    # yziqi/adversarial-model-inversion model.py, Inversion: ngf 128, 530 classes, 64x64 gray; 4x4 transposed
    # convolutions with biases, each but the last one normalised with a scale and a shift a channel.
    widths = [(530, 1024), (1024, 512), (512, 256), (256, 128), (128, 1)]
    by_hand = sum(conv(fan_in, fan_out, 4) for fan_in, fan_out in widths) + 2 * (1024 + 512 + 256 + 128)
    model = build("yang_tcnn", 64, 1, 530)
    assert parameters(model) == by_hand == 19_701_377
    kernels = [shape for shape in weight_shapes(model) if len(shape) == 4]
    assert kernels == [(fan_in, fan_out, 4, 4) for fan_in, fan_out in widths]


def test_flatten_unet_size_counted_by_hand() -> None:
    # 32 px, one full-size map, 10 classes: widths 16, 32, 64, 128 on both sides.
    encoder = conv(1, 16) + conv(16, 32) + conv(32, 64) + conv(64, 128) + dense(128 * 2 * 2, 64)
    joined = dense(10 + 1024 + 64, 256) + conv(256, 128, 4)
    blocks = conv(128 + 128, 128) + conv(64 + 64, 64) + conv(32 + 32, 32) + conv(16 + 16, 1)
    ups = conv(128, 64, 4) + conv(64, 32, 4) + conv(32, 16, 4)
    assert parameters(build("flatten_unet")) == encoder + joined + blocks + ups == 1_495_473


def weight_shapes(model: nn.Module) -> list[tuple[int, ...]]:
    """Of the layers' weights, in the order in which a forward pass meets them."""
    shapes: list[tuple[int, ...]] = []

    def note(module: nn.Module, *_: object) -> None:
        shapes.append(tuple(module.weight.shape))

    for module in model.modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            module.register_forward_hook(note)
    model(*inputs(model))
    return shapes


@pytest.mark.parametrize("name", ["prediction_only", "flatten_unet"])
def test_demo_designs_stay_small(name: str) -> None:
    model = build(name)
    assert parameters(model) < 3e6
    operations: list[int] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        places = args[0] if isinstance(module, nn.ConvTranspose2d) else output  # where the kernel is laid down
        operations.append(2 * module.weight.numel() * (places[0, 0].numel() if places.ndim == 4 else 1))

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.register_forward_hook(note)
    model(*inputs(model, batch=1))
    assert sum(operations) < 60e6


def test_width_scales_a_preset() -> None:
    small, large = (
        build_inverter(preset("flatten_unet", width=width), ReleaseShape(10, ((1, 32, 32),)), 1, 32)
        for width in (8, 32)
    )
    assert parameters(large) > 2 * parameters(small)


def test_flatten_reads_maps_at_their_native_size() -> None:
    model = build("flatten", maps=((1, 8, 8), (3, 32, 32)))
    linear = model.bottleneck[0]
    assert isinstance(linear, nn.Linear)
    assert linear.in_features == 10 + 64 + 3 * 1024


def test_standardise_is_undone_by_the_opposite_change_of_the_maps() -> None:
    model = build("flatten_unet", maps=((2, 32, 32), (1, 8, 8))).eval()
    prediction_BK, maps = inputs(model)
    before_BCHW = model(prediction_BK, maps)
    mean_M, scale_M = torch.tensor([3.0, -1.0, 0.5]), torch.tensor([10.0, 0.01, 2.0])
    model.standardise(mean_M, scale_M)
    assert not torch.allclose(model(prediction_BK, maps), before_BCHW)
    moved = [
        maps[0] * scale_M[:2, None, None] + mean_M[:2, None, None],
        maps[1] * scale_M[2:, None, None] + mean_M[2:, None, None],
    ]
    torch.testing.assert_close(model(prediction_BK, moved), before_BCHW, rtol=1e-3, atol=1e-4)
    assert {"map_mean", "map_scale"} <= model.state_dict().keys()


@pytest.mark.parametrize(
    ("mean", "scale", "message"),
    [([0.0], [1.0], "2 values each"), ([0.0, 0.0], [1.0, 0.0], "positive"), ([float("nan"), 0], [1.0, 1.0], "finite")],
)
def test_unusable_standardisation_is_refused(mean: Sequence[float], scale: Sequence[float], message: str) -> None:
    model = build("unet", maps=((2, 32, 32),))
    with pytest.raises(InputError, match=message):
        model.standardise(torch.tensor(mean), torch.tensor(scale))
    assert torch.equal(model.map_scale, torch.ones(2))


@pytest.mark.parametrize("name", PRESETS)
def test_releases_do_not_see_each_other(name: str) -> None:
    model = build(name, size=16)  # in training mode, where BatchNorm would couple them
    prediction_BK, maps = inputs(model, batch=3)
    alone_BCHW = torch.cat([model(prediction_BK[row : row + 1], [m[row : row + 1] for m in maps]) for row in range(3)])
    torch.testing.assert_close(model(prediction_BK, maps), alone_BCHW, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_every_input_that_a_design_reads_matters(name: str) -> None:
    torch.manual_seed(1)
    model = build(name, size=16)
    if PRESETS[name].fusion == "film":
        for module in model.modules():
            if isinstance(module, Film):
                nn.init.normal_(module.affine.weight)
    prediction_BK, maps = inputs(model)
    base_BCHW = model(prediction_BK, maps)
    assert not torch.equal(model(prediction_BK + torch.randn_like(prediction_BK), maps), base_BCHW)
    if maps:
        assert not torch.equal(model(prediction_BK, [maps[0] + 0.5 * torch.randn_like(maps[0])]), base_BCHW)


def test_film_modulates_every_decoder_block_and_starts_as_nothing() -> None:
    film = Film(6, 4)
    feature_BCHW = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(film(feature_BCHW, torch.randn(2, 6)), feature_BCHW)
    with torch.no_grad():
        film.affine.bias.copy_(torch.tensor([1.0, 1, 1, 1, 2, 2, 2, 2]))  # scale by 1 + 1, shift by 2
    torch.testing.assert_close(film(feature_BCHW, torch.randn(2, 6)), 2 * feature_BCHW + 2)
    model = build("film_unet", size=32)
    films = [name for name, module in model.named_modules() if isinstance(module, Film)]
    assert [name.split(".blocks")[0] for name in films] == [f"decoder.levels.{level}" for level in range(4)]


def test_log_confidences_are_shifted_and_clamped() -> None:
    design = preset("yang_tcnn", shift=5.0)
    model = build_inverter(design, ReleaseShape(3), 1, 16)
    logit_BK = torch.tensor([[0.0, 0.0, -100.0]])
    expected_BK = torch.tensor([[5 - 0.693147, 5 - 0.693147, 0.0]])
    torch.testing.assert_close(model.prediction(logit_BK), expected_BK)
    torch.testing.assert_close(model(logit_BK, []), model(logit_BK + 3, []))  # a softmax forgets a common shift


def test_bfloat16_keeps_small_differences_of_predictions() -> None:
    # 50 + log p needs more than the 8 bits of bf16, which would round 49.99 and 49.9 to one value.
    model = build("yang_tcnn", 16, classes=4)
    logit_BK = torch.tensor([[5.0, 0, 0, 0], [4.9, 0, 0, 0]])
    with torch.autocast("cpu", torch.bfloat16):
        first_CHW, second_CHW = model(logit_BK, [])
    assert not torch.equal(first_CHW, second_CHW)


@pytest.mark.parametrize("name", ["prediction_only", "flatten_unet", "film_unet", "gnime_expmi"])
def test_bfloat16_autocast_agrees_with_float32(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, size=16)
    prediction_BK, maps = inputs(model)
    exact_BCHW = model(prediction_BK, maps)
    with torch.autocast("cpu", torch.bfloat16):
        fast_BCHW = model(prediction_BK, maps)
    assert fast_BCHW.dtype == torch.float32
    torch.testing.assert_close(fast_BCHW, exact_BCHW, rtol=0.1, atol=0.03)


def test_overfits_a_handful_of_images() -> None:
    torch.manual_seed(0)
    image_BCHW = F.interpolate(torch.rand(6, 1, 4, 4), size=16)
    model = build("flatten_unet", size=16, classes=3)
    prediction_BK = torch.randn(6, 3)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(120):
        loss = F.mse_loss(model(prediction_BK, [image_BCHW - 0.5]), image_BCHW)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.005, loss.item()  # the images' variance is 0.08


def test_designs_and_releases_must_fit() -> None:
    with pytest.raises(InputError, match="the release has none"):
        build_inverter(PRESETS["unet"], ReleaseShape(10), 1, 32)
    with pytest.raises(InputError, match="ignores explanation maps"):
        build_inverter(PRESETS["prediction_only"], ReleaseShape(10, ((1, 8, 8),)), 1, 32)
    with pytest.raises(InputError, match="at least 8 px"):
        build_inverter(PRESETS["prediction_only"], ReleaseShape(10), 1, 4)
    narrow = preset("gnime_predmi", width=16)
    with pytest.raises(InputError, match="no channels left at 32 px"):
        build_inverter(narrow, ReleaseShape(10), 1, 32)


def test_maps_of_another_shape_are_an_error() -> None:
    model = build("unet")
    with pytest.raises(AssertionError, match="expected"):
        model(torch.randn(2, 10), [torch.randn(2, 1, 8, 8)])


def test_explanation_alone() -> None:
    design = preset("unet", prediction="none")
    model = build_inverter(design, ReleaseShape(10, ((1, 8, 8),)), 3, 28)
    map_BMHW = torch.randn(2, 1, 8, 8)
    first_BCHW = model(torch.zeros(2, 10), [map_BMHW])
    assert torch.equal(first_BCHW, model(torch.ones(2, 10), [map_BMHW]))


def test_encoder_depth_and_width() -> None:
    design = preset("unet", encoder_depth=2, encoder_width=8)
    model = build_inverter(design, ReleaseShape(10, ((1, 32, 32),)), 1, 32)
    assert model.encoder is not None
    assert model.encoder.widths == [8, 16]
    assert model(*inputs(model)).shape == (2, 1, 32, 32)


def test_a_copy_computes_the_same() -> None:
    model = build("film_unet", size=16)
    prediction_BK, maps = inputs(model)
    other = build("film_unet", size=16)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(model(prediction_BK, maps), other(prediction_BK, maps))


# --- explanations that may be withheld ------------------------------------------------------------------------------

READERS = [name for name, design in PRESETS.items() if design.reads_maps]


def optional(name: str, maps: tuple[tuple[int, int, int], ...] = ((1, 16, 16), (2, 4, 4))) -> Inverter:
    torch.manual_seed(2)
    model = build_inverter(PRESETS[name], ReleaseShape(4, maps, optional=True), 1, 16).eval()
    for module in model.modules():  # which starts as nothing
        if isinstance(module, Film):
            nn.init.normal_(module.affine.weight)
    model.standardise(torch.full((3,), 0.7), torch.full((3,), 2.0))
    return model


@pytest.mark.parametrize("name", READERS)
def test_a_withheld_map_is_not_looked_at(name: str) -> None:
    model = optional(name)
    prediction_BK, maps = inputs(model, batch=3)
    mask_BG = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    base_BCHW = model(prediction_BK, maps, mask_BG)
    changed = [map_BMHW.clone() for map_BMHW in maps]
    changed[0][1:] = float("nan")
    changed[1][[0, 2]] += 5.0
    assert torch.equal(model(prediction_BK, changed, mask_BG), base_BCHW)
    changed[0][0] += 1.0
    assert not torch.equal(model(prediction_BK, changed, mask_BG)[0], base_BCHW[0])


@pytest.mark.parametrize("name", READERS)
def test_no_mask_means_all_present_and_a_mask_is_an_input_of_its_own(name: str) -> None:
    model = optional(name)
    prediction_BK, maps = inputs(model)
    everything_BG = torch.ones(2, 2)
    given_BCHW = model(prediction_BK, maps, everything_BG)
    assert torch.equal(model(prediction_BK, maps), given_BCHW)
    average = [torch.full_like(map_BMHW, 0.7) for map_BMHW in maps]  # 0 after standardisation, as withheld ones are
    known_BCHW = model(prediction_BK, average, everything_BG)
    assert not torch.allclose(model(prediction_BK, average, 0 * everything_BG), known_BCHW)


@pytest.mark.parametrize("name", READERS)
def test_only_the_layers_that_are_told_of_the_mask_grow(name: str) -> None:
    design, maps = PRESETS[name], ((1, 16, 16), (2, 4, 4))
    plain = build_inverter(design, ReleaseShape(4, maps), 1, 16)
    with_mask = {name: tuple(value.shape) for name, value in optional(name).state_dict().items()}
    without = {name: tuple(value.shape) for name, value in plain.state_dict().items()}
    told = {"bottleneck.0.weight", *(["condition.0.weight"] if design.fusion == "film" else [])}
    assert {name for name in without if without[name] != with_mask[name]} == told and with_mask.keys() == without.keys()
    assert all(with_mask[name] == (without[name][0], without[name][1] + 2) for name in told)
    with pytest.raises(AssertionError, match="not made for withheld"):
        plain(*inputs(plain), torch.ones(2, 2))
