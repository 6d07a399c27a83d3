"""Drawn faces with known identity, expression, pose and light: for tests, for scale, for questions with known answers.

They show nobody, and what is measured on them says nothing about photographs: `synthetic` is true for the source, in
the index of its shards, and in every score and report made from them.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from xinv.data.head import EXPRESSIONS, PERSON_NUMBERS, SCENE_NUMBERS, Person, Scene
from xinv.data.portrait import draw
from xinv.data.records import Record, Source, fingerprint

DRAWING = 1  # raised whenever the same settings begin to give other pictures


class SyntheticFacesSettings(BaseModel):
    """Drawn faces: how many people, how many pictures of each, how large, how varied."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["synthetic_faces"] = Field(description="drawn faces of known people, expressions, poses and lights")
    identities: int = Field(ge=2, le=1_000_000, description="people")
    images_per_identity: int = Field(ge=1, le=10_000, description="pictures of each")
    size: int = Field(128, ge=16, le=1024, description="side of the pictures in pixels")
    pose: float = Field(
        1.0, ge=0, le=1, description="how far heads turn, nod, lean: 0 never, 1 up to 30, 10, 8 degrees"
    )
    light: float = Field(1.0, ge=0, le=1, description="how far direction, brightness and colour of the light vary")
    seed: int = Field(0, ge=0, description="behind every person and picture; the audit's own seed plays no part")


def open_synthetic_faces(settings: SyntheticFacesSettings) -> Source:
    """People 0, 1, 2..., each in `images_per_identity` pictures (RGB) drawn when they are read, the same at every time.

    The label is the expression (neutral, smiling, surprised, as even as can be for each person). The identity is
    `face-` and the person's number. Attributes: yaw, pitch and roll in degrees (positive: to the picture's right, down,
    clockwise), light (-1 from the left to 1 from the right), brightness (0.8 to 1), and of the person hair, glasses
    and beard. Person i is the same whatever numbers and sizes are asked for. The fingerprint is over the settings and
    the version of the drawing.
    """
    count, each = settings.identities, settings.images_per_identity
    person_IK = np.random.default_rng([settings.seed, 0]).random((count, PERSON_NUMBERS))
    scene_NK = np.random.default_rng([settings.seed, 1]).random((count * each, SCENE_NUMBERS))
    first_I = np.random.default_rng([settings.seed, 2]).integers(0, len(EXPRESSIONS), count)
    label_N = ((np.arange(count * each) % each) + np.repeat(first_I, each)) % len(EXPRESSIONS)

    @lru_cache(maxsize=1024)
    def person(identity: int) -> Person:
        return Person.of(person_IK[identity])

    def scene(position: int) -> Scene:
        expression = EXPRESSIONS[label_N[position]]
        return Scene.of(scene_NK[position], expression, settings.pose, settings.light)

    def record(position: int) -> Record:
        identity, number = divmod(position, each)
        who, how = person(identity), scene(position)
        return Record(
            key=f"{identity:06d}-{number:04d}",
            label=int(label_N[position]),
            identity=f"face-{identity:06d}",
            attributes={
                "yaw": round(how.yaw, 2),
                "pitch": round(how.pitch, 2),
                "roll": round(how.roll, 2),
                "light": round(how.light, 3),
                "brightness": round(how.brightness, 3),
                "hair": who.hair_style,
                "glasses": int(who.glasses),
                "beard": int(who.beard > 0),
            },
        )

    return Source(
        records=tuple(record(position) for position in range(count * each)),
        label_names=EXPRESSIONS,
        fingerprint=fingerprint([f"drawing {DRAWING}".encode(), settings.model_dump_json().encode()]),
        synthetic=True,
        read=lambda position: draw(person(position // each), scene(position), settings.size),
    )
