"""How long trainings take: from a stated rate, or from a few real steps on this machine."""

import re
import time
from dataclasses import dataclass
from typing import Literal

import torch

from xinv.errors import InputError
from xinv.plan.rehearsal import Training
from xinv.plan.step import Step, batch_for

RATE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(tflops?|tflop/s|images?|images?/s)?\s*", re.IGNORECASE)
WARM, TIMED = 1, 3
MOST_IMAGES = 8
VALIDATION = 1 / 3
"""Of a step's arithmetic, what an image's forward pass alone takes."""


@dataclass(frozen=True)
class Rate:
    """Of one rank: TFLOP/s that it really reaches, or images of training steps a second."""

    value: float
    unit: Literal["tflops", "images"]

    def words(self) -> str:
        return f"{self.value:.4g} {'TFLOP/s' if self.unit == 'tflops' else 'images/s'} a rank"


def rate_of(text: str) -> Rate:
    """120tflops or 850images; a number alone is TFLOP/s. InputError for anything else."""
    found = RATE.fullmatch(text)
    if found is None or float(found[1]) == 0:
        raise InputError(
            f"{text!r} is no rate; expected what a GPU reaches, such as 120tflops, or 850images (a second)."
        )
    return Rate(float(found[1]), "images" if (found[2] or "").lower().startswith("image") else "tflops")


def seconds(training: Training, step: Step, rate: Rate, ranks: int) -> float:
    """All epochs of one training on so many ranks, as if each added its whole rate. Early stopping is not foreseen."""
    settings = training.job.settings
    looked = training.held_out * VALIDATION * -(-settings.epochs // settings.validate_every)
    images = training.images * settings.epochs + looked
    each = step.flops(1) / (rate.value * 1e12) if rate.unit == "tflops" else 1 / rate.value
    return images * each / ranks


def measured(training: Training, micro: int) -> Rate:
    """Images a second of one rank here, from `TIMED` steps of the real engine after one to warm up.

    The micro-batch is at most `MOST_IMAGES`. InputError as `Engine`.
    """
    from xinv.train.engine import Engine, process_group
    from xinv.train.objectives import OBJECTIVES

    process_group()
    job, images = training.job, min(micro, MOST_IMAGES)
    settings = job.settings.model_copy(update={"batch_size": images, "micro_batch": None, "zero_stage": 0})
    network = training.spec.build()
    for name in job.frozen:
        network.get_submodule(name).requires_grad_(False)
    engine = Engine(network, settings, 1)
    try:
        objective = OBJECTIVES[job.objective](network, job.loss)
        batch = batch_for(training.spec, images, engine.device)
        begun = 0.0
        for number in range(WARM + TIMED):
            if number == WARM:
                begun = time.perf_counter()
            output = engine.forward(*objective.inputs(batch))
            engine.backward((objective.loss_B(output, batch) * batch.weight_B).sum() / images)
            engine.step()
            if engine.device.type == "cuda":
                torch.cuda.synchronize()
        return Rate(images * TIMED / (time.perf_counter() - begun), "images")
    finally:
        engine.close()
