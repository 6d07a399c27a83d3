"""Attributes recovered: what an evaluator reads in a reconstruction that the target never predicts.

A target that tells smiling faces from others says nothing of glasses, sex or hair; what was reconstructed from its
explanations may show them.

Axes: B images, A attributes, V values of all attributes together.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from xinv.data.attributes import Attribute, first_guesses
from xinv.files import read_json


def recovered(logit_BV: Tensor, truth_BA: Tensor, attributes: Sequence[Attribute]) -> dict[str, Tensor]:
    """Whether the evaluator's first guess of each attribute is the original's value, as float64 tensors of shape (B,).

    - attributes_recovered: the share of the attributes, in [0, 1].
    - attribute:NAME: 1.0 where that one is right, else 0.0. Never right where truth_BA is `UNSEEN`.
    """
    return _right(first_guesses(logit_BV, [len(attribute.values) for attribute in attributes]), truth_BA, attributes)


def guessed(truth_BA: Tensor, attributes: Sequence[Attribute]) -> dict[str, Tensor]:
    """The same figures for the blind guess, the commonest value of the gallery: what anybody gets right without any
    release, and so the chance that `recovered` is to be held against.
    """
    commonest_A = torch.tensor([attribute.commonest for attribute in attributes], device=truth_BA.device)
    return _right(commonest_A.expand_as(truth_BA), truth_BA, attributes)


def _right(guess_BA: Tensor, truth_BA: Tensor, attributes: Sequence[Attribute]) -> dict[str, Tensor]:
    right_BA = (guess_BA == truth_BA).double()  # thirds in fp32 would leave differences of 1e-9 where there are none
    single = {f"attribute:{attribute.name}": right_BA[:, place] for place, attribute in enumerate(attributes)}
    return {"attributes_recovered": right_BA.mean(1), **single}


def attributes_of(folder: Path) -> tuple[tuple[Attribute, ...], dict[str, str]]:
    """What the evaluator in a stage folder reads, by its network.json, and what it was not asked to read, with reasons;
    both empty for one that predicts labels or identities.
    """
    spec = read_json(folder / "network.json")
    return tuple(Attribute.model_validate(one) for one in spec.get("attributes", ())), spec.get("left_out", {})
