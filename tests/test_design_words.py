"""A design in words and as a drawing, in the report of a search."""

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from pages import pictured

from xinv.nets.design import PRESETS, InverterDesign, ReleaseShape
from xinv.report.design_drawing import drawing
from xinv.report.design_words import nearest, training_words, words
from xinv.train.losses import LossSettings
from xinv.train.settings import TrainingSettings

SHAPE = ReleaseShape(10, ((1, 32, 32),))

RICH: dict[str, Any] = {
    "encoder": "unet",
    "fusion": "cross_attention",
    "summary": "patches",
    "attention_size": 8,
    "fusion_size": 16,
    "grid": 8,
    "upsampling": "transposed",
}
SHIFTED: dict[str, Any] = {"prediction": "log_confidences"}
AXES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (RICH, {"prediction": "log_confidences"}),
    (RICH, {"prediction": "none"}),
    (SHIFTED, {"shift": 30.0}),
    ({"encoder": "cnn"}, {"flatten": True}),
    (RICH, {"summary": "none"}),
    (RICH, {"summary": "pooled"}),
    (RICH, {"grid": 4}),
    ({"summary": "pooled"}, {"grid": 4}),
    (RICH, {"encoder": "none"}),
    (RICH, {"encoder": "cnn"}),
    (RICH, {"encoder_depth": 2}),
    (RICH, {"encoder_width": 24}),
    (RICH, {"skip_size": 8}),
    (RICH, {"hidden": 32}),
    (RICH, {"bottleneck": 0}),
    (RICH, {"bottleneck": 64}),
    (RICH, {"fusion": "concatenate"}),
    (RICH, {"fusion": "film"}),
    (RICH, {"fusion_size": 4}),
    (RICH, {"tokens": "encoder"}),
    (RICH, {"token_width": 32}),
    ({"fusion": "film"}, {"condition": 32}),
    (RICH, {"upsampling": "nearest"}),
    (RICH, {"upsampling": "pixel_shuffle"}),
    (RICH, {"blocks": 2}),
    ({}, {"blocks": 0}),
    (RICH, {"full_size_blocks": True}),
    (RICH, {"attention_size": 4}),
    (RICH, {"attention_size": None}),
    (RICH, {"residual": True}),
    ({"blocks": 0}, {"residual": True}),
    (RICH, {"normalisation": "group"}),
    (RICH, {"normalisation": "layer"}),
    (RICH, {"activation": "gelu"}),
    (RICH, {"width": 24}),
    (RICH, {"width_limit": 64}),
    ({**RICH, "width": 512}, {"schedule": "inverse_size"}),
    (RICH, {"schedule": "resolution"}),
    ({**RICH, "schedule": "resolution"}, {"width_floor": 256}),
    (RICH, {"smallest": 8}),
    (RICH, {"head": "sigmoid"}),
]


def shape_for(design: InverterDesign) -> ReleaseShape:
    return SHAPE if design.reads_maps else ReleaseShape(10)


@pytest.mark.parametrize(("base", "change"), AXES, ids=lambda one: "-".join(map(str, one)) or "plain")
def test_every_axis_changes_words_and_drawing(base: dict[str, Any], change: dict[str, Any]) -> None:
    one, other = InverterDesign(**base), InverterDesign(**base | change)
    said = [words(design, shape_for(design), 1, 32) for design in (one, other)]
    drawn = [drawing(design, shape_for(design), 1, 32) for design in (one, other)]
    assert said[0] != said[1] and drawn[0] != drawn[1]
    assert drawn[0] == drawing(one, shape_for(one), 1, 32), "the same drawing again"
    assert {axis for pair, own in AXES for axis in own} == set(InverterDesign.model_fields), "no axis is forgotten"


def test_what_is_drawn_of_a_known_design() -> None:
    (svg,) = pictured(drawing(PRESETS["gnime_expmi"], SHAPE, 1, 32))
    text = [" ".join(element.itertext()) for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    for label in (
        "explanation · 1 × 32 × 32",
        "32 px · 64 channels",  # of the encoder, and what comes up to the decoder's last level, which has no blocks
        "4 px · 512 channels",
        "4 px · 256 channels",
        "explanation · 1,024 values",
        "bottleneck · 512 values",
        "image · 1 × 32 × 32",
    ):
        assert label in text, label
    assert text.count("32 px · 64 channels") == 2
    said = " ".join(words(PRESETS["gnime_expmi"], SHAPE, 1, 32))
    assert "Skip connections carry the activations of every level to the decoder." in said
    assert "repeats that vector at every place of 4 × 4 px" in said and "There is no attention." in said


def test_the_nearest_preset_and_what_differs_from_it() -> None:
    assert nearest(PRESETS["film_unet"]) == ("film_unet", [])
    changed = PRESETS["film_unet"].model_copy(update={"width": 1024, "skip_size": 8, "grid": 4})
    assert nearest(changed) == ("film_unet", [("encoder_width", "24", "1,024"), ("skip_size", "all", "8"),
                                              ("width", "24", "1,024")]), "the grid decides nothing here"  # fmt: skip
    assert nearest(InverterDesign(**{**PRESETS["yang_tcnn"].model_dump(), "shift": 30.0}))[1] == [
        ("shift", "50.0", "30.0")
    ]


def test_training_and_loss_in_words() -> None:
    training = TrainingSettings(learning_rate=2e-3, weight_decay=0.05, warmup=0.1, epochs=12).model_dump(mode="json")
    (how, what) = training_words(training, LossSettings(mse=1.0, ssim=0.25).model_dump(mode="json"))
    assert "12 epochs by AdamW" in how and "first 10% of the steps, peaks at 0.002" in how and "decay 0.05" in how
    assert what.startswith("It learns by a sum: 1 × the squared error and 0.25 × 1 − SSIM.")
    assert "squared error alone" in training_words(training, LossSettings().model_dump(mode="json"))[1]
