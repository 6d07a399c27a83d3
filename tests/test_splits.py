import itertools

import numpy as np
import pytest
from pydantic import ValidationError

from xinv.data.sources import Record
from xinv.data.splits import PARTITIONS, SplitSettings, check_disjoint, split
from xinv.errors import InputError


def digits(count: int = 600, labels: int = 10) -> list[Record]:
    return [Record(f"{i:08d}", i * labels // count, f"{i:08d}", {}) for i in range(count)]


def faces(sizes: list[int]) -> list[Record]:
    """One person for each entry of `sizes`, with that many images; labels alternate."""
    people = [f"person{person}" for person, size in enumerate(sizes) for _ in range(size)]
    return [Record(f"{i:08d}", i % 2, person, {}) for i, person in enumerate(people)]


def identities(records: list[Record], parts: dict[str, list[int]], *names: str) -> set[str]:
    return {records[i].identity for name in names for i in parts[name]}


def test_image_mode_gives_exact_numbers_once_each():
    parts = split(digits(), SplitSettings(target=100, attack=200, victim=50, gallery=150, validation=0.1), seed=3)
    assert tuple(parts) == PARTITIONS
    assert {name: len(found) for name, found in parts.items()} == {
        "target": 90,
        "target_validation": 10,
        "attack": 180,
        "attack_validation": 20,
        "victim": 50,
        "gallery": 135,
        "gallery_validation": 15,
    }
    every = list(itertools.chain(*parts.values()))
    assert len(every) == len(set(every)) == 500


def test_image_mode_balances_labels_even_in_small_partitions():
    records = digits()
    for seed in range(5):
        parts = split(records, SplitSettings(target=100, attack=200, victim=50, gallery=150), seed=seed)
        for found in parts.values():
            counts = np.bincount([records[i].label for i in found], minlength=10)
            assert np.abs(counts - len(found) / 10).max() <= 2


def test_same_seed_same_split_other_seed_another():
    settings = SplitSettings(target=100, attack=200, victim=50, gallery=150)
    assert split(digits(), settings, seed=1) == split(digits(), settings, seed=1)
    assert split(digits(), settings, seed=1) != split(digits(), settings, seed=2)


def test_too_few_images_shows_the_arithmetic():
    settings = SplitSettings(target=300, attack=200, victim=50, gallery=150)
    with pytest.raises(InputError, match=r"300 target .* \+ 150 gallery = 700 .* has 600.* by 100"):
        split(digits(600), settings, seed=0)


def test_smallest_partitions_keep_a_sample_on_both_sides():
    parts = split(digits(), SplitSettings(target=2, attack=2, victim=1, gallery=2, validation=0.01), seed=0)
    assert [len(parts[name]) for name in PARTITIONS] == [1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("wrong", [{"validation": 0}, {"validation": 0.9}, {"target": 1}, {"disjoint": "person"}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ValidationError):
        SplitSettings(**{"target": 9, "attack": 9, "victim": 9, "gallery": 9, **wrong})


def test_identity_mode_keeps_people_apart():
    records = faces([1 + i % 7 for i in range(200)])
    settings = SplitSettings(target=150, attack=200, victim=40, gallery=60, disjoint="identity")
    for seed in range(5):
        parts = split(records, settings, seed)
        assert [len(parts[name]) for name in PARTITIONS] == [135, 15, 180, 20, 40, 54, 6]
        every = list(itertools.chain(*parts.values()))
        assert len(every) == len(set(every))
        groups = [
            identities(records, parts, "target", "target_validation"),
            identities(records, parts, "attack"),
            identities(records, parts, "attack_validation"),
            identities(records, parts, "victim"),
        ]
        for one, other in itertools.combinations(groups, 2):
            assert not one & other
        # The evaluator must have seen every victim, and nobody else.
        assert identities(records, parts, "gallery") == groups[3]
        assert identities(records, parts, "gallery_validation") <= groups[3]


def test_identity_mode_with_few_victims_takes_people_with_many_images():
    records = faces([2] * 100 + [30] * 8)
    parts = split(records, SplitSettings(target=20, attack=20, victim=4, gallery=80, disjoint="identity"), seed=0)
    assert len(identities(records, parts, "victim")) <= 4
    assert len(parts["gallery"]) + len(parts["gallery_validation"]) == 80


def test_identity_mode_falls_back_to_the_fewest_people():
    # No three people have 8 images each, yet 20 + 2 + 2 images are enough.
    records = faces([20, 2, 2] + [1] * 30)
    parts = split(records, SplitSettings(target=5, attack=5, victim=3, gallery=21, disjoint="identity"), seed=0)
    assert identities(records, parts, "victim") == {"person0", "person1", "person2"}


def test_so_many_people_with_so_many_images_each():
    records = faces([50, 30, 9, 8, 7] + [3] * 60)
    sizes = {"target": 20, "attack": 40, "victim": 10, "gallery": 20, "disjoint": "identity"}
    parts = split(records, SplitSettings(**sizes, people=4, most_images=10), seed=0)
    shown = [records[i].identity for name in ("victim", "gallery", "gallery_validation") for i in parts[name]]
    assert set(shown) == {"person0", "person1", "person2", "person3"}
    assert max(shown.count(person) for person in set(shown)) <= 10 and len(shown) == 30
    with pytest.raises(InputError, match=r"30 images of 4 people .* have 20; .* or change \.people"):
        split(records, SplitSettings(**sizes, people=4, most_images=5), seed=0)
    for wrong in ({"people": 4}, {"most_images": 5}):
        with pytest.raises(ValidationError, match="they need disjoint: identity"):
            SplitSettings(**{**sizes, "disjoint": "image", **wrong})


def test_identity_mode_says_when_victims_lack_images():
    with pytest.raises(InputError, match=r"victim and gallery need 10 \+ 20 = 30 images .* have 0"):
        split(faces([1] * 100), SplitSettings(target=5, attack=5, victim=10, gallery=20, disjoint="identity"), 0)


def test_identity_mode_says_when_people_run_out():
    records = faces([4] * 20)
    settings = SplitSettings(target=10, attack=60, victim=10, gallery=10, disjoint="identity")
    with pytest.raises(InputError, match=r"attack needs 54 .*80 images of 20 people.*data\.split\.attack"):
        split(records, settings, seed=0)


def test_check_disjoint_names_the_key_and_both_partitions():
    keys = {"target": ["a", "b"], "victim": ["c", "a"]}
    with pytest.raises(InputError, match="'a' is in target and in victim"):
        check_disjoint(keys, {}, "image")
    with pytest.raises(InputError, match="'b' is in attack twice"):
        check_disjoint({"attack": ["b", "b"]}, {}, "image")
    check_disjoint({"target": ["a"], "victim": ["b"]}, {"target": ["anna"], "victim": ["anna"]}, "image")


@pytest.mark.parametrize(
    ("one", "other", "allowed"),
    [
        ("target", "attack", False),
        ("attack", "attack_validation", False),
        ("attack_validation", "gallery", False),
        ("target_validation", "victim", False),
        ("target", "target_validation", True),
        ("victim", "gallery", True),
        ("gallery_validation", "victim", True),
    ],
)
def test_check_disjoint_by_identity(one, other, allowed):
    keys = {one: ["1", "2"], other: ["3", "4"]}
    people = {one: ["anna", "anna"], other: ["ben", "anna"]}
    if allowed:
        check_disjoint(keys, people, "identity")
    else:
        with pytest.raises(InputError, match=f"'anna' is in {one} and in {other}"):
            check_disjoint(keys, people, "identity")


# --- the attacker's images -------------------------------------------------------------------------------------------

OTHERS = ("target", "target_validation", "victim", "gallery", "gallery_validation")


def test_how_many_and_which_images_the_attacker_has_changes_nobody_elses():
    records, sizes = digits(600), {"target": 100, "victim": 50, "gallery": 150}
    plain = split(records, SplitSettings(**sizes, attack=200), seed=3)
    fewer = split(records, SplitSettings(**sizes, attack=60), seed=3)
    small_labels = [i for i, record in enumerate(records) if record.label < 5]
    shifted = split(records, SplitSettings(**sizes, attack=120), seed=3, attackable=small_labels)
    for name in OTHERS:
        assert plain[name] == fewer[name] == shifted[name]
    assert {records[i].label for name in ("attack", "attack_validation") for i in shifted[name]} == set(range(5))
    with pytest.raises(InputError, match=r"200 attack images, and 1\d\d that data\.attacker allows are left"):
        split(records, SplitSettings(**sizes, attack=200), seed=3, attackable=small_labels)


def test_an_attacker_with_a_source_of_its_own_draws_from_that_alone():
    shared, theirs = digits(300), [Record(f"attacker-{i}", -1, f"attacker-{i}", {}) for i in range(80)]
    settings = SplitSettings(target=100, attack=80, victim=50, gallery=150)
    parts = split([*shared, *theirs], settings, 0, range(300, 380), 300)
    assert sorted(parts["attack"] + parts["attack_validation"]) == list(range(300, 380))
    assert max(i for name in OTHERS for i in parts[name]) < 300
    with pytest.raises(InputError, match=r"100 target .* 150 gallery = 300 images, and the source has 290"):
        split([*shared[:290], *theirs], settings, 0, range(290, 370), 290)


def test_identity_mode_keeps_a_shifted_attacker_apart_too():
    records = faces([1 + i % 7 for i in range(200)])
    settings = SplitSettings(target=150, attack=80, victim=40, gallery=60, disjoint="identity")
    plain = split(records, settings, 1)
    shifted = split(records, settings, 1, [i for i, record in enumerate(records) if record.label == 1])
    for name in OTHERS:
        assert plain[name] == shifted[name]
    assert {records[i].label for name in ("attack", "attack_validation") for i in shifted[name]} == {1}
    others = identities(records, shifted, *OTHERS)
    assert not others & identities(records, shifted, "attack", "attack_validation")
    assert not identities(records, shifted, "attack") & identities(records, shifted, "attack_validation")
    theirs = [Record(f"attacker-{i}", i % 2, f"attacker-{i // 3}", {}) for i in range(120)]
    parts = split([*records, *theirs], settings, 1, range(len(records), len(records) + 120), len(records))
    for name in OTHERS:
        assert parts[name] == plain[name]
    assert min(parts["attack"] + parts["attack_validation"]) >= len(records)
