"""Several evaluators: whose figures are whose, whether they agree, and whom they find in a gallery."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xinv.data.attributes import Attribute
from xinv.data.loader import Batch
from xinv.errors import InputError
from xinv.files import write_json
from xinv.leak.evaluators import Panel, Sitting


class Pixels(nn.Module):
    """An evaluator whose logits and embedding are the first pixels from `start` on, `classes` of them."""

    def __init__(self, start: int, classes: int) -> None:
        super().__init__()
        self.start, self.head = start, nn.Linear(1, classes)

    def embed(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW.flatten(1)[:, self.start : self.start + self.head.out_features]

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.embed(image_BCHW)


def folder(
    tmp_path: Path,
    name: str,
    start: int,
    classes: int = 2,
    identities: tuple[str, ...] = (),
    attributes: tuple[Attribute, ...] = (),
) -> Path:
    path = tmp_path / name
    path.mkdir()
    spec = {"start": start, "classes": classes, "identities": list(identities)}
    read = [attribute.model_dump(mode="json") for attribute in attributes]
    write_json(path / "network.json", {**spec, "attributes": read, "left_out": {"yaw": "decimal"} if read else {}})
    return path


def load(path: Path) -> Pixels:
    from xinv.files import read_json

    spec = read_json(path / "network.json")
    return Pixels(spec["start"], spec["classes"]).eval()


def panel(labels: int = 2, **folders: Path) -> Panel:
    return Panel(folders, load, torch.device("cpu"), labels, 1e-3)  # type: ignore[arg-type]


def batch(pixels: list[list[float]], label: list[int], identity: list[str]) -> Batch:
    image_BCHW = torch.tensor(pixels).reshape(len(pixels), 1, 2, 2)
    return Batch(
        key=[str(number) for number in range(len(pixels))],
        identity=identity,
        image_BCHW=image_BCHW,
        label_B=torch.tensor(label),
        prediction_BK=None,
        maps={},
        weight_B=torch.ones(len(pixels)),
        samples=len(pixels),
        cursor=0,
    )


def test_each_evaluator_has_its_own_figures_and_agreement_is_counted(tmp_path: Path) -> None:
    sitting = Sitting(panel(first=folder(tmp_path, "a", 0), cnn=folder(tmp_path, "b", 2)))
    # The first evaluator sees pixels 0 and 1, the other one 2 and 3; the label is 0 for all.
    found = batch([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1], [0, 1, 1, 0]], [0] * 4, list("abcd"))
    one = sitting.add(found.image_BCHW[:3], found.image_BCHW[:3], batch([[0] * 4] * 3, [0] * 3, list("abc")))
    two = sitting.add(found.image_BCHW[3:], found.image_BCHW[3:], batch([[0] * 4], [0], ["d"]))
    assert set(one) == {
        f"{name}{end}" for name in ("embedding_similarity", "attack_accuracy_top1") for end in ("", ":cnn")
    }
    assert one["attack_accuracy_top1"].tolist() + two["attack_accuracy_top1"].tolist() == [1, 1, 0, 0]
    assert one["attack_accuracy_top1:cnn"].tolist() + two["attack_accuracy_top1:cnn"].tolist() == [1, 0, 0, 1]
    assert sitting.agreement["all_right"].tolist() == [1, 0, 0, 0]
    assert sitting.agreement["same_guess"].tolist() == [1, 0, 1, 0]
    assert sitting.finish() == ({}, {})


def test_a_single_evaluator_agrees_with_nobody(tmp_path: Path) -> None:
    sitting = Sitting(panel(only=folder(tmp_path, "a", 0)))
    found = batch([[1, 0, 0, 0]], [0], ["a"])
    assert set(sitting.add(found.image_BCHW, found.image_BCHW, found)) == {
        "embedding_similarity",
        "attack_accuracy_top1",
    }
    assert sitting.agreement == {}


def test_an_evaluator_of_people_is_asked_for_people_and_not_compared_with_one_of_labels(tmp_path: Path) -> None:
    people = folder(tmp_path, "people", 0, 3, ("ann", "bea", "cid"))
    sitting = Sitting(panel(label=folder(tmp_path, "label", 0), person=people))
    found = batch([[0, 1, 0, 0], [0, 0, 1, 0]], [1, 0], ["bea", "ann"])
    scores = sitting.add(found.image_BCHW, found.image_BCHW, found)
    assert scores["attack_accuracy_top1"].tolist() == [1, 1]
    assert scores["attack_accuracy_top1:person"].tolist() == [1, 0]
    assert sitting.agreement.keys() == {"all_right"}
    assert sitting.panel.describe()[1] == {"name": "person", "suffix": ":person", "predicts": "identity", "classes": 3}
    with pytest.raises(InputError, match="the victim 'dan' is not among them"):
        sitting.add(found.image_BCHW[:1], found.image_BCHW[:1], batch([[0] * 4], [0], ["dan"]))


def test_people_are_found_in_the_gallery(tmp_path: Path) -> None:
    judges = panel(first=folder(tmp_path, "a", 0), cnn=folder(tmp_path, "b", 2))
    # ann: first evaluator along pixel 0, the other along pixel 2; bea: 1 and 3; cid: between them for both.
    judges.enrol([batch([[1, 0, 1, 0], [0, 1, 0, 1]], [0, 0], ["ann", "bea"]), batch([[1, 1, 1, 1]], [0], ["cid"])])
    sitting = Sitting(judges)
    found = batch([[1, 0, 0, 1], [1, 1, 1, 0.9]], [0, 0], ["ann", "cid"])
    sitting.add(found.image_BCHW, found.image_BCHW, found)
    scores, facts = sitting.finish()
    assert scores["reidentification_rank1"].tolist() == [1, 1]
    assert scores["reidentification_rank1:cnn"].tolist() == [0, 1]
    assert set(scores) == {"reidentification_rank1", "reidentification_rank1:cnn"}  # 5 of 3 people; four pairs: no TAR
    assert facts["identities"] == 3 and facts["gallery_images"] == 3 and facts["impostor_pairs"] == 4
    assert facts["false_accept_rate"] is None and facts["false_accept_rate_wanted"] == 1e-3


def test_ranks_and_rates_appear_where_the_gallery_resolves_them(tmp_path: Path) -> None:
    judges = panel(only=folder(tmp_path, "a", 0))
    random = np.random.default_rng(0)
    names = [f"person {number:02d}" for number in range(41)]
    pixels = random.random((41, 4)).tolist()
    judges.enrol([batch(pixels, [0] * 41, names)])
    sitting = Sitting(judges)
    found = batch(pixels, [0] * 41, names)
    sitting.add(found.image_BCHW, found.image_BCHW, found)
    scores, facts = sitting.finish()
    assert list(scores) == [*(f"reidentification_rank{k}" for k in (1, 5, 20)), "verification_tar"]
    assert scores["reidentification_rank1"].mean() == 1.0 and facts["false_accept_rate"] == 10 / (41 * 40)


@pytest.mark.parametrize("name", ["", "a:b", "a/b"])
def test_names_that_would_break_the_scores_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be called"):
        panel(**{name: folder(tmp_path, "a", 0)})


def test_an_evaluator_of_other_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tells 3 classes apart, and the images have 2 labels"):
        panel(wrong=folder(tmp_path, "a", 0, classes=3))


def test_an_evaluator_of_attributes_has_no_attack_accuracy_and_no_part_in_agreement(tmp_path: Path) -> None:
    beard = Attribute(name="beard", values=(0, 1), counts=(9, 1))
    glasses = Attribute(name="glasses", values=("no", "yes"), counts=(2, 8))
    folders = {
        "label": folder(tmp_path, "label", 0),
        "first": folder(tmp_path, "first", 0, 4, attributes=(beard, glasses)),
        "cnn": folder(tmp_path, "cnn", 0),
        "second": folder(tmp_path, "second", 2, attributes=(glasses,)),
    }
    sitting = Sitting(panel(**folders))
    assert sitting.panel.attributes == (beard, glasses, glasses)
    pixels = [[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]]  # beard 0, 0; glasses yes, no
    found = replace(batch(pixels, [0, 1], ["a", "b"]), attribute_BA=torch.tensor([[0, 1, 1], [1, 1, 1]]))
    scores = sitting.add(found.image_BCHW, found.image_BCHW, found)
    pixel_names = ("embedding_similarity", "attack_accuracy_top1")
    assert {name: value_B.tolist() for name, value_B in scores.items() if not name.startswith(pixel_names)} == {
        "attributes_recovered:first": [1.0, 0.0],
        "attribute:beard:first": [1.0, 0.0],
        "attribute:glasses:first": [1.0, 0.0],
        "attributes_recovered:second": [1.0, 0.0],
        "attribute:glasses:second": [1.0, 0.0],
    }
    assert {name for name in scores if name.startswith("attack")} == {
        "attack_accuracy_top1",
        "attack_accuracy_top1:cnn",
    }
    assert {"embedding_similarity:first", "embedding_similarity:second"} <= set(scores)
    assert sitting.agreement["all_right"].tolist() == [1, 0] and sitting.agreement["same_guess"].tolist() == [1, 1]
    blind = sitting.panel.guessed(found)
    assert blind["attributes_recovered:first"].tolist() == [1.0, 0.5]
    assert blind["attribute:glasses:second"].tolist() == [1.0, 1.0]
    told = sitting.panel.describe()[1]
    assert told["predicts"] == "attributes" and "classes" not in told and told["left_out"] == {"yaw": "decimal"}
    assert told["attributes"][1] == {"name": "glasses", "values": ["no", "yes"], "counts": [2, 8]}


def test_an_evaluator_whose_logits_are_not_those_of_its_attributes_is_refused(tmp_path: Path) -> None:
    beard = Attribute(name="beard", values=(0, 1), counts=(9, 1))
    with pytest.raises(InputError, match="tells 3 classes apart"):
        panel(labels=3, wrong=folder(tmp_path, "a", 0, 3, attributes=(beard,)))
