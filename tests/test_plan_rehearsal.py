"""The trainings of an audit, found without making anything."""

from pathlib import Path

import pytest
import torch
from audits import DEMO

from xinv import config as configs
from xinv.nets.classifier import ClassifierSettings, build_classifier
from xinv.plan.rehearsal import rehearse
from xinv.plan.shapes import released
from xinv.release.methods import METHODS, explain_all
from xinv.release.precompute import ReleaseSettings


def test_the_demo_trains_a_target_a_judge_a_baseline_and_inverters() -> None:
    found = rehearse(configs.load(DEMO))
    titles = [training.titles for training in found.trainings]
    assert titles == [
        ("target",),
        ("evaluator residual",),
        ("prediction_only",),
        ("flatten_unet + gradient", "flatten_unet + lrp_zplus"),
        ("flatten_unet + grad_cam",),
    ]
    assert [one.times for one in found.trainings] == [1, 1, 1, 2, 1]
    assert [one.images for one in found.trainings] == [1350, 720, 1980, 1980, 1980]
    settings = [one.setting for one in found.trainings]
    assert settings[:3] == ["target.training", "evaluators.residual.training", "attack.training"]
    assert not found.assumed
    (released_once,) = found.releases
    assert released_once.images == 2200 + 500


def test_seeds_surrogates_and_random_targets_are_counted() -> None:
    changes = ["attack.seeds=2", "attack.controls=[random_target]", "attack.surrogate={methods: [gradient]}"]
    found = rehearse(configs.load(DEMO, [*changes, "release.methods=[gradient]"]))
    times = {training.title: training.times for training in found.trainings}
    assert times["flatten_unet + gradient and 3 more"] == 4  # two seeds, on the target's maps and on an untrained one's
    objectives = {training.job.objective for training in found.trainings}
    assert {"distil", "explain", "invert_explained", "invert_jointly"} <= objectives
    assert {one.title for one in found.releases} == {"releases", "lessons", "random releases"}


def test_what_cannot_be_known_is_assumed_and_said(tmp_path: Path) -> None:
    path = DEMO.with_name("celeba_hq_256.yaml")
    found = rehearse(configs.load(path, [f"data.source.folder={tmp_path}", f"data.source.celeba={tmp_path}"]))
    assert any("2 labels" in line for line in found.assumed) and any("people" in line for line in found.assumed)
    assert all("runs" not in child.name for child in tmp_path.iterdir())


@pytest.mark.parametrize("network", ["cnn", "vit"])
@pytest.mark.parametrize("classes", [1, 2])
def test_released_shapes_are_those_of_real_explanations(network: str, classes: int) -> None:
    model = build_classifier(ClassifierSettings(network=network, width=4), 3, 20, 4).eval()
    shape = (3, 20, 20)
    works = tuple(name for name, method in METHODS.items() if method.why_not(model, shape) is None)
    quick = tuple(name for name in works if METHODS[name].forward < 60)
    found = released(model, shape, 4, ReleaseSettings(methods=quick, classes=classes))
    _, maps = explain_all([METHODS[name] for name in quick], model, torch.rand(1, *shape), classes)
    assert {name: found[name].schema.shape for name in quick} == {name: tuple(maps[name].shape[1:]) for name in quick}
