"""A training step of the whole stack (reader, DeepSpeed, loop, progress) against a bare loop on tensors in memory.

Both train the same network in the same precision, in one process, turn about: after each step of ours one of the bare
loop's, so that whatever else the machine does meets both. One process, all cores.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from bare import BareLoop
from figures import Figure, report
from noise_sets import CLASSES, make_sets

from xinv.nets.inverter import preset
from xinv.train.loop import HaltedError, TrainJob, validations
from xinv.train.settings import TrainingSettings
from xinv.train.weights import InverterSpec

WARM, STEPS = 6, 40
CASES = (("film_unet", 64, 32), ("flatten_unet", 32, 64))
"""Design, image size, batch."""


def job_for(folder: Path, sets: tuple[Path, Path], design: str, size: int, batch: int, stage: int) -> TrainJob:
    spec = InverterSpec(
        design=preset(design), channels=3, size=size, classes=CLASSES, methods=("gradient",), maps=((1, size, size),)
    )
    settings = TrainingSettings(epochs=1000, batch_size=batch, zero_stage=stage, weight_decay=1e-2)
    return TrainJob(
        folder=folder / f"{design}-{stage}",
        objective="invert",
        network=spec,
        images=sets[0],
        releases=sets[1],
        partition="attack",
        settings=settings,
        seed=0,
    )


def timed(job: TrainJob) -> tuple[float, float]:
    """Median seconds of a bare step, and of ours, both taken turn about."""
    bare = BareLoop(job, job.settings.batch_size)
    ours: list[float] = []
    theirs: list[float] = []
    last = 0.0

    def progress(done: float, total: float, note: str) -> None:
        nonlocal last
        begun = time.perf_counter()
        # The first batch of an epoch orders it anew and the last may be short: both belong to a step as it is.
        ours.append(begun - last)
        bare.step()
        last = time.perf_counter()
        theirs.append(last - begun)

    try:
        for _ in validations(job, progress, lambda: len(ours) >= WARM + STEPS):
            last = time.perf_counter()
    except HaltedError:
        pass
    return statistics.median(theirs[WARM:]), statistics.median(ours[WARM:])


def main() -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    figures = []
    with tempfile.TemporaryDirectory() as name:
        for design, size, batch in CASES:
            sets = make_sets(Path(name) / f"{design}-sets", size, images=64 * batch // 4)
            for stage in (0, 1):
                theirs, ours = timed(job_for(Path(name), sets, design, size, batch, stage))
                note = f"bare {1000 * theirs:.0f} ms, ours {1000 * ours:.0f} ms a step"
                title = f"{design} {size} px, batch {batch}, ZeRO-{stage}: bare / ours"
                figures.append(Figure(title, theirs / ours, "x", ">= 0.92", note))
    report("Training step of the full stack against a bare loop", figures)


if __name__ == "__main__":
    sys.exit(main())
