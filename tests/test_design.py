"""Designs as they are written down: where levels attend and skip, what is refused, and the presets by name."""

from typing import Any

import pytest
from inverters import parameters
from pydantic import ValidationError

from xinv.errors import InputError
from xinv.nets.design import PRESETS, InverterDesign, ReleaseShape, preset
from xinv.nets.inverter import build_inverter


def test_design_survives_json() -> None:
    for design in PRESETS.values():
        assert InverterDesign.model_validate_json(design.model_dump_json()) == design


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'unett'; known are .*flatten_unet"):
        preset("unett")


def test_where_levels_attend() -> None:
    sizes = [64, 32, 16, 8, 4]
    chosen = InverterDesign(attention_size=8, fusion="cross_attention", fusion_size=16)
    assert chosen.attends_at(sizes) == [False, False, False, True, True]
    assert chosen.looks_at_tokens_at(sizes) == [False, False, True, True, True]
    assert chosen.attends_at([28, 14]) == [False, True]  # the coarsest, or the choice would mean nothing
    assert InverterDesign(attention_size=32).attends_at([28, 14, 7]) == [False, True, True]  # no blocks at full size
    assert InverterDesign(attention_size=32, full_size_blocks=True).attends_at([28, 14, 7]) == [True, True, True]
    assert InverterDesign(attention_size=4).attends_at([9]) == [True]
    assert PRESETS["film_unet"].attends_at(sizes) == PRESETS["film_unet"].looks_at_tokens_at(sizes) == [False] * 5


def test_skips_of_a_chosen_size_lie_between_cnn_and_unet() -> None:
    sizes = [32, 16, 8, 4]
    unet = InverterDesign(encoder="unet", skip_size=8)
    assert unet.skips_from(sizes) == [False, False, True, True]
    assert unet.skips_from([32, 16]) == [False, True]  # the coarsest, or it would be a cnn under another name
    assert InverterDesign(encoder="unet").skips_from(sizes) == [True] * 4
    assert InverterDesign(encoder="cnn").skips_from(sizes) == [False] * 4
    release = ReleaseShape(10, ((1, 32, 32),))
    counts = [
        parameters(build_inverter(InverterDesign(**kind), release, 1, 32))
        for kind in ({"encoder": "cnn"}, {"encoder": "unet", "skip_size": 8}, {"encoder": "unet"})
    ]
    # Skips of 4 and 8 px widen the blocks of 128 and 64 channels; those of 16 and 32 px the block of 32 and the head.
    assert counts[1] - counts[0] == 9 * (128 * 128 + 64 * 64)
    assert counts[2] - counts[1] == 9 * (32 * 32 + 16 * 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prediction": "none"}, "start from nothing: choose a prediction"),
        ({"prediction": "none", "flatten": True, "fusion": "film"}, "prediction=none leaves none"),
        ({"blocks": 0, "upsampling": "nearest"}, "blocks=0 needs upsampling=transposed"),
        ({"blocks": 0, "encoder": "unet"}, "blocks=0 needs upsampling=transposed"),
        ({"upsampling": "nearest", "bottleneck": 0}, "bottleneck must be at least 1"),
        ({"head": "tanh"}, "Input should be 'linear' or 'sigmoid'"),
        ({"wdith": 3}, "Extra inputs are not permitted"),
        ({"prediction": "none", "fusion": "cross_attention"}, "start from nothing: choose a prediction"),
        ({"flatten": True, "summary": "pooled"}, "choose flatten=false or summary=none"),
        ({"skip_size": 8}, "set it to null, or choose that encoder"),
        ({"skip_size": 8, "encoder": "cnn"}, "set it to null, or choose that encoder"),
        ({"tokens": "encoder", "encoder": "cnn"}, "choose both, or tokens=patches"),
        ({"tokens": "encoder", "fusion": "cross_attention"}, "choose both, or tokens=patches"),
        ({"blocks": 0, "attention_size": 8}, "choose blocks of 1 or more"),
        ({"blocks": 0, "fusion": "cross_attention"}, "choose blocks of 1 or more"),
        ({"attention_size": 8, "smallest": 17}, "lower smallest to 16 or less"),
        ({"fusion": "cross_attention", "smallest": 17}, "lower smallest to 16 or less"),
        ({"attention_size": 64}, "less than or equal to 32"),
        ({"grid": 64}, "less than or equal to 32"),
    ],
)
def test_incoherent_designs_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        InverterDesign(**wrong)
