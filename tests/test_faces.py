import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from xinv.data.faces import SyntheticFacesSettings, open_synthetic_faces
from xinv.data.head import EXPRESSIONS


def opened(**more):
    settings = {"identities": 6, "images_per_identity": 7, "size": 48, **more}
    return open_synthetic_faces(SyntheticFacesSettings(kind="synthetic_faces", **settings))


def similarity(one, other):
    return float(np.corrcoef(one.ravel().astype(float), other.ravel().astype(float))[0, 1])


def test_every_person_shows_every_expression():
    source = opened()
    assert source.synthetic and source.label_names == EXPRESSIONS and len(source.records) == 42
    assert len({record.key for record in source.records}) == 42
    people = {record.identity for record in source.records}
    assert len(people) == 6
    for person in people:
        counts = Counter(record.label for record in source.records if record.identity == person)
        assert sorted(counts.values()) == [2, 2, 3]


def test_a_picture_is_the_same_at_every_reading_and_in_every_process():
    source = opened()
    assert (source.read(5) == source.read(5)).all() and (source.read(5) == opened().read(5)).all()
    code = (
        "import hashlib; from xinv.data.faces import *\n"
        "s = open_synthetic_faces(SyntheticFacesSettings(kind='synthetic_faces', identities=6, images_per_identity=7, "
        "size=48))\nprint(hashlib.sha256(s.read(5).tobytes()).hexdigest())"
    )
    import hashlib

    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    assert out.strip() == hashlib.sha256(source.read(5).tobytes()).hexdigest()


def test_settings_are_in_the_fingerprint_and_the_seed_changes_the_people():
    prints = {opened(**more).fingerprint for more in ({}, {"seed": 1}, {"pose": 0.5}, {"size": 64})}
    assert len(prints) == 4
    assert (opened(seed=1).read(0) != opened().read(0)).mean() > 0.3


def test_a_person_is_the_same_however_many_others_there_are():
    few, many = opened(identities=2), opened(identities=9)
    assert (few.read(8) == many.read(8)).all() and few.records[8] == many.records[8]


@pytest.mark.parametrize("size", [16, 33, 256, 1024])
def test_every_size_shows_the_same_picture(size):
    from PIL import Image

    large, small = opened(size=size).read(3), opened(size=16).read(3)
    assert large.shape == (size, size, 3) and large.dtype == np.uint8
    reduced = np.asarray(Image.fromarray(large).resize((16, 16), Image.Resampling.BOX))
    assert similarity(reduced, small) > 0.97


def test_pictures_of_one_person_are_more_alike_than_pictures_of_two():
    source = opened(identities=12, images_per_identity=3, pose=0, light=0)
    centre = [source.read(i)[12:42, 12:36] for i in range(36)]  # hair, eyes, skin; the backdrop tells nothing
    same = [similarity(centre[3 * i], centre[3 * i + 1]) for i in range(12)]
    other = [similarity(centre[3 * i], centre[3 * ((i + 1) % 12) + 1]) for i in range(12)]
    assert np.mean(same) > np.mean(other) + 0.1


def test_light_comes_from_where_the_attribute_says():
    source = opened(identities=40, images_per_identity=3, pose=0)
    brightness, light = [], [record.attributes["light"] for record in source.records]
    for position in range(120):
        face = source.read(position)[20:40, 10:38].mean(axis=(0, 2))
        brightness.append((face[14:].mean() - face[:14].mean()) / face.mean())
    assert np.corrcoef(light, brightness)[0, 1] > 0.8


def test_pose_and_light_can_be_switched_off():
    records = opened(pose=0, light=0).records
    names = ("yaw", "pitch", "roll", "light")
    assert {record.attributes[name] for record in records for name in names} == {0.0}
    turned = [record.attributes["yaw"] for record in opened(identities=30).records]
    assert min(turned) < -25 and max(turned) > 25


def test_a_turned_face_is_found_where_the_attribute_says():
    from xinv.data.head import PERSON_NUMBERS, SCENE_NUMBERS, Head, Person, Scene

    person = Person.of(np.full(PERSON_NUMBERS, 0.5))
    tips = []
    for share in (0.0, 0.5, 1.0):
        numbers = np.full(SCENE_NUMBERS, 0.5)
        numbers[1] = share
        head = Head(person, Scene.of(numbers, "neutral", pose=1, light=1))
        tips.append(head.face(np.array([[0.0, 0.2]]), 0.2)[0, 0] - head.solid(np.array([[0.0, 0.2, 0.0]]))[0, 0])
    assert tips[0] < -0.2 and abs(tips[1]) < 1e-9 and tips[2] > 0.2  # the nose against the head's axis
