import dataclasses

import numpy as np
import pytest

from xinv.data.head import EXPRESSIONS, HAIR_STYLES, PERSON_NUMBERS, SCENE_NUMBERS, Person, Scene
from xinv.data.portrait import draw

MIDDLE = np.full(SCENE_NUMBERS, 0.5)


def scene(expression: str = "neutral") -> Scene:
    return Scene.of(MIDDLE, expression, pose=1, light=1)


def changed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rows that differ visibly."""
    return (np.abs(one.astype(int) - other.astype(int)).max(axis=(1, 2)) > 25).nonzero()[0]


def test_expressions_move_mouth_and_eyes_and_nothing_else():
    person = dataclasses.replace(Person.of(np.full(PERSON_NUMBERS, 0.5)), hair_style="bald", glasses=False)
    faces = {expression: draw(person, scene(expression), 96) for expression in EXPRESSIONS}
    for expression in ("smiling", "surprised"):
        rows = changed(faces["neutral"], faces[expression])
        assert len(rows) > 8 and rows.min() > 20 and rows.max() < 86  # neither crown nor shoulders
        assert len(set(rows) & set(range(60, 80))) > 5  # the mouth


@pytest.mark.parametrize("style", HAIR_STYLES)
def test_hair_has_its_colour_above_the_forehead(style):
    middle, blue = Person.of(np.full(PERSON_NUMBERS, 0.5)), np.array([0, 0, 250.0])
    person = dataclasses.replace(middle, hair_style=style, hair=blue)
    crown = draw(person, scene(), 96)[14:22, 40:56].mean(axis=(0, 1))
    assert (crown[2] > 2 * crown[0]) == (style != "bald")


def test_glasses_and_beard_are_drawn_where_a_person_has_them():
    plain = dataclasses.replace(Person.of(np.full(PERSON_NUMBERS, 0.5)), hair_style="bald", glasses=False, beard=0.0)
    face = draw(plain, scene(), 96)
    glasses = draw(dataclasses.replace(plain, glasses=True), scene(), 96)
    beard = draw(dataclasses.replace(plain, beard=1.0), scene(), 96)
    assert set(changed(face, glasses)) <= set(range(30, 62)) and len(changed(face, glasses)) > 8
    assert set(changed(face, beard)) <= set(range(48, 96)) and len(changed(face, beard)) > 15


def test_random_people_and_scenes_can_all_be_drawn():
    generator = np.random.default_rng(0)
    for _ in range(40):
        person = Person.of(generator.random(PERSON_NUMBERS))
        picture = draw(person, Scene.of(generator.random(SCENE_NUMBERS), "smiling", 1, 1), 32)
        assert picture.shape == (32, 32, 3) and picture.std() > 8
