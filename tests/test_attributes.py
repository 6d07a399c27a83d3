"""Attributes from the shards to an evaluator that reads them: which are chosen, how they are read, learned, scored."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COUNTS, LABELS, write_set

from xinv.data.attributes import UNSEEN, Attribute, choose, first_guesses, gallery_records, positions
from xinv.data.faces import SyntheticFacesSettings, open_synthetic_faces
from xinv.data.head import HAIR_STYLES
from xinv.data.index import Index
from xinv.data.loader import Batch, Reader
from xinv.data.records import Record
from xinv.data.shards import read_shard
from xinv.errors import InputError
from xinv.leak.attributes import attributes_of, guessed, recovered
from xinv.nets.classifier import ClassifierSettings
from xinv.train.batches import split, to_device
from xinv.train.loop import TrainJob, train
from xinv.train.objectives import OBJECTIVES
from xinv.train.settings import TrainingSettings
from xinv.train.weights import ClassifierSpec, load_classifier

ROW = Attribute(name="row", values=(0, 1), counts=(12, 11))
SIDE = Attribute(name="side", values=("left", "right"), counts=(11, 12))
HUE = Attribute(name="hue", values=("blue", "green", "red"), counts=(3, 9, 9))


def copied(images: Path, folder: Path, attributes: Any) -> Path:
    """The image set with `attributes(number, facts)` as the attributes of its image `number`."""
    index = Index.load(images)
    samples: dict[str, list[dict[str, Any]]] = {}
    for partition, entries in index.partitions.items():
        samples[partition] = [
            sample for number in range(len(entries)) for sample in read_shard(images, index, partition, number)
        ]
        for sample in samples[partition]:
            sample["json"]["attributes"] = attributes(int(sample["__key__"]), sample["json"])
    write_set(folder, "images", samples, LABELS)
    return folder


def quarter(number: int, facts: dict[str, Any]) -> dict[str, Any]:
    """Where the bright quarter is; a value of the first victim that no other image has; and what is no attribute."""
    victims = sum(COUNTS[name] for name in ("target", "target_validation", "attack", "attack_validation"))
    hue = "violet" if number == victims else ("red", "green", "blue")[number % 3]
    side = ("left", "right")[facts["label"] % 2]
    return {"row": facts["label"] // 2 == 1, "side": side, "hue": hue, "size": 1.5, "kind": LABELS[facts["label"]]}


@pytest.fixture(scope="module")
def images(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tiny_images, tmp_path_factory.mktemp("attributes") / "images", quarter)


def records(**columns: list[Any]) -> list[Record]:
    """Images of labels 0, 1, 0, 1... with these attributes."""
    count = len(next(iter(columns.values())))
    rows = [{name: values[i] for name, values in columns.items() if values[i] is not None} for i in range(count)]
    return [Record(f"image{i}", i % 2, "", row) for i, row in enumerate(rows)]


# ---- which attributes ----------------------------------------------------------------------------------------------


def test_all_binary_attributes_are_read_and_of_the_others_the_reason_is_kept() -> None:
    known = records(
        glasses=[0, 0, 1, 0],
        sign=[-1, 1, 1, 1],
        smiling=["no", "yes", "no", "yes"],
        same=[1, 1, 1, 1],
        hair=["long", "bun", "bald", "bun"],
        yaw=[0.5, 1.0, 2.0, 3.0],
        partly=[0, None, 1, None],
        **{"a:b": [0, 0, 1, 1]},
    )
    found, left_out = choose(known, None, "evaluators.x.attributes", "images")
    assert found == (
        Attribute(name="glasses", values=(0, 1), counts=(3, 1)),
        Attribute(name="sign", values=(-1, 1), counts=(1, 3)),
    )
    assert [one.commonest for one in found] == [0, 1]
    assert left_out == {
        "smiling": "it is the label, which the target predicts",
        "same": "all images have the value 1",
        "hair": "it has 3 values, and without being named only those with two are read",
        "yaw": "0.5 is neither a whole number nor a word",
        "partly": "2 of 4 images lack it, image1 first",
        "a:b": "its name holds a colon, which names of scores are cut at",
    }


def test_named_attributes_come_in_the_order_of_their_names_and_may_have_several_values() -> None:
    known = records(beard=[True, False, False, False], hair=["long", "bun", "bald", "bun"], tens=[10, 9, 9, 10])
    found, left_out = choose(known, ["tens", "hair", "beard"], "x", "images")
    assert [(one.name, one.values, one.counts) for one in found] == [
        ("tens", (9, 10), (2, 2)),
        ("hair", ("bald", "bun", "long"), (1, 2, 1)),
        ("beard", (0, 1), (3, 1)),
    ]
    assert left_out == {} and found[0].commonest == 0  # of equals the first


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("glases", [0, 1] * 6, "have no attribute 'glases'; the nearest are glasses. Their attributes are glasses"),
        ("glasses", [1] * 12, "glasses of images is no attribute to be read: all images have the value 1"),
        ("glasses", [0.0, 1.0] * 6, "0.0 is neither a whole number nor a word"),
        ("glasses", list(range(12)), "it has 12 values, more than 10"),
        ("glasses", [0, 1] * 6, "it is the label, which the target predicts"),
        ("glasses", [0, 0, 1, None] * 3, "3 of 12 images lack it, image3 first"),
    ],
)
def test_a_named_attribute_that_cannot_be_read_is_refused(name: str, values: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^evaluators.x.attributes: .*{message}"):
        choose(records(glasses=values), [name], "evaluators.x.attributes", "images")


def test_images_without_attributes_are_said_to_have_none() -> None:
    with pytest.raises(InputError, match=r"images have no attributes\. Let the evaluator predict label or identity"):
        choose([Record("a", 0, "a", {})], None, "x", "images")
    with pytest.raises(InputError, match=r"no attribute of two values \(yaw: 0.5 is neither.*Name those to be read"):
        choose(records(yaw=[0.5, 1.5]), None, "x", "images")


def test_the_gallery_decides_over_values(images: Path) -> None:
    found, left_out = choose(gallery_records(images), ["hue", "row"], "x", "the gallery")
    assert len(gallery_records(images)) == COUNTS["gallery"] + COUNTS["gallery_validation"]
    assert found[0].values == ("blue", "green", "red") and sum(found[0].counts) == 23  # no violet: a victim's
    assert found[1].values == (0, 1) and left_out == {}


def test_drawn_faces_have_two_binary_attributes_and_hair() -> None:
    source = open_synthetic_faces(
        SyntheticFacesSettings(kind="synthetic_faces", identities=60, images_per_identity=1, size=16)
    )
    found, left_out = choose(source.records, None, "x", "faces")
    assert [one.name for one in found] == ["glasses", "beard"] and all(one.values == (0, 1) for one in found)
    assert left_out.keys() == {"yaw", "pitch", "roll", "light", "brightness", "hair"}
    (hair,), _ = choose(source.records, ["hair"], "x", "faces")
    assert set(hair.values) == set(HAIR_STYLES)


# ---- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_bytes", [1 << 30, 3000])
def test_a_reader_delivers_the_attributes_asked_for(images: Path, memory_bytes: int) -> None:
    reader = Reader(images, "attack", attributes=(SIDE, HUE), memory_bytes=memory_bytes)
    for batch in reader.epoch(0, 7):
        assert batch.attribute_BA is not None and batch.attribute_BA.dtype == torch.int64
        hue = [(2, 1, 0)[int(key) % 3] for key in batch.key]
        assert batch.attribute_BA.tolist() == [
            [label % 2, h] for label, h in zip(batch.label_B.tolist(), hue, strict=True)
        ]
    assert all(batch.attribute_BA is None for batch in Reader(images, "attack").once(7))


def test_an_image_without_the_attribute_is_named(tiny_images: Path) -> None:
    with pytest.raises(InputError, match=r"000000.tar: image \d{8} has no attribute 'row'; it has number"):
        next(Reader(tiny_images, "attack", attributes=(ROW,)).once(3))


def test_a_value_that_the_gallery_does_not_show_has_no_position(images: Path) -> None:
    (batch,) = Reader(images, "victim", attributes=(HUE,), purpose="score").once(11)
    assert batch.attribute_BA is not None and (batch.attribute_BA == UNSEEN).sum() == 1
    assert positions((HUE, ROW), {"hue": 1.5, "row": True}, "here") == [UNSEEN, 1]


def test_attributes_go_where_their_images_go(images: Path) -> None:
    (batch,) = Reader(images, "attack", attributes=(ROW, HUE)).once(23)
    assert batch.attribute_BA is not None
    pieces = split(batch, 4)
    for place, piece in enumerate(pieces):
        assert torch.equal(piece.attribute_BA, batch.attribute_BA[place::4])
    moved = to_device(batch, torch.device("meta"))
    assert moved.attribute_BA is not None and moved.attribute_BA.device.type == "meta"


# ---- learning ------------------------------------------------------------------------------------------------------


def spec(*attributes: Attribute) -> ClassifierSpec:
    classes = sum(len(attribute.values) for attribute in attributes)
    return ClassifierSpec(
        settings=ClassifierSettings(network="cnn", width=4),
        channels=1,
        size=16,
        classes=classes,
        attributes=attributes,
        left_out={"yaw": "decimal"},
    )


def answered(*rows: list[int]) -> Batch:
    count = len(rows)
    return Batch(
        key=[""] * count,
        identity=[""] * count,
        image_BCHW=torch.zeros(count, 1, 16, 16),
        label_B=torch.zeros(count, dtype=torch.int64),
        prediction_BK=None,
        maps={},
        weight_B=torch.ones(count),
        samples=count,
        cursor=count,
        attribute_BA=torch.tensor(rows),
    )


def test_the_loss_is_the_sum_over_attributes_of_their_cross_entropies() -> None:
    objective = OBJECTIVES["classify_attributes"](spec(ROW, HUE).build())
    log = torch.tensor([1.0, 3.0, 2.0, 1.0, 1.0]).log()  # row: 1/4, 3/4; hue: 2/4, 1/4, 1/4
    logit_BV = torch.stack([log, log])
    batch = answered([1, 0], [0, 2])
    expected = torch.tensor([3 / 4 * 2 / 4, 1 / 4 * 1 / 4]).log().neg()
    torch.testing.assert_close(objective.loss_B(logit_BV, batch), expected)
    assert objective.metrics_B(logit_BV, batch)["accuracy"].tolist() == [1.0, 0.0]
    assert objective.metrics_B(logit_BV, answered([1, 1], [0, 0]))["accuracy"].tolist() == [0.5, 0.5]


def test_an_evaluator_learns_to_read_attributes(images: Path, tmp_path: Path) -> None:
    job = TrainJob(
        folder=tmp_path / "reader",
        objective="classify_attributes",
        network=spec(ROW, SIDE),
        images=images,
        partition="gallery",
        settings=TrainingSettings(epochs=20, batch_size=5, precision="fp32", learning_rate=1e-2),
        seed=0,
    )
    assert train(job).validation["accuracy"] == 1.0  # guessing would get about a half
    network = load_classifier(job.folder)
    (batch,) = Reader(images, "victim", attributes=(ROW, SIDE), purpose="score").once(11)
    assert torch.equal(first_guesses(network(batch.image_BCHW), network.groups), batch.attribute_BA)
    assert attributes_of(job.folder) == ((ROW, SIDE), {"yaw": "decimal"})


# ---- scoring -------------------------------------------------------------------------------------------------------


def test_recovered_and_guessed_by_hand() -> None:
    logit_BV = torch.tensor([[0.0, 1.0, 5.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 5.0]])  # row 1, hue 0; row 0, hue 2
    found = recovered(logit_BV, torch.tensor([[1, 1], [0, 2]]), (ROW, HUE))
    assert {name: value_B.tolist() for name, value_B in found.items()} == {
        "attributes_recovered": [0.5, 1.0],
        "attribute:row": [1.0, 1.0],
        "attribute:hue": [0.0, 1.0],
    }
    blind = guessed(torch.tensor([[0, 1], [1, 2], [0, UNSEEN]]), (ROW, HUE))  # row 0, hue 1 are the commonest
    assert blind["attribute:row"].tolist() == [1, 0, 1] and blind["attribute:hue"].tolist() == [1, 0, 0]
    assert blind["attributes_recovered"].tolist() == [1, 0, 0.5]
