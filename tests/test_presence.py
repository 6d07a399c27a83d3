"""Explanation dropout: what is shown follows from seed, epoch and image alone; one network does with any subset."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xinv.data.loader import Batch, Reader
from xinv.leak.attack import ORIGINALS, Attack, ScoreSettings, with_controls
from xinv.leak.score import Scorer
from xinv.leak.subsets import proper_subsets
from xinv.leak.table import Tables, by_attack, save_samples
from xinv.nets.classifier import ClassifierSettings
from xinv.nets.inverter import preset
from xinv.train.batches import split, to_device
from xinv.train.loop import TrainJob, train
from xinv.train.objectives import OBJECTIVES
from xinv.train.presence import WithholdingReader, present
from xinv.train.settings import TrainingSettings
from xinv.train.weights import (
    WEIGHTS,
    ClassifierSpec,
    InverterSpec,
    load_classifier,
    load_inverter,
    save_spec,
    save_weights,
)

METHODS = ("gradient", "grad_cam")
SETTINGS = ScoreSettings(resamples=100, batch_size=4, pictures=3)


def reader(images: Path, releases: Path, partition: str = "attack", seed: int = 3) -> WithholdingReader:
    return WithholdingReader(images, partition, releases, METHODS, dropout=0.4, seed=seed)


def masks(batches: Iterator[Batch]) -> dict[str, tuple[float, ...]]:
    """What each image is shown."""
    found = {}
    for batch in batches:
        assert batch.present_BG is not None
        found |= {key: tuple(row) for key, row in zip(batch.key, batch.present_BG.tolist(), strict=True)}
    return found


def test_each_explanation_is_withheld_with_its_probability_and_independently() -> None:
    keys = [f"{number:08d}" for number in range(20_000)]
    shown_BG = present(keys, 3, 0.3, seed=7, epoch=2).numpy()
    assert set(np.unique(shown_BG)) == {0.0, 1.0}
    assert np.abs(shown_BG.mean(axis=0) - 0.7).max() < 0.015  # five standard errors
    assert np.abs(np.corrcoef(shown_BG.T) - np.eye(3)).max() < 0.035
    assert abs((shown_BG.sum(axis=1) == 0).mean() - 0.3**3) < 0.006  # all of them may be withheld
    for other in (present(keys, 3, 0.3, seed=8, epoch=2), present(keys, 3, 0.3, 7, 3), present(keys, 3, 0.3, 7, None)):
        assert abs(np.corrcoef(shown_BG.ravel(), other.numpy().ravel())[0, 1]) < 0.025


def test_masks_do_not_depend_on_ranks_batches_or_where_a_run_resumes(tiny_images: Path, tiny_releases: Path) -> None:
    data = reader(tiny_images, tiny_releases)
    whole = masks(data.epoch(1, 7))
    assert len(whole) == data.samples and len(set(whole.values())) == 4
    shared = {key: mask for rank in range(3) for key, mask in masks(data.epoch(1, 9, 0, rank, 3)).items()}
    assert shared == whole
    resumed = {key: mask for rank in range(2) for key, mask in masks(data.epoch(1, 7, 14, rank, 2)).items()}
    assert len(resumed) == data.samples - 14 and resumed.items() <= whole.items()
    assert masks(data.epoch(2, 7)) != whole != masks(reader(tiny_images, tiny_releases, seed=4).epoch(1, 7))
    fixed = masks(data.once(5))
    assert fixed == {**masks(data.once(8, 0, 2)), **masks(data.once(8, 1, 2))} != whole


def test_the_order_and_the_maps_are_those_of_a_plain_reader(tiny_images: Path, tiny_releases: Path) -> None:
    plain = Reader(tiny_images, "attack", tiny_releases, METHODS, seed=3)
    for ours, theirs in zip(reader(tiny_images, tiny_releases).epoch(0, 7), plain.epoch(0, 7), strict=True):
        assert ours.key == theirs.key and theirs.present_BG is None
        assert all(torch.equal(ours.maps[name], theirs.maps[name]) for name in METHODS)


def test_micro_batches_carry_the_masks_of_their_images(tiny_images: Path, tiny_releases: Path) -> None:
    batch = next(reader(tiny_images, tiny_releases).epoch(0, 7))
    expected = masks(iter([batch]))
    pieces = split(batch, 3)
    assert masks(iter(pieces)) == expected
    assert to_device(batch, torch.device("meta")).present_BG.device.type == "meta"
    inputs = OBJECTIVES["invert"](torch.nn.Identity()).inputs(pieces[0])
    assert inputs[2] is pieces[0].present_BG
    plain = next(Reader(tiny_images, "attack", tiny_releases, METHODS).epoch(0, 7))
    assert len(OBJECTIVES["invert"](torch.nn.Identity()).inputs(plain)) == 2


@pytest.fixture(scope="module")
def trained(tiny_images: Path, tiny_releases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an inverter of two explanations, trained with dropout, in micro-batches."""
    folder = tmp_path_factory.mktemp("dropout") / "inverter"
    spec = InverterSpec(
        design=preset("flatten_unet", width=4, bottleneck=32),
        channels=1,
        size=16,
        classes=4,
        methods=METHODS,
        maps=((1, 16, 16), (1, 4, 4)),
        explanation_dropout=0.5,
    )
    settings: dict[str, Any] = {"epochs": 40, "batch_size": 8, "micro_batch": 3, "precision": "fp32"}
    job = TrainJob(
        folder=folder,
        objective="invert",
        network=spec,
        images=tiny_images,
        releases=tiny_releases,
        partition="attack",
        settings=TrainingSettings(**settings, learning_rate=3e-3),
        seed=3,
    )
    train(job)
    return folder


def test_one_inverter_is_scored_on_every_subset(
    trained: Path, tiny_images: Path, tiny_releases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = tmp_path / "evaluator"
    evaluator.mkdir()
    judge = ClassifierSpec(settings=ClassifierSettings(network="cnn", width=4), channels=1, size=16, classes=4)
    save_spec(evaluator, judge)
    save_weights(evaluator / WEIGHTS, judge.build().state_dict())
    whole = Attack(id="unet:both", kind="attack", inverter="unet", folder=trained, methods=METHODS, group=METHODS)
    wanted = with_controls([whole, *proper_subsets(whole)], ["mean_image", "other_image"])
    assert [one.id for one in wanted] == [
        "unet:both",
        "unet:gradient:withheld:grad_cam",
        "unet:grad_cam:withheld:gradient",
        "unet:withheld:gradient+grad_cam",
        "mean_image",
        "other_image:unet:both",
    ]
    scorer = Scorer(tiny_images, tiny_releases, evaluator, SETTINGS, 0, load_classifier, load_inverter)
    asked: list[tuple[str, ...]] = []
    open_reader = scorer._reader

    def noted(methods: tuple[str, ...], lessons: Path | None = None) -> Any:
        asked.append(tuple(methods))
        return open_reader(methods, lessons)

    monkeypatch.setattr(scorer, "_reader", noted)
    tasks = [Attack(id=ORIGINALS, kind="originals", methods=METHODS), *wanted]
    results = by_attack(tasks, [scorer(task) for task in tasks])
    assert asked == [METHODS, METHODS, ("gradient",), ("grad_cam",), (), (), METHODS], "withheld maps are not read"
    network = load_inverter(trained)
    for attack in wanted[:4]:
        expected = []
        for batch in Reader(tiny_images, "victim", tiny_releases, METHODS, purpose="score").once(5):
            present_BG = torch.tensor([[float(name in attack.methods) for name in METHODS]]).expand(len(batch.key), -1)
            with torch.no_grad():
                found_BCHW = network(batch.prediction_BK, list(batch.maps.values()), present_BG).clamp(0, 1)
            expected += (found_BCHW - batch.image_BCHW).square().flatten(1).mean(1).tolist()
        np.testing.assert_allclose(results[attack.id]["metrics"]["mse"], expected, rtol=1e-5)
    scores = Tables(wanted, results, "mean_image", SETTINGS, 0, lambda methods: 16.0 + 4 * len(methods)).all()
    rows = {row["attack"]: row for row in scores["rows"]}
    grouped = [name for name, row in rows.items() if "group" in row]
    assert grouped == [one.id for one in wanted[:4]], "controls of the whole release are no subsets"
    assert [rows[name]["released_bytes"] for name in grouped] == [24.0, 20.0, 20.0, 16.0]
    assert [rows[name]["kind"] for name in grouped] == ["attack", "attack", "attack", "control"]
    leaks = {leak["attack"]: leak["metrics"]["mse"] for leak in scores["leaks"]}
    assert [name for name in leaks if "p_holm" in leaks[name]] == grouped[:3], "one family, the empty subset in none"
    errors = [rows[name]["metrics"]["mse"]["mean"] for name in grouped]
    assert errors[0] < errors[3] and errors[1] < errors[3], "it learnt to use what it is given"
    save_samples(tmp_path, wanted, results)
    with np.load(tmp_path / "pictures.npz") as pictures:
        kept = [name for name in pictures.files if name.startswith("reconstruction:unet")]
    assert kept == [f"reconstruction:{name}" for name in grouped[:3]], "the empty subset is not pictured"
