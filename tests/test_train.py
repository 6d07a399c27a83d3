"""The training loop and its engine: ranks agree with one process, and a killed run ends as if it had not been."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from dying import dying_after
from ranks import run_on_ranks
from safetensors.torch import load_file

from xinv.data.loader import Reader
from xinv.data.shards import people
from xinv.errors import InputError, WorkError
from xinv.nets.classifier import ClassifierSettings
from xinv.train.batches import split
from xinv.train.checkpoint import Checkpoints, TrainState
from xinv.train.engine import Engine, process_group
from xinv.train.loop import HaltedError, TrainJob, _Fit, _seed, train, validations
from xinv.train.objectives import OBJECTIVES
from xinv.train.settings import TrainingSettings, learning_rate_at
from xinv.train.weights import ClassifierSpec, load_classifier

CLASSES = 3


def job_for(images: Path, folder: Path, **settings: Any) -> TrainJob:
    """A classifier of a few thousand weights on the tiny images; batches of 7 leave no rank an even share."""
    chosen = {"epochs": 4, "batch_size": 7, "precision": "fp32", "learning_rate": 1e-2, **settings}
    reader = Reader(images, "target")
    channels, size, _ = reader.image_shape
    network = ClassifierSpec(
        settings=ClassifierSettings(network="cnn", width=4), channels=channels, size=size, classes=reader.classes
    )
    return TrainJob(
        folder=folder,
        objective="classify",
        network=network,
        images=images,
        partition="target",
        settings=TrainingSettings(**chosen),
        seed=5,
    )


def steps_of(
    images: Path, folder: Path, stage: int, steps: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Reduced gradients of the first batch, and the weights after `steps` optimizer steps. Runs on every rank."""
    job = job_for(images, folder, zero_stage=stage, clip=0.0, micro_batch=2)
    rank, world = process_group()
    _seed(job.seed)
    engine = Engine(job.network.build(), job.settings, world)
    fit = _Fit(
        job,
        engine,
        OBJECTIVES["classify"](engine.network),
        Checkpoints(folder, rank, world, stage),
        TrainState(),
        rank,
        world,
        lambda: False,
    )
    batches = list(Reader(images, "target", seed=job.seed).epoch(0, job.settings.batch_size, 0, rank, world))
    pieces = split(batches[0], engine.accumulation)
    for number, piece in enumerate(pieces):
        loss_B = fit.objective.loss_B(engine.forward(piece.image_BCHW), piece)
        engine.backward((loss_B * piece.weight_B).sum() * (world * len(pieces) / batches[0].samples))
        if number < len(pieces) - 1:
            engine.step()
    gradients = engine.full_gradients()
    engine.step()
    for batch in batches[1:steps]:
        fit._step(batch)
    weights = engine.full_weights()
    engine.close()
    return gradients, weights


def all_stages(images: Path, folder: Path) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    return [steps_of(images, folder / f"zero{stage}", stage, steps=4) for stage in range(4)]


def test_two_ranks_compute_what_one_does_at_every_zero_stage(tiny_images: Path, tmp_path: Path) -> None:
    """Localises wrong loss scaling, wrong reduction, ranks that see the same images, broken gathering."""
    (one,) = run_on_ranks(all_stages, 1, tmp_path, tiny_images, tmp_path / "one")
    two, _ = run_on_ranks(all_stages, 2, tmp_path, tiny_images, tmp_path / "two")
    reference_gradients, reference_weights = one[0]
    assert len(reference_gradients) == len(reference_weights) > 4
    for stage in range(4):
        for gradients, weights in (one[stage], two[stage]):
            close(gradients, reference_gradients, 1e-6, f"gradients, ZeRO {stage}")
            close(weights, reference_weights, 1e-5, f"weights, ZeRO {stage}")


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float, what: str) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol, msg=lambda message: f"{what}: {message}")


def interrupted(images: Path, folder: Path, stage: int, step: int, settings: dict[str, Any]) -> None:
    """Train, and die on every rank right after the checkpoint of `step`."""
    with dying_after(step), pytest.raises(KeyboardInterrupt):
        train(job_for(images, folder, zero_stage=stage, **settings))


def continued(images: Path, folder: Path, stage: int, settings: dict[str, Any]) -> dict[str, Any]:
    return train(job_for(images, folder, zero_stage=stage, **settings)).model_dump()


def undisturbed_and_resumed(images: Path, folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """For ZeRO 0, 1 and 3: summary of a run left in peace, and of one stopped after epoch 2 and continued."""
    pairs = []
    for stage in (0, 1, 3):
        whole = continued(images, folder / f"whole{stage}", stage, {})
        interrupted(images, folder / f"cut{stage}", stage, 8, {})
        pairs.append((whole, continued(images, folder / f"cut{stage}", stage, {})))
    return pairs


def test_resumed_equals_uninterrupted_on_two_ranks(tiny_images: Path, tmp_path: Path) -> None:
    first, second = run_on_ranks(undisturbed_and_resumed, 2, tmp_path, tiny_images, tmp_path)
    assert first == second
    for stage, (whole, cut) in zip((0, 1, 3), first, strict=True):
        assert whole == cut
        left, right = (load_file(tmp_path / f"{name}{stage}" / "weights.safetensors") for name in ("whole", "cut"))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left), f"ZeRO {stage}"


def test_resume_in_the_middle_of_an_epoch_is_exact(tiny_images: Path, tmp_path: Path) -> None:
    settings = {"checkpoint_steps": 2, "validate_every": 2}
    whole = continued(tiny_images, tmp_path / "whole", 1, settings)
    interrupted(tiny_images, tmp_path / "cut", 1, 6, settings)
    assert (tmp_path / "cut" / "checkpoints").exists()
    assert continued(tiny_images, tmp_path / "cut", 1, settings) == whole
    left, right = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert not (tmp_path / "cut" / "checkpoints").exists()


def stopped(images: Path, folder: Path, epoch: int) -> list[dict[str, Any]]:
    """What a reader hears of a training that it stops at `epoch`."""
    heard = []
    with contextlib.closing(validations(job_for(images, folder, zero_stage=1))) as records:
        for record in records:
            heard.append(record)
            if record["epoch"] == epoch:
                break
    return heard


def test_a_reader_stops_a_training_which_then_continues_as_if_it_had_not(tiny_images: Path, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    whole = train(job_for(tiny_images, tmp_path / "whole", zero_stage=1), events=told.append)
    first, again = (stopped(tiny_images, tmp_path / "cut", epoch) for epoch in (2, 3))
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000012"]
    assert not (tmp_path / "cut" / "summary.json").exists(), "a stopped training is not exported"
    rest: list[dict[str, Any]] = []
    assert train(job_for(tiny_images, tmp_path / "cut", zero_stage=1), events=rest.append) == whole
    # What comes first is the last record before: a kill between a checkpoint and its record loses nothing.
    assert first == told[:2] and again == told[1:3] and rest == told[2:]
    left, right = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(left[name], right[name]) for name in left)


def halted(images: Path, folder: Path, step: int) -> tuple[list[str], bool]:
    """Train twice; the second time rank 0 is asked for a halt at `step`, in mid-epoch, after which it is continued.

    Returns:
        The checkpoints that the halt left, and whether the second training ended as the first.
    """
    whole = train(job_for(images, folder / "whole", zero_stage=1))
    seen = 0

    def progress(done: float, total: float, note: str) -> None:
        nonlocal seen
        seen = int(done)

    job = job_for(images, folder / "cut", zero_stage=1)
    with pytest.raises(HaltedError):
        for _ in validations(job, progress, lambda: seen == step - 1):
            pass
    left = [path.name for path in (job.folder / "checkpoints").iterdir()]
    dist.barrier()
    return left, train(job) == whole


def test_ranks_that_are_asked_to_halt_save_at_that_step_and_continue_as_if_they_had_not(
    tiny_images: Path, tmp_path: Path
) -> None:
    expected = (["step-00000006"], True)
    assert run_on_ranks(halted, 2, tmp_path, tiny_images, tmp_path, 6) == [expected, expected]
    left, right = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_run_continues_on_another_number_of_ranks(tiny_images: Path, tmp_path: Path, stage: int) -> None:
    whole = continued(tiny_images, tmp_path / "whole", stage, {})
    run_on_ranks(interrupted, 2, tmp_path, tiny_images, tmp_path / "cut", stage, 8, {})
    (cut,) = run_on_ranks(continued, 1, tmp_path, tiny_images, tmp_path / "cut", stage, {})
    assert cut["steps"] == whole["steps"]
    assert cut["validation"]["loss"] == pytest.approx(whole["validation"]["loss"], rel=1e-3)


def test_a_finished_training_is_not_repeated(tiny_images: Path, tmp_path: Path) -> None:
    job = job_for(tiny_images, tmp_path / "job", epochs=1)
    first = train(job)
    records: list[Any] = []
    assert train(job, events=records.append) == first
    assert records == []
    network = load_classifier(job.folder)
    assert not network.training
    assert sum(parameter.numel() for parameter in network.parameters()) == first.parameters


def test_early_stopping_keeps_the_best_weights(tiny_images: Path, tmp_path: Path) -> None:
    """A learning rate that wrecks the network: the best epoch comes early, and patience ends the run."""
    job = job_for(
        tiny_images, tmp_path / "job", epochs=30, patience=2, learning_rate=0.3, clip=0.0, schedule="constant"
    )
    records: list[dict[str, Any]] = []
    summary = train(job, events=records.append)
    losses = [record["values"]["loss"] for record in records]
    assert summary.best_epoch == losses.index(min(losses)) + 1
    assert summary.epochs == summary.best_epoch + 2 < 30
    network = load_classifier(job.folder)
    total, count = 0.0, 0
    for batch in Reader(tiny_images, "target_validation").once(8):
        loss_B = OBJECTIVES["classify"](network).loss_B(network(batch.image_BCHW), batch)
        total, count = total + float((loss_B.detach() * batch.weight_B).sum()), count + len(batch.key)
    assert total / count == pytest.approx(min(losses), rel=1e-4)


def test_a_diverged_training_says_so(tiny_images: Path, tmp_path: Path) -> None:
    job = job_for(tiny_images, tmp_path / "job", epochs=20, learning_rate=1e30, clip=0.0)
    with pytest.raises(WorkError, match="Lower learning_rate"):
        train(job)


def test_learning_rate_rises_then_falls_to_zero() -> None:
    settings = TrainingSettings(learning_rate=0.5, warmup=0.1)
    rates = [learning_rate_at(settings, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[9] == rates[10] == 0.5
    assert rates[55] == pytest.approx(0.25)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)


def test_missing_images_are_one_clear_error(tmp_path: Path) -> None:
    job = TrainJob(
        folder=tmp_path / "job",
        objective="classify",
        network=ClassifierSpec(settings=ClassifierSettings(network="cnn"), channels=1, size=16, classes=CLASSES),
        images=tmp_path / "nothing",
        partition="target",
        settings=TrainingSettings(),
        seed=0,
    )
    with pytest.raises(InputError, match="nothing"):
        train(job)


def test_an_evaluator_of_identities_learns_who_it_is_and_refuses_strangers(tiny_images: Path, tmp_path: Path) -> None:
    """Identities of the tiny images are their keys: as many classes as images, and nobody of the validation part."""
    keys = people(tiny_images, ("target",))
    assert len(keys) == Reader(tiny_images, "target").samples
    job = job_for(tiny_images, tmp_path / "job", epochs=1)
    spec = ClassifierSpec(
        settings=ClassifierSettings(network="cnn", width=4), channels=1, size=16, classes=len(keys), identities=keys
    )
    with pytest.raises(InputError, match="is not among the 23"):
        train(job.model_copy(update={"network": spec}))
    everybody = people(tiny_images, ("target", "target_validation"))
    spec = spec.model_copy(update={"classes": len(everybody), "identities": everybody})
    train(job.model_copy(update={"network": spec, "folder": tmp_path / "all"}))
    assert load_classifier(tmp_path / "all")(torch.zeros(1, 1, 16, 16)).shape == (1, 29)
