"""Who may see which image: the partitions, how they are drawn, and the check that they do not overlap.

`target` trains the target; `attack` trains inverters and surrogates; `attack_validation` is all that early stopping and
search may look at; `victim` is scored once; `gallery` trains the evaluator. Each *_validation part is carved out of its
partition's number.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from xinv.errors import InputError

if TYPE_CHECKING:
    from xinv.data.sources import Record

PARTITIONS = ("target", "target_validation", "attack", "attack_validation", "victim", "gallery", "gallery_validation")
ATTACKERS = ("attack", "attack_validation")
OTHERS = tuple(name for name in PARTITIONS if name not in ATTACKERS)

# In identity mode no person may be in two of these groups. The gallery shows the victims: the evaluator must know them.
IDENTITY_GROUPS: dict[str, str] = {
    "target": "target",
    "target_validation": "target",
    "attack": "attack",
    "attack_validation": "attack_validation",
    "victim": "victim",
    "gallery": "victim",
    "gallery_validation": "victim",
}


class SplitSettings(BaseModel):
    """How many images each party gets, and what may not be shared between them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: int = Field(ge=2, description="images that train the target, its validation part included")
    attack: int = Field(ge=2, description="images that train the attacker's networks, its validation part included")
    victim: int = Field(ge=1, description="images that are attacked and scored")
    gallery: int = Field(ge=2, description="images that train the evaluator, its validation part included")
    validation: float = Field(0.1, gt=0, le=0.5, description="share of target, attack and gallery kept for validation")
    disjoint: Literal["image", "identity"] = Field(
        "image", description="what target, attack and victim never share: an image, or a person ('identity')"
    )

    people: int | None = Field(
        None,
        ge=2,
        description="victims are so many people, those with the most images; null: any people whose images suffice "
        "(with disjoint: identity)",
    )
    most_images: int | None = Field(
        None,
        ge=2,
        description="images of one victim that victim and gallery use together at most, so that nobody outweighs the "
        "others; null: any number (with disjoint: identity)",
    )

    @model_validator(mode="after")
    def _people_need_identities(self) -> "SplitSettings":
        if self.disjoint != "identity" and (self.people or self.most_images):
            raise ValueError("people and most_images choose victims by person; they need disjoint: identity")
        return self

    def validation_part(self, partition: Literal["target", "attack", "gallery"]) -> int:
        """Images of `partition` that are kept for validation: at least one, never all."""
        count: int = getattr(self, partition)
        return min(count - 1, max(1, round(self.validation * count)))


def split(
    records: Sequence["Record"],
    settings: SplitSettings,
    seed: int,
    attackable: Collection[int] | None = None,
    shared: int | None = None,
) -> dict[str, list[int]]:
    """Positions in `records` of every partition's images, in no particular order; the same for the same arguments.

    Image mode: every partition has the labels in the proportions of `records`, to within an image or two a label.
    Identity mode: target, attack, attack_validation and victim show different people; the gallery other images of the
    victims.
    The attacker draws last, so nobody else's images depend on how many or which ones the attacker has.
    Images beyond the numbers asked for are left out. InputError, with the arithmetic, when there are too few.

    Args:
        attackable: positions that the attacker may draw from; null: all.
        shared: the first so many records are everybody's, the rest the attacker's alone; null: all are everybody's.
    """
    generator = np.random.default_rng([seed, 0])
    shared = len(records) if shared is None else shared
    attackable = range(len(records)) if attackable is None else attackable
    divide = _split_identities if settings.disjoint == "identity" else _split_images
    parts = divide(records, settings, generator, attackable, shared)
    names = {name: [records[i].key for i in parts[name]] for name in PARTITIONS}
    people = {name: [records[i].identity for i in parts[name]] for name in PARTITIONS}
    check_disjoint(names, people, settings.disjoint)
    return parts


def check_disjoint(keys: Mapping[str, Sequence[str]], identities: Mapping[str, Sequence[str]], mode: str) -> None:
    """Refuse partitions that share an image (a key), or in mode "identity" a person that `IDENTITY_GROUPS` keeps apart.

    Both maps: partition -> one entry an image. InputError names the key or identity and both partitions.
    """
    home: dict[str, str] = {}
    for partition, found in keys.items():
        for key in found:
            if home.get(key) == partition:
                raise InputError(f"image {key!r} is in {partition} twice; an image belongs to one place.")
            if key in home:
                raise InputError(f"image {key!r} is in {home[key]} and in {partition}; an image belongs to one place.")
            home[key] = partition
    if mode != "identity":
        return
    people: dict[str, str] = {}
    for partition, found in identities.items():
        for identity in set(found):
            other = people.setdefault(identity, partition)
            if _group(other) != _group(partition):
                raise InputError(
                    f"identity {identity!r} is in {other} and in {partition}, which must show different people; "
                    "make the set again, or set data.split.disjoint to image."
                )


def _group(partition: str) -> str:
    return IDENTITY_GROUPS.get(partition, partition)


def _interleave(members: Iterable[int], label_of: Sequence[object], generator: np.random.Generator) -> list[int]:
    """`members` in a random order of which any stretch has the labels very nearly in their overall proportions.

    Each label's images are shuffled and spread evenly over [0, 1) from a random start; sorting by place mixes them.
    """
    by_label: dict[object, list[int]] = {}
    for member in members:
        by_label.setdefault(label_of[member], []).append(member)
    places: list[tuple[float, int]] = []
    for group in by_label.values():
        start = generator.random()
        places += [
            ((step + start) / len(group), int(member)) for step, member in enumerate(generator.permutation(group))
        ]
    return [member for _, member in sorted(places)]


def _split_images(
    records: Sequence["Record"],
    settings: SplitSettings,
    generator: np.random.Generator,
    attackable: Collection[int],
    shared: int,
) -> dict[str, list[int]]:
    theirs = len(records) - shared
    asked = settings.target + settings.victim + settings.gallery + (0 if theirs else settings.attack)
    if asked > shared:
        attack = "" if theirs else f"{settings.attack} attack + "
        raise InputError(
            f"the split asks for {settings.target} target + {attack}{settings.victim} victim + {settings.gallery} "
            f"gallery = {asked} images, and the source has {shared}; lower data.split by {asked - shared}."
        )
    counts, labels = _counts(settings), [record.label for record in records]
    order = _interleave(range(shared), labels, generator)
    parts: dict[str, list[int]] = {}
    start = 0
    for name in OTHERS:
        parts[name] = order[start : start + counts[name]]
        start += counts[name]
    left = _interleave(range(shared, len(records)), labels, generator) if theirs else order[start:]
    allowed = set(attackable)
    left = [position for position in left if position in allowed]
    if len(left) < settings.attack:
        raise InputError(
            f"the split asks for {settings.attack} attack images, and {len(left)} that data.attacker allows are left; "
            f"lower data.split.attack by {settings.attack - len(left)}."
        )
    for name in ATTACKERS:
        parts[name], left = left[: counts[name]], left[counts[name] :]
    return {name: parts[name] for name in PARTITIONS}


def _counts(settings: SplitSettings) -> dict[str, int]:
    """Images of each partition."""
    counts = {}
    for name in PARTITIONS:
        parent = name.removesuffix("_validation")
        part = settings.validation_part(parent) if parent != "victim" else 0  # type: ignore[arg-type]
        counts[name] = part if name != parent else getattr(settings, name) - part
    return counts


def _split_identities(
    records: Sequence["Record"],
    settings: SplitSettings,
    generator: np.random.Generator,
    attackable: Collection[int],
    shared: int,
) -> dict[str, list[int]]:
    counts = _counts(settings)
    labels = [record.label for record in records]
    people = _by_identity(records, range(shared))
    free = _shuffled(people, generator)
    usable = {name: images[: settings.most_images] for name, images in people.items()}
    victims = _choose_victims(free, usable, counts, settings.people)
    parts = _share_victims(victims, usable, counts, generator)
    free = [name for name in free if name not in set(victims)]
    for name in ("target", *ATTACKERS):
        if name == "attack":
            # Whom target and victims do not show, and of them the images that the attacker may have.
            allowed = set(attackable)
            own = shared < len(records)
            people = _by_identity(records, [i for i in range(len(records)) if i in allowed])
            free = _shuffled(people, generator) if own else [name for name in free if name in people]
        needed = settings.target if name == "target" else counts[name]
        found: list[int] = []
        while len(found) < needed:
            if not free:
                raise InputError(
                    f"identity-disjoint partitions ran out of people: {name} needs {needed} images of people that no "
                    f"other partition shows, and {len(found)} are left ({len(records)} images of {len(people)} people, "
                    f"{len(victims)} of them victims); lower data.split.{name.removesuffix('_validation')}."
                )
            found += people[free.pop(0)]
        found = _interleave(found, labels, generator)[:needed]
        if name == "target":
            parts["target_validation"] = found[counts["target"] :]
            found = found[: counts["target"]]
        parts[name] = found
    return {name: parts[name] for name in PARTITIONS}


def _by_identity(records: Sequence["Record"], positions: Iterable[int]) -> dict[str, list[int]]:
    people: dict[str, list[int]] = {}
    for position in positions:
        people.setdefault(records[position].identity, []).append(position)
    return people


def _shuffled(people: Iterable[str], generator: np.random.Generator) -> list[str]:
    names = sorted(people)
    return [names[i] for i in generator.permutation(len(names))]


def _choose_victims(
    free: Sequence[str], people: dict[str, list[int]], counts: dict[str, int], number: int | None
) -> list[str]:
    """People with images enough for victim and gallery. Each is in both, so no more people than the smaller holds."""
    gallery = counts["gallery"] + counts["gallery_validation"]
    needed = counts["victim"] + gallery
    most = min(counts["victim"], counts["gallery"], *([number] if number else []))
    threshold = max(2, -(-needed // most))
    # People with at least needed / most images each: any of them will do, in random order. If they do not suffice,
    # those with the most images first, which is the fewest people that can.
    several = [name for name in free if len(people[name]) >= 2]
    richest = sorted(several, key=lambda name: -len(people[name]))
    enough = [name for name in several if len(people[name]) >= threshold]
    for order in (richest,) if number else (enough, richest):
        chosen: list[str] = []
        images = 0
        for name in order:
            if len(chosen) == most or (images >= needed and not number):
                break
            chosen.append(name)
            images += len(people[name])
        if images >= needed and len(chosen) >= (number or 0):
            return chosen
    raise InputError(
        f"victim and gallery need {counts['victim']} + {gallery} = {needed} images of "
        f"{f'{number} people' if number else f'at most {most} people'} (each is in both), and those with the most "
        f"images have {images}; lower data.split.victim or .gallery{', or change .people' if number else ''}."
    )


def _share_victims(
    victims: Sequence[str], people: dict[str, list[int]], counts: dict[str, int], generator: np.random.Generator
) -> dict[str, list[int]]:
    """The victims' images over victim, gallery, gallery_validation: each person in the first two, the rest evenly."""
    parts: dict[str, list[int]] = {"victim": [], "gallery": [], "gallery_validation": []}
    rest: list[int] = []
    owner: dict[int, str] = {}
    for name in victims:
        images = [int(i) for i in generator.permutation(people[name])]
        parts["victim"].append(images[0])
        parts["gallery"].append(images[1])
        rest += images[2:]
        owner.update(dict.fromkeys(images, name))
    size = max(rest, default=-1) + 1
    order = _interleave(rest, [owner.get(i) for i in range(size)], generator)
    for name, found in parts.items():
        missing = counts[name] - len(found)
        found += order[:missing]
        order = order[missing:]
    return parts
