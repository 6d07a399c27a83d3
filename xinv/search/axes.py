"""Axes of the space of inverters, and which of their values go together.

The rules of `InverterDesign` and `build_inverter`, said so that a walk along the axes can ask before it chooses:
wherever it goes, what it ends at can be built.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from xinv.nets.design import MAX_ATTENTION

Value = bool | int | float | str | None
Chosen = Mapping[str, Value]


@dataclass(frozen=True)
class Axis:
    """One choice. `applies`: whether it means anything beside what was chosen before it."""

    name: str
    applies: Callable[[Chosen], bool] = lambda chosen: True


def _attends(chosen: Chosen) -> bool:
    return chosen["attention_size"] is not None or chosen["fusion"] == "cross_attention"


STRUCTURE = (
    Axis("prediction"),
    Axis("reading"),
    Axis("encoder"),
    Axis("fusion"),
    Axis("tokens", lambda chosen: chosen["fusion"] == "cross_attention"),
    Axis("blocks"),
    Axis("upsampling"),
    Axis("bottleneck"),
    Axis("attention_size"),
    Axis("smallest"),
)
"""Axes whose values exclude values of one another, in the order of the walk."""

DETAILS = (
    Axis("grid", lambda chosen: chosen["reading"] in ("pooled", "patches") or chosen["fusion"] == "cross_attention"),
    Axis("token_width", lambda chosen: chosen["reading"] == "patches" or chosen["fusion"] == "cross_attention"),
    Axis("fusion_size", lambda chosen: chosen["fusion"] == "cross_attention"),
    Axis("condition", lambda chosen: chosen["fusion"] == "film"),
    Axis("encoder_depth", lambda chosen: chosen["encoder"] != "none"),
    Axis("encoder_share", lambda chosen: chosen["encoder"] != "none"),
    Axis("hidden", lambda chosen: chosen["encoder"] != "none"),
    Axis("skip_size", lambda chosen: chosen["encoder"] == "unet"),
    Axis("width"),
    Axis("width_limit"),
    Axis("full_size_blocks", lambda chosen: chosen["blocks"] != 0),
    Axis("residual", lambda chosen: chosen["blocks"] != 0 or chosen["encoder"] != "none"),
    Axis("normalisation"),
    Axis("activation"),
    Axis("head"),
)
"""Axes that go with everything: the network can be built whatever they are."""

TRAINING = (
    Axis("learning_rate"),
    Axis("batch_size"),
    Axis("weight_decay"),
    Axis("beta2"),
    Axis("warmup"),
)
LOSS = (Axis("l1"), Axis("ssim"), Axis("gradient"), Axis("frequency"))
AXES = (*STRUCTURE, *DETAILS, *TRAINING, *LOSS)


def fits(chosen: Chosen, maps: bool) -> bool:
    """Whether nothing chosen so far excludes anything else chosen so far. `maps`: the release has explanations.

    An axis that is not chosen yet excludes nothing.
    """
    return all(rule(chosen, maps) for rule in _RULES)


def _is(chosen: Chosen, **values: Value) -> bool:
    """Whether all of these were chosen so."""
    return all(name in chosen and chosen[name] == value for name, value in values.items())


def _has_maps_to_read(chosen: Chosen, maps: bool) -> bool:
    reads = any(chosen.get(axis, "none") != "none" for axis in ("reading", "encoder")) or _is(
        chosen, fusion="cross_attention"
    )
    return maps or not reads


def _reads_maps(chosen: Chosen, maps: bool) -> bool:
    if not maps or not {"reading", "encoder", "fusion"} <= chosen.keys():
        return True
    return not _is(chosen, reading="none", encoder="none") or _is(chosen, fusion="cross_attention")


def _starts_from_something(chosen: Chosen, maps: bool) -> bool:
    return not _is(chosen, prediction="none", reading="none", encoder="none")


def _film_has_a_prediction(chosen: Chosen, maps: bool) -> bool:
    return not _is(chosen, prediction="none", fusion="film")


def _tokens_have_an_encoder(chosen: Chosen, maps: bool) -> bool:
    return not _is(chosen, tokens="encoder", encoder="none")


def _without_blocks(chosen: Chosen, maps: bool) -> bool:
    """Up-sampling layers alone: they must learn, and nothing else may need a block."""
    if not _is(chosen, blocks=0):
        return True
    return (
        chosen.get("upsampling", "transposed") == "transposed"
        and chosen.get("encoder") != "unet"
        and chosen.get("fusion", "concatenate") == "concatenate"
        and chosen.get("attention_size") is None
    )


def _something_to_repeat(chosen: Chosen, maps: bool) -> bool:
    return not _is(chosen, upsampling="nearest", bottleneck=0)


def _coarsest_level_may_attend(chosen: Chosen, maps: bool) -> bool:
    if not {"smallest", "attention_size", "fusion"} <= chosen.keys() or not _attends(chosen):
        return True
    smallest = chosen["smallest"]
    assert isinstance(smallest, int)
    return smallest <= MAX_ATTENTION // 2


_RULES = (
    _has_maps_to_read,
    _reads_maps,
    _starts_from_something,
    _film_has_a_prediction,
    _tokens_have_an_encoder,
    _without_blocks,
    _something_to_repeat,
    _coarsest_level_may_attend,
)


class Walk:
    """Which values an axis may take after the choices before it, so that the walk can be finished.

    Args:
        choices: values of each axis of STRUCTURE.
        maps: whether the release has explanations.
    """

    def __init__(self, choices: Mapping[str, tuple[Value, ...]], maps: bool) -> None:
        self._choices, self._maps = choices, maps
        self._finishes = functools.lru_cache(maxsize=None)(self._search)

    def allowed(self, chosen: Chosen) -> tuple[Value, ...]:
        """Values of the next axis of STRUCTURE (of as many as `chosen` holds); empty: none, for the first the space."""
        before = tuple(chosen.items())
        name = STRUCTURE[len(before)].name
        return tuple(value for value in self._values(chosen) if self._finishes((*before, (name, value))))

    def _values(self, chosen: Chosen) -> tuple[Value, ...]:
        axis = STRUCTURE[len(chosen)]
        return self._choices[axis.name] if axis.applies(chosen) else (None,)

    def _search(self, items: tuple[tuple[str, Value], ...]) -> bool:
        chosen = dict(items)
        if not fits(chosen, self._maps):
            return False
        if len(items) == len(STRUCTURE):
            return True
        name = STRUCTURE[len(items)].name
        return any(self._finishes((*items, (name, value))) for value in self._values(chosen))
