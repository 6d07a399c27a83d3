"""One trial in its process: reports, ends, failures, and going on after it was left off."""

from pathlib import Path
from typing import Any

import pytest

from xinv.nets.design import InverterDesign
from xinv.search.trial import TrialRun
from xinv.train.inline import InProcess
from xinv.train.loop import TrainJob
from xinv.train.settings import TrainingSettings
from xinv.train.weights import InverterSpec


def job(images: Path, releases: Path, folder: Path, **settings: Any) -> TrainJob:
    design = InverterDesign(encoder="cnn", width=2, hidden=4, bottleneck=8)
    spec = InverterSpec(design=design, channels=1, size=16, classes=4, methods=("grad_cam",), maps=((1, 4, 4),))
    return TrainJob(
        folder=folder,
        objective="invert",
        network=spec,
        images=images,
        releases=releases,
        partition="attack",
        settings=TrainingSettings(**{"epochs": 3, "batch_size": 8, "precision": "fp32", **settings}),
        seed=1,
    )


def test_a_trial_reports_each_validation_and_then_its_end(
    tiny_images: Path, tiny_releases: Path, tmp_path: Path
) -> None:
    run = TrialRun(job(tiny_images, tiny_releases, tmp_path / "trial"), InProcess(1))
    found = [run.step() for _ in range(4)]
    run.close()
    assert [one.get("epoch") for one in found] == [1, 2, 3, None]
    assert all(0 < one["mse"] < 1 and one["seconds"] > 0 for one in found[:3])
    assert found[3] == {"ended": "finished", "reason": ""}
    assert (tmp_path / "trial" / "weights.safetensors").exists()


def test_a_trial_left_off_goes_on_from_its_last_validation(
    tiny_images: Path, tiny_releases: Path, tmp_path: Path
) -> None:
    training = job(tiny_images, tiny_releases, tmp_path / "trial")
    first = TrialRun(training, InProcess(1))
    before = [first.step()["mse"] for _ in range(2)]
    first.close()
    second = TrialRun(training, InProcess(1))
    again = second.step()
    assert (again["epoch"], again["mse"]) == (2, before[1]), "told again: it may not have been heard"
    assert second.step()["epoch"] == 3 and second.step()["ended"] == "finished"
    second.close()


def test_what_would_fail_again_is_a_result_and_a_bug_is_named(
    tiny_images: Path, tiny_releases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = {"learning_rate": 1e30, "clip": 0.0, "schedule": "constant", "warmup": 0.0}
    diverged = TrialRun(job(tiny_images, tiny_releases, tmp_path / "wild", **wild), InProcess(1))
    found = [diverged.step() for _ in range(3)]
    ended = next(one for one in found if "ended" in one)
    assert ended["ended"] == "failed" and "Lower learning_rate" in ended["reason"]
    broken = TrialRun(job(tiny_images, tiny_releases, tmp_path / "broken"), InProcess(1))
    monkeypatch.setattr("xinv.train.loop._acquaint", lambda *_: [][1])
    assert broken.step() == {"ended": "bug", "reason": "IndexError: list index out of range"}
