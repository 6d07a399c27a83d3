"""Where the attacker's own images come from, when not from the target's world: a shift between the two distributions.

The attacker of the paper (Sec. 3) has images like the target's. A real one may have other people, other labels, another
camera; what explanations still give away then is a question of its own.
"""

from dataclasses import replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from xinv.data.records import Record, Source
from xinv.data.sources import SourceSettings, open_source
from xinv.errors import InputError

NO_LABEL = -1
"""Label of an attacker's image that shows none of the things that the target tells apart."""


class AttackerSettings(BaseModel):
    """What the attacker's images are, where they differ from the target's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: SourceSettings | None = Field(
        None, description="another source for the attacker's images; null: the same as everybody's"
    )
    labels: tuple[str, ...] | None = Field(
        None, min_length=1, description="names of the only labels that the attacker has images of; null: all"
    )

    @model_validator(mode="after")
    def _says_something(self) -> "AttackerSettings":
        if self.source is None and self.labels is None:
            raise ValueError("expected a source or labels that set the attacker's images apart; or leave it out (null)")
        return self


def open_images(source: SourceSettings, attacker: AttackerSettings | None) -> tuple[Source, frozenset[int], int]:
    """All images of an audit as one source, the positions that the attacker may draw from, and how many images are
    everybody's: those come first, the images of the attacker's own source after them.

    Keys and identities from the attacker's source get the prefix "attacker-", so that they never meet the others';
    their labels go by name, and a name that the target's labels do not hold becomes `NO_LABEL`.
    InputError as `open_source`, and for labels that do not exist.
    """
    own = open_source(source)
    shared = len(own.records)
    if attacker is None:
        return own, frozenset(range(shared)), shared
    if attacker.source is None:
        return own, _labelled(own, attacker.labels, 0), shared
    theirs = open_source(attacker.source)
    return _joined(own, theirs), _labelled(theirs, attacker.labels, shared), shared


def _labelled(source: Source, labels: tuple[str, ...] | None, offset: int) -> frozenset[int]:
    if labels is None:
        return frozenset(range(offset, offset + len(source.records)))
    unknown = [name for name in labels if name not in source.label_names]
    if unknown:
        raise InputError(
            f"data.attacker.labels names {unknown[0]!r}; the labels there are {', '.join(source.label_names)}."
        )
    wanted = {source.label_names.index(name) for name in labels}
    return frozenset(offset + place for place, record in enumerate(source.records) if record.label in wanted)


def _joined(own: Source, theirs: Source) -> Source:
    shared = len(own.records)
    number = {name: place for place, name in enumerate(own.label_names)}
    answer = [number.get(name, NO_LABEL) for name in theirs.label_names]

    def renamed(record: Record) -> Record:
        key = f"attacker-{record.key}"
        identity = key if record.identity == record.key else f"attacker-{record.identity}"
        return replace(record, key=key, identity=identity, label=answer[record.label])

    def read(position: int) -> np.ndarray:
        return own.read(position) if position < shared else theirs.read(position - shared)

    def name(position: int) -> str:
        return own.where(position) if position < shared else theirs.where(position - shared)

    return Source(
        records=(*own.records, *map(renamed, theirs.records)),
        label_names=own.label_names,
        fingerprint=f"{own.fingerprint}+{theirs.fingerprint}",
        synthetic=own.synthetic or theirs.synthetic,
        read=read,
        name=name,
    )
