"""The one training loop, for target, surrogate, evaluator and inverter alike.

It runs in a plain process, under torchrun (`torchrun -m xinv.train JOB.json`) and inside Ray Train: it only asks for a
process group. Ranks, order of the data and random numbers depend on the job alone, so a run killed anywhere and started
again ends with the same weights, bit for bit, as one left in peace (same machine, same number of ranks).

Axes: B images of this rank's share of a step.
"""

import os
import random
import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from xinv.data.lessons import Lessons
from xinv.data.loader import Batch, Reader, floated
from xinv.data.window import window
from xinv.errors import WorkError
from xinv.files import make_private, read_json, write_json
from xinv.nets.growth import grow
from xinv.nets.inverter import Inverter
from xinv.progress import Progress, silent
from xinv.train.batches import relabelled, shrunk, split, to_device
from xinv.train.checkpoint import BEST, Checkpoints, TrainState
from xinv.train.engine import Engine, process_group
from xinv.train.losses import LossSettings
from xinv.train.objectives import OBJECTIVES, Objective
from xinv.train.presence import WithholdingReader
from xinv.train.settings import TrainingSettings, learning_rate_at
from xinv.train.weights import WEIGHTS, ClassifierSpec, InverterSpec, NetworkSpec, fill, load_weights, save_spec

Events = Callable[[dict[str, Any]], None]
"""Called on rank 0 with one record a validation: {"step", "epoch", "values": {name: number}}. A run that continues from
a checkpoint tells the last one before it again: a kill may have come between the two."""

Records = Generator[dict[str, Any], None, None]
"""Those records, one at a time."""

SUMMARY = "summary.json"
ACQUAINTED_VALUES = 1 << 23
"""Values of the images, at most, over which mean and spread are taken at once, in fp64."""


class HaltedError(Exception):
    """The training was asked to stop in mid-epoch; its checkpoint holds all there is, and another call continues."""


def _never() -> bool:
    return False


class TrainJob(BaseModel):
    """One training, complete: any process that can read the folders can run it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path = Field(description="where the network ends up; its checkpoints meanwhile")
    objective: Literal[
        "classify", "classify_attributes", "distil", "invert", "explain", "invert_explained", "invert_jointly"
    ]
    network: NetworkSpec
    images: Path = Field(description="image set")
    releases: Path | None = Field(None, description="release set of the target, for inverters and distillation")
    lessons: Path | None = Field(
        None,
        description="release set whose maps take the place of the target's: of the attacker's surrogate, or of an "
        "untrained target",
    )
    start: Path | None = Field(None, description="trained network of the same shape to start from")
    small: Path | None = Field(None, description="trained inverter of the same design for smaller images to grow from")
    frozen: tuple[str, ...] = Field((), description="parts of the network (submodules) that keep their weights")
    partition: str = Field(description="trained on; PARTITION_validation selects")
    limit: int | None = Field(None, description="train on so many images of the partition; null: on all")
    settings: TrainingSettings
    loss: LossSettings = Field(
        default_factory=LossSettings, description="what an inverter's reconstruction is trained on"
    )
    seed: int

    @model_validator(mode="after")
    def _only_inverters_reconstruct(self) -> "TrainJob":
        if isinstance(self.network, ClassifierSpec) and self.loss != LossSettings():
            raise ValueError("loss weighs reconstructions, and a classifier makes none; leave it out")
        return self


class Summary(BaseModel):
    """What a finished training says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int
    epochs: int
    best_epoch: int = Field(description="epochs finished when the exported weights were reached")
    validation: dict[str, float] = Field(description="metrics of the exported weights on the validation part")
    parameters: int


def train(job: TrainJob, progress: Progress = silent, events: Events = lambda record: None) -> Summary:
    """Train one network to its end, continuing from its newest checkpoint. All ranks of the process group call this.

    Args:
        job: what to train on what.
        progress: called on rank 0 after steps with (steps done, all steps, a few words).
        events: called on rank 0 after each validation.

    Returns:
        The summary, on every rank. `job.folder` then holds network.json, weights.safetensors and summary.json.

    Raises:
        InputError: the data or the settings do not fit.
        WorkError: the loss became NaN or infinite.
    """
    rank, _ = process_group()
    with closing(validations(job, progress)) as records:
        for record in records:
            if rank == 0:
                events(record)
    return Summary.model_validate(read_json(job.folder / SUMMARY))


def validations(job: TrainJob, progress: Progress = silent, halt: Callable[[], bool] = _never) -> Records:
    """`train`, one validation at a time: yields its record (as `Events` has it) on every rank, trains on when asked.

    Whoever reads may stop at any record, on all ranks at the same one, and close the iterator: that record's checkpoint
    then holds all there is, and another call continues from it. The network is exported after the last record.

    Args:
        job, progress: as `train`.
        halt: asked on rank 0 after every step; once it says so, all ranks save a checkpoint and raise `HaltedError`.
    """
    rank, world = process_group()
    if _finished(job, rank):
        return
    if rank == 0:
        make_private(job.folder)
        save_spec(job.folder, job.network)
    _seed(job.seed)
    data, held_out = (_reader(job, part) for part in (job.partition, f"{job.partition}_validation"))
    network = job.network.build()
    if not isinstance(job.network, ClassifierSpec):
        _acquaint(network, data, window(job.settings.batch_size, data.image_shape, ACQUAINTED_VALUES))
    if job.start is not None:
        fill(network, job.start)
    if job.small is not None:
        assert isinstance(network, Inverter), "only inverters grow"
        grow(network, load_weights(job.small))
    for name in job.frozen:
        network.get_submodule(name).requires_grad_(False)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    engine = Engine(network, job.settings, world)
    try:
        checkpoints = Checkpoints(job.folder / "checkpoints", rank, world, job.settings.zero_stage)
        state = checkpoints.load(engine)
        objective = OBJECTIVES[job.objective](network, job.loss)
        fit = _Fit(job, engine, objective, checkpoints, state, rank, world, halt)
        if state.last:
            yield state.last
        yield from fit.run(data, held_out, progress if rank == 0 else silent)
    finally:
        engine.close()
    _export(job, checkpoints, state, parameters, rank)


def _reader(job: TrainJob, partition: str) -> Reader | Lessons:
    methods = () if isinstance(job.network, ClassifierSpec) else job.network.methods
    settings = job.settings
    options: dict[str, Any] = {
        "seed": job.seed,
        "window": settings.shuffle_window,
        "memory_bytes": settings.memory_mib << 20,
        "decoders": settings.decoders,
        "as_stored": True,
        "limit": job.limit if partition == job.partition else None,
    }
    if job.lessons is not None:
        assert job.releases is not None, "lessons go with the target's predictions"
        return Lessons(job.images, partition, job.releases, job.lessons, methods, **options)
    if isinstance(job.network, InverterSpec) and job.network.explanation_dropout is not None:
        options["dropout"] = job.network.explanation_dropout
        return WithholdingReader(job.images, partition, job.releases, methods, **options)
    attributes = job.network.attributes if isinstance(job.network, ClassifierSpec) else ()
    return Reader(job.images, partition, job.releases, methods, attributes=attributes, **options)


class _Fit:
    """The moving parts of one training; `run` is the loop."""

    def __init__(
        self,
        job: TrainJob,
        engine: Engine,
        objective: Objective,
        checkpoints: Checkpoints,
        state: TrainState,
        rank: int,
        world: int,
        halt: Callable[[], bool],
    ) -> None:
        self.halt = halt
        self.job, self.engine, self.objective, self.checkpoints = job, engine, objective, checkpoints
        self.state, self.rank, self.world = state, rank, world
        people = job.network.identities if isinstance(job.network, ClassifierSpec) else ()
        self.answers = {identity: number for number, identity in enumerate(people)}

    def run(self, data: Reader | Lessons, held_out: Reader | Lessons, progress: Progress) -> Records:
        settings, state = self.job.settings, self.state
        per_epoch = -(-data.samples // settings.batch_size)
        steps = per_epoch * settings.epochs
        while state.epoch < settings.epochs and not state.finished:
            self.engine.train(True)
            for batch in data.epoch(state.epoch, settings.batch_size, state.cursor, self.rank, self.world):
                self.engine.set_learning_rate(learning_rate_at(settings, state.step, steps))
                loss, images, halt = self._step(batch)
                state.loss_sum += loss
                state.loss_images += images
                state.step += 1
                state.cursor = batch.cursor
                mean = state.loss_sum / state.loss_images
                progress(state.step, steps, f"epoch {state.epoch + 1}/{settings.epochs}  loss {mean:.4f}")
                if halt or (settings.checkpoint_steps and state.step % settings.checkpoint_steps == 0):
                    self.checkpoints.save(self.engine, state, improved=False)
                if halt:
                    raise HaltedError
            state.epoch += 1
            state.cursor = 0
            if state.epoch % settings.validate_every and state.epoch < settings.epochs:
                continue
            values = {"train_loss": state.loss_sum / state.loss_images, **self.validate(held_out)}
            state.loss_sum = state.loss_images = 0.0
            if not np.isfinite(values["loss"]):
                raise WorkError(
                    f"{self.job.folder.name}: the validation loss is {values['loss']} after epoch {state.epoch}. "
                    "Lower learning_rate, or set precision: fp32."
                )
            improved = state.best is None or values["loss"] < state.best
            state.stale = 0 if improved else state.stale + 1
            if improved:
                state.best, state.best_epoch, state.best_values = values["loss"], state.epoch, values
            state.finished = bool(settings.patience) and state.stale >= settings.patience
            state.last = {"step": state.step, "epoch": state.epoch, "values": values}
            self.checkpoints.save(self.engine, state, improved)
            yield state.last

    def _step(self, batch: Batch) -> tuple[float, float, bool]:
        """One optimizer step on this rank's share; returns (weighted sum of losses, images, whether to halt), reduced
        over ranks.

        The mean is over the real images of all ranks: a rank's loss is scaled so that DeepSpeed's plain mean over ranks
        and micro-batches comes out as that, however uneven the shares (a padded row weighs 0).
        """
        pieces = split(self._asked(batch), self.engine.accumulation)
        total = torch.zeros(3, dtype=torch.float64)
        for piece in pieces:
            piece = self._placed(piece)
            output = self.engine.forward(*self.objective.inputs(piece))
            weighted = (self.objective.loss_B(output, piece) * piece.weight_B).sum()
            self.engine.backward(weighted * (self.world * len(pieces) / batch.samples))
            self.engine.step()
            total[:2] += torch.tensor([weighted.item(), piece.weight_B.sum().item()], dtype=torch.float64)
        total[2] = self.rank == 0 and self.halt()
        loss, images, halt = reduced(total).tolist()
        return loss, images, bool(halt)

    def _asked(self, batch: Batch) -> Batch:
        """The batch with identities in place of labels, where the network tells people apart."""
        return relabelled(batch, self.answers) if self.answers else batch

    def _placed(self, batch: Batch) -> Batch:
        """The batch on the device, its images at the size that the network works at."""
        return shrunk(to_device(batch, self.engine.device), self.job.network.size)

    def validate(self, data: Reader | Lessons) -> dict[str, float]:
        """Means of the selection loss and of metrics over every image of `data`, each counted once, equal on all ranks.

        `loss` is what selects (an inverter's MSE, unclamped); `train_loss` beside it is in units of what is trained on.
        """
        self.engine.train(False)
        settings = self.job.settings
        # A rank sees no more images at once than in training: what fits there fits here.
        rows = min(settings.batch_size, (settings.micro_batch or settings.batch_size) * self.world)
        sums: dict[str, Tensor] = {}
        with torch.no_grad():
            for batch in data.once(rows, self.rank, self.world):
                batch = self._placed(self._asked(batch))
                output = self.engine.forward(*self.objective.inputs(batch))
                values = {"loss": self.objective.selection_B(output, batch), **self.objective.metrics_B(output, batch)}
                for name, value_B in values.items():
                    here = torch.stack([(value_B * batch.weight_B).sum(), batch.weight_B.sum()]).double().cpu()
                    sums[name] = sums.get(name, torch.zeros(2, dtype=torch.float64)) + here
        result = {}
        for name, pair in sums.items():
            total, images = reduced(pair).tolist()
            assert images == data.samples, f"validated {images} images of {data.samples}"
            result[name] = total / images
        return result


def reduced(value: Tensor) -> Tensor:
    """The sum of a small fp64 tensor over all ranks."""
    if dist.get_world_size() > 1:
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        moved = value.to(device)
        dist.all_reduce(moved)
        return moved.cpu()
    return value


def _seed(seed: int) -> None:
    """The same random numbers on every rank: they draw initial weights, which must agree.

    Nothing after that draws from these generators (the data's order has its own, a function of seed and epoch), so
    their state is no part of TrainState.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # cuBLAS and cuDNN pick faster kernels that add in varying order; an audit must give the same answer twice.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _acquaint(network: Any, data: Reader | Lessons, batch_size: int) -> None:
    """Give the inverter mean and spread of each map channel, and the mean of each image channel, over its training
    part, the attacker's own data: what of these it wants."""
    if not data.map_shapes and not network.begins_at_mean:
        return
    sums: dict[str, Tensor] = {}
    level_C = torch.zeros((), dtype=torch.float64)
    count = 0
    for batch in map(floated, data.once(batch_size)):
        count += len(batch.key)
        level_C = level_C + batch.image_BCHW.double().mean((2, 3)).sum(0)
        for name, map_BMHW in batch.maps.items():
            value = map_BMHW.double()
            moments = torch.stack([value.mean((2, 3)).sum(0), value.square().mean((2, 3)).sum(0)])
            sums[name] = sums.get(name, torch.zeros_like(moments)) + moments
    network.begin_at((level_C / count).float())
    if not sums:
        return
    means = torch.cat([moments[0] for moments in sums.values()]) / count
    squares = torch.cat([moments[1] for moments in sums.values()]) / count
    spread = (squares - means.square()).clamp_min(0).sqrt()
    # A constant map (a dead class activation) carries nothing; dividing by its rounding noise would invent something.
    spread = torch.where(spread > 1e-12, spread, torch.ones_like(spread))
    network.standardise(means.float(), spread.float())


def _finished(job: TrainJob, rank: int) -> bool:
    answer = [(job.folder / SUMMARY).exists() if rank == 0 else None]
    dist.broadcast_object_list(answer, src=0)
    return bool(answer[0])


def _export(job: TrainJob, checkpoints: Checkpoints, state: TrainState, parameters: int, rank: int) -> None:
    """Move the best weights out of the last checkpoint; summary.json comes last and says that all is there."""
    latest = checkpoints.latest()
    assert latest is not None, "a training ends with a validation, and that with a checkpoint"
    if rank == 0:
        draft = job.folder / f".{WEIGHTS}.partial"
        shutil.copyfile(latest / BEST, draft)
        draft.replace(job.folder / WEIGHTS)
        summary = Summary(
            steps=state.step,
            epochs=state.epoch,
            best_epoch=state.best_epoch,
            validation=state.best_values,
            parameters=parameters,
        )
        write_json(job.folder / SUMMARY, summary.model_dump(mode="json"))
    dist.barrier()
    checkpoints.drop()
