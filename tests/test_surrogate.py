"""The surrogate attack's network and trainings: what it reads, what it is taught, what stays frozen."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from xinv.data.lessons import Lessons
from xinv.data.loader import Reader
from xinv.errors import InputError
from xinv.nets.design import preset
from xinv.nets.surrogate import SurrogateInverter
from xinv.train.loop import TrainJob, train
from xinv.train.settings import TrainingSettings
from xinv.train.weights import SurrogateSpec, load_inverter

EXPLAINER = preset("prediction_only", width=4, bottleneck=16)
DESIGN = preset("flatten_unet", width=4, bottleneck=16, hidden=8)


def job_for(images: Path, releases: Path, folder: Path, objective: Any, **changes: Any) -> TrainJob:
    spec = SurrogateSpec(
        explainer=EXPLAINER, design=DESIGN, channels=1, size=16, classes=4, methods=("gradient",), maps=((1, 16, 16),)
    )
    settings = {"epochs": 3, "batch_size": 8, "precision": "fp32", "learning_rate": 3e-3, "zero_stage": 1}
    return TrainJob(
        folder=folder,
        objective=objective,
        network=spec,
        images=images,
        releases=releases,
        lessons=releases,
        partition="attack",
        settings=TrainingSettings(**settings),
        seed=3,
    ).model_copy(update=changes)


def test_the_image_depends_on_the_prediction_alone() -> None:
    torch.manual_seed(0)
    network = SurrogateInverter(EXPLAINER, DESIGN, 4, (1, 8, 8), 1, 16).eval()
    prediction_BK = torch.randn(2, 4)
    image_BCHW, imagined_BMHW = network(prediction_BK)
    assert image_BCHW.shape == (2, 1, 16, 16) and imagined_BMHW.shape == (2, 1, 8, 8)
    torch.testing.assert_close(network(prediction_BK, [torch.randn(2, 1, 8, 8)])[0], image_BCHW)


def test_lessons_are_compared_in_standardised_units() -> None:
    network = SurrogateInverter(EXPLAINER, DESIGN, 4, (1, 8, 8), 1, 16)
    network.standardise(torch.tensor([3.0]), torch.tensor([2.0]))
    torch.testing.assert_close(network.lesson(torch.full((1, 1, 8, 8), 7.0)), torch.full((1, 1, 8, 8), 2.0))


def test_maps_must_be_square() -> None:
    with pytest.raises(InputError, match="8 x 9"):
        SurrogateInverter(EXPLAINER, DESIGN, 4, (1, 8, 9), 1, 16)


def test_lessons_join_the_targets_predictions_with_the_surrogates_maps(tiny_images: Path, tiny_releases: Path) -> None:
    lessons = Lessons(tiny_images, "attack", tiny_releases, tiny_releases, ("grad_cam",), seed=1)
    seen: list[str] = []
    for batch in lessons.epoch(0, 7):
        assert batch.prediction_BK is not None and list(batch.maps) == ["grad_cam"]
        seen += batch.key
    assert len(seen) == len(set(seen)) == lessons.samples


def test_lessons_are_read_in_one_order_where_only_the_predictions_fit_in_memory(
    tiny_images: Path, tiny_releases: Path
) -> None:
    options = {"seed": 1, "window": 4096, "memory_bytes": 23 * (256 + 16)}  # pixels and logits, no map of 1,024 bytes
    plain = Reader(tiny_images, "attack", tiny_releases, (), **options)
    lessons = Lessons(tiny_images, "attack", tiny_releases, tiny_releases, ("gradient",), **options)
    assert plain.fits and plain.window > 23
    seen = [key for batch in lessons.epoch(0, 4) for key in batch.key]
    alone = Reader(tiny_images, "attack", tiny_releases, ("gradient",), **options)
    assert seen == [key for batch in alone.epoch(0, 4) for key in batch.key] and len(set(seen)) == 23


def test_the_second_stage_keeps_the_explanation_inverter_of_the_first(
    tiny_images: Path, tiny_releases: Path, tmp_path: Path
) -> None:
    train(job_for(tiny_images, tiny_releases, tmp_path / "first", "explain"))
    second = job_for(
        tiny_images,
        tiny_releases,
        tmp_path / "second",
        "invert_explained",
        start=tmp_path / "first",
        frozen=("explainer",),
    )
    train(second)
    first, then = (load_file(tmp_path / name / "weights.safetensors") for name in ("first", "second"))
    explainer = [name for name in first if name.startswith("explainer.")]
    image = [name for name in first if name.startswith("image.") and name.endswith("weight")]
    assert explainer and all(torch.equal(first[name], then[name]) for name in explainer)
    assert image and not any(torch.equal(first[name], then[name]) for name in image)
    assert load_inverter(tmp_path / "second")(torch.randn(2, 4), []).shape == (2, 1, 16, 16)


def test_explain_learns_the_map_and_leaves_the_image_inverter(
    tiny_images: Path, tiny_releases: Path, tmp_path: Path
) -> None:
    """The image's error weighs nothing, so nothing moves the image inverter away from its initial weights."""
    job = job_for(tiny_images, tiny_releases, tmp_path / "job", "explain")
    torch.manual_seed(job.seed)
    begin = job.network.build().state_dict()
    train(job)
    end = load_file(tmp_path / "job" / "weights.safetensors")
    assert all(torch.equal(begin[name], end[name]) for name in end if name.startswith("image."))
    assert not all(torch.equal(begin[name], end[name]) for name in end if name.startswith("explainer."))


def test_jointly_trains_both(tiny_images: Path, tiny_releases: Path, tmp_path: Path) -> None:
    job = job_for(tiny_images, tiny_releases, tmp_path / "job", "invert_jointly")
    torch.manual_seed(job.seed)
    begin = job.network.build().state_dict()
    summary = train(job)
    end = load_file(tmp_path / "job" / "weights.safetensors")
    moved = [name for name in end if not torch.equal(begin[name], end[name])]
    assert any(name.startswith("explainer.") for name in moved) and any(name.startswith("image.") for name in moved)
    assert set(summary.validation) == {"train_loss", "loss", "mse", "explanation_mse"}
