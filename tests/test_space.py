"""The space of inverters: whatever it proposes can be built and trained, and its budgets and messages are true."""

import random
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from xinv.errors import InputError
from xinv.nets.design import PRESETS, ReleaseShape
from xinv.nets.inverter import build_inverter
from xinv.search.choices import SpaceSettings
from xinv.search.space import Candidate, SearchSpace
from xinv.search.study import Suggested
from xinv.train.losses import LossSettings
from xinv.train.settings import TrainingSettings

GRAD_CAM = ReleaseShape(10, ((1, 8, 8),))
GRADIENT = ReleaseShape(7, ((3, 32, 32),))
PREDICTIONS = ReleaseShape(10)
BASE = TrainingSettings(learning_rate=1.5e-3, batch_size=64, epochs=3)


class Dice:
    """An optuna trial that chooses at random and remembers."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.params: dict[str, Any] = {}
        self.offered: dict[str, list[Any]] = {}

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        self.offered[name] = choices
        self.params[name] = self.random.choice(choices)
        return self.params[name]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.params[name] = self.random.uniform(low, high)
        return self.params[name]


def space(release: ReleaseShape = GRAD_CAM, channels: int = 1, size: int = 32, **settings: Any) -> SearchSpace:
    return SearchSpace(SpaceSettings(**settings), BASE, LossSettings(), release, channels, size)


ALL = {
    "prediction": ["logits", "log_confidences", "none"],
    "blocks": [0, 1, 2],
    "bottleneck": [0, 64],
    "smallest": [2, 4, 8, 32],
    "width": [2, 4, 6],
    "width_limit": [8, 512],
}


@pytest.mark.parametrize(
    ("release", "channels", "size"), [(GRAD_CAM, 1, 32), (GRADIENT, 3, 32), (PREDICTIONS, 1, 28), (GRADIENT, 3, 50)]
)
def test_every_proposal_can_be_built_and_trained_and_is_found_again(
    release: ReleaseShape, channels: int, size: int
) -> None:
    one = space(release, channels, size, **ALL)
    offered: dict[str, list[Any]] = {}
    for seed in range(150):
        dice = Dice(seed)
        candidate = one.propose(dice)
        for name, choices in dice.offered.items():
            assert offered.setdefault(name, choices) == choices, "optuna refuses a parameter whose values change"
        assert one.propose(Suggested(dice.params)) == candidate
        found = one.parameters(candidate)
        assert found is not None and one.propose(Suggested(found)) == candidate
        if seed < 40:
            network = build_inverter(candidate.design, release, channels, size)
            made = network(torch.randn(2, release.classes), [torch.randn(2, *shape) for shape in release.maps])
            assert made.shape == (2, channels, size, size)
            made.square().mean().backward()
            unlearned = [name for name, part in network.named_parameters() if part.grad is None]
            assert not unlearned, unlearned


def test_the_walk_reaches_every_value_of_every_axis() -> None:
    one = space(**ALL)
    seen: dict[str, set[Any]] = {}
    for seed in range(600):
        dice = Dice(seed)
        one.propose(dice)
        for name, value in dice.params.items():
            seen.setdefault(name.partition("~")[0], set()).add(value)
    settings = one.settings.model_dump()
    for name, values in seen.items():
        if name != "learning_rate":
            assert values == set(settings[name]), name
    searched = {name for name, value in settings.items() if isinstance(value, tuple) and len(value) > 1}
    assert seen.keys() == searched


def test_presets_that_read_the_release_are_offered_and_film_unet_lies_in_the_space() -> None:
    names = {name for name, _ in space().presets()}
    paper = {"flatten", "cnn", "unet", "flatten_unet"}
    assert names == paper | {"pooled", "patches", "gnime_expmi", "film_unet", "pyramid"}
    alone = {"prediction_only", "yang_tcnn", "gnime_predmi", "pyramid_prediction_only"}
    assert {name for name, _ in space(PREDICTIONS).presets()} == alone
    known = dict(space().presets())
    assert known["film_unet"] == Candidate(design=PRESETS["film_unet"], training=BASE, loss=LossSettings())
    found = space().parameters(known["film_unet"])
    assert found is not None and found["fusion"] == "film" and found["learning_rate"] == 1.5e-3
    assert space().propose(Suggested(found)) == known["film_unet"]
    assert space().parameters(known["gnime_expmi"]) is None, "its widths follow another schedule"
    assert space(width=[8, 16]).parameters(known["film_unet"]) is None, "width 24 is not in that space"
    assert space(learning_rate=[1e-4, 1e-3]).parameters(known["film_unet"]) is None


def test_one_value_fixes_an_axis() -> None:
    one = space(width=24, learning_rate=2e-3, encoder="unet", attention_size=None, batch_size=[32])
    for seed in range(20):
        dice = Dice(seed)
        made = one.propose(dice)
        assert (made.design.width, made.design.encoder, made.design.attention_size) == (24, "unet", None)
        assert (made.training.learning_rate, made.training.batch_size) == (2e-3, 32)
        assert not {"width", "learning_rate", "encoder", "attention_size", "batch_size"} & dice.params.keys()


def test_two_ways_to_say_one_network_are_one_candidate() -> None:
    one = space(encoder="unet", encoder_depth=[None, 4], skip_size=[None, 32], width=[4], width_limit=[64, 512])
    made = {one.propose(Dice(seed)).design.model_copy(update={"width_limit": 512}) for seed in range(30)}
    assert all(design.encoder_depth is None and design.skip_size is None for design in made)
    narrow = space(width=[8], width_limit=[32], encoder_share=[1.0], encoder="cnn", smallest=4).propose(Dice(0)).design
    assert narrow.width_limit == 32, "a limit that matters is kept"


@pytest.mark.parametrize(
    ("budget", "unit"),
    [
        ({"max_parameters": 1000}, "parameters"),
        ({"max_flops": 1000}, "FLOPs a step and image"),
        ({"max_memory": "1MiB"}, "bytes of memory"),
    ],
)
def test_a_budget_refuses_with_the_arithmetic(budget: dict[str, Any], unit: str) -> None:
    known = dict(space().presets())["film_unet"]
    price = space().price(known)
    value = {"parameters": price.parameters, "bytes of memory": price.memory_bytes}.get(unit, price.flops)
    reason = space(**budget).refusal(known)
    (limit,) = SpaceSettings(**budget).model_dump(include=set(budget)).values()
    assert reason == f"it takes {value:,} {unit}, and space.{next(iter(budget))} allows {limit:,}."


def test_a_preset_can_be_the_budget() -> None:
    one = space(max_flops="film_unet", max_parameters="gnime_expmi")
    known = dict(one.presets())
    assert one.refusal(known["film_unet"]) is None
    assert not any("width" in name for name in known if name.startswith("film_unet"))
    reason = one.refusal(known["gnime_expmi"])
    assert reason is not None and f"allows {one.price(known['film_unet']).flops:,}" in reason


def test_a_preset_that_breaks_a_budget_is_offered_as_wide_as_the_budget_allows() -> None:
    one = space(max_flops=300_000_000)
    known = dict(one.presets())
    assert one.refusal(known["film_unet"]) is not None
    narrow = known["film_unet of width 16"]
    assert one.refusal(narrow) is None and one.parameters(narrow) is not None
    assert narrow.design == PRESETS["film_unet"].model_copy(update={"width": 16})
    assert not any(name.startswith("gnime_expmi of") for name in known), "its widths follow another schedule"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": []}, "the space is empty: width has no value"),
        ({"width": [8, 8]}, "names a value twice"),
        ({"width": [-4]}, "width.0"),
        ({"beta2": [1.0]}, "beta2.0"),
        ({"encoder_share": [-1.0]}, "encoder_share.0"),
        ({"attention_size": [64]}, "attention_size cannot be 64"),
        ({"max_flops": "u_net"}, "max_flops is 'u_net'"),
        ({"max_parameters": 0}, "max_parameters"),
        ({"learning_rate": [1e-2, 1e-3]}, "give the lower first"),
        ({"widths": [8]}, "widths"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SpaceSettings(**settings)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("release", "settings"),
    [
        (GRAD_CAM, {"reading": "none", "encoder": "none", "fusion": ["concatenate", "film"]}),
        (PREDICTIONS, {"reading": ["flatten"]}),
        (PREDICTIONS, {"prediction": "none"}),
        (GRAD_CAM, {"blocks": 0, "upsampling": "nearest"}),
        (GRAD_CAM, {"fusion": "cross_attention", "smallest": 32}),
    ],
)
def test_values_that_exclude_each_other_leave_an_empty_space(release: ReleaseShape, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="The space is empty"):
        space(release, **settings)
