"""Attributes of images: what else is known of what they show (glasses, sex, hair), beside label and identity.

An attribute has a few values, 2 to 10 whole numbers or words; one logit a value, one group of logits an attribute.

Axes: B images, A attributes, V values of all attributes together.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from xinv.data.index import Index
from xinv.data.records import Record
from xinv.data.shards import read_shard
from xinv.errors import InputError

MAX_VALUES = 10
UNSEEN = -1
"""The position of a value that the gallery does not show: no evaluator was ever taught it."""


class Attribute(BaseModel):
    """One attribute as an evaluator reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    values: tuple[int | str, ...] = Field(
        min_length=2, max_length=MAX_VALUES, description="in the order of the logits; true and false are 1 and 0"
    )
    counts: tuple[int, ...] = Field(description="images of the gallery with each value")

    @property
    def commonest(self) -> int:
        """Position of the value that most images of the gallery have (of equals the first): the best blind guess."""
        return self.counts.index(max(self.counts))


def gallery_records(folder: Path) -> list[Record]:
    """What is known of the images that evaluators learn from, the validation part included."""
    index = Index.load(folder)
    return [
        Record(sample["__key__"], facts["label"], facts["identity"], facts.get("attributes", {}))
        for partition in ("gallery", "gallery_validation")
        for number in range(len(index.entries(partition)))
        for sample in read_shard(folder, index, partition, number, fields=("json",))
        for facts in [sample["json"]]
    ]


def choose(
    records: Sequence[Record], names: Sequence[str] | None, asked_by: str, where: str
) -> tuple[tuple[Attribute, ...], dict[str, str]]:
    """The attributes that an evaluator is to read in images of which `records` are known.

    Args:
        names: the attributes asked for; None: every binary one, but for the one that the labels come from.
        asked_by: the setting that asks, and `where`: what the records are of; both for messages.

    Returns:
        The attributes, in the order of `names` or of the images; and of those that None leaves out, name -> reason.

    Raises:
        InputError: no attributes at all, an unknown name, a named attribute that cannot be read or that is the label.
    """
    known = list(dict.fromkeys(name for record in records for name in record.attributes))
    if not known:
        raise InputError(
            f"{asked_by}: {where} have no attributes. Let the evaluator predict label or identity, or take a source "
            "whose images have attributes (docs/data.md)."
        )
    unknown = [name for name in names or () if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=3)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise InputError(
            f"{asked_by}: {where} have no attribute {unknown[0]!r}{hint}. Their attributes are {', '.join(known)}."
        )
    found: list[Attribute] = []
    left_out: dict[str, str] = {}
    for name in known if names is None else names:
        examined = _examined(name, records)
        if names is None and isinstance(examined, Attribute) and len(examined.values) > 2:
            examined = f"it has {len(examined.values)} values, and without being named only those with two are read"
        if isinstance(examined, Attribute):
            found.append(examined)
        elif names is not None:
            raise InputError(f"{asked_by}: {name} of {where} is no attribute to be read: {examined}. Leave it out.")
        else:
            left_out[name] = examined
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise InputError(f"{asked_by}: {where} have no attribute of two values ({reasons}). Name those to be read.")
    return tuple(found), left_out


def _examined(name: str, records: Sequence[Record]) -> Attribute | str:
    """The attribute `name`, or why it cannot be one."""
    if ":" in name:
        return "its name holds a colon, which names of scores are cut at"
    lacking = [record.key for record in records if name not in record.attributes]
    if lacking:
        return f"{len(lacking)} of {len(records)} images lack it, {lacking[0]} first"
    raw = [record.attributes[name] for record in records]
    odd = next((value for value in raw if not isinstance(value, int | str)), None)
    if odd is not None:
        return f"{odd!r} is neither a whole number nor a word"
    counts = Counter(_plain(value) for value in raw)
    if len(counts) > MAX_VALUES:
        return f"it has {len(counts)} values, more than {MAX_VALUES}"
    if len(counts) == 1:
        return f"all images have the value {next(iter(counts))!r}"
    pairs = {(record.label, _plain(value)) for record, value in zip(records, raw, strict=True)}
    if len(pairs) == len(counts) == len({label for label, _ in pairs}):
        return "it is the label, which the target predicts"
    values = tuple(sorted(counts, key=lambda value: (isinstance(value, str), value)))
    return Attribute(name=name, values=values, counts=tuple(counts[value] for value in values))


def _plain(value: int | str | float) -> int | str:
    return value if isinstance(value, str) else int(value)  # true is 1


def positions(attributes: Sequence[Attribute], values: Mapping[str, Any], where: str) -> list[int]:
    """For each attribute the position of an image's value in `Attribute.values`; UNSEEN for one that is not there.

    InputError, with `where` the image is, for an attribute that it lacks.
    """
    found = []
    for attribute in attributes:
        if attribute.name not in values:
            raise InputError(
                f"{where} has no attribute {attribute.name!r}; it has {', '.join(values) or 'none'}. "
                "Make the image set again, or ask for other attributes."
            )
        value = values[attribute.name]
        place = {known: position for position, known in enumerate(attribute.values)}
        found.append(place.get(_plain(value), UNSEEN) if isinstance(value, int | str) else UNSEEN)
    return found


def first_guesses(logit_BV: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The position of the largest logit of each group, int64 (B, A); `sizes` are the groups' numbers of values."""
    return torch.stack([group_BV.argmax(1) for group_BV in logit_BV.split(list(sizes), dim=1)], dim=1)
