"""Training on two ranks that Ray Train has placed, against two processes of torchrun with DistributedDataParallel.

The same network, precision and images a step; one CPU thread a rank. Rounds of both take turns, and what is compared is
the mean of a step over all of a round's steps but the first ones. Ray's own processes are there in the rounds of both
sides; what they take from torchrun on this machine is a figure by itself.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from bare import BareLoop
from figures import Figure, report
from noise_sets import make_sets
from step import job_for
from torch.nn.parallel import DistributedDataParallel

from xinv.parallel import WorkerSettings
from xinv.train.loop import TrainJob
from xinv.train.run import TrainingGroup

RANKS, ROUNDS, WARM, STEPS = 2, 3, 5, 25
CASES = (("film_unet", 64, 32, 0), ("film_unet", 64, 32, 1))
"""Design, image size, images a step over all ranks, ZeRO stage."""


def one_epoch(folder: Path, sets: tuple[Path, Path], case: tuple[str, int, int, int], number: int) -> TrainJob:
    design, size, batch, stage = case
    job = job_for(folder / f"round-{number}", sets, design, size, batch, stage)
    return job.model_copy(update={"settings": job.settings.model_copy(update={"epochs": 1})})


def ours(group: TrainingGroup, job: TrainJob) -> float:
    """Mean seconds of a step, as the audit's process hears of them (every 0.3 s)."""
    heard: list[tuple[float, float]] = []

    def progress(done: float, total: float, note: str) -> None:
        if done >= WARM and (not heard or done > heard[-1][0]):
            heard.append((done, time.perf_counter()))

    group.train(job, progress)
    (first, begun), (last, ended) = heard[0], heard[-1]
    return (ended - begun) / (last - first)


def theirs(job: TrainJob, folder: Path) -> float:
    path = folder / "bare.json"
    path.write_text(job.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, __file__, str(path)], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def bare_rank(path: Path) -> None:
    """One process of torchrun."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    job = TrainJob.model_validate_json(path.read_text())
    loop = BareLoop(job, job.settings.batch_size // RANKS, DistributedDataParallel)
    for _ in range(WARM):
        loop.step()
    begun = time.perf_counter()
    for _ in range(STEPS):
        loop.step()
    if dist.get_rank() == 0:
        print(json.dumps({"seconds": (time.perf_counter() - begun) / STEPS}))
    dist.destroy_process_group()


def main() -> None:
    figures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = WorkerSettings(count=RANKS, cpus=1)
        job = one_epoch(folder, make_sets(folder / "alone", CASES[0][1], images=32), CASES[0], 0)
        job.folder.parent.mkdir(parents=True)
        alone = statistics.median(theirs(job, folder) for _ in range(ROUNDS))
        with TrainingGroup(settings, folder / "ray", folder / "group.log") as group:
            for case in CASES:
                design, size, batch, stage = case
                sets = make_sets(folder / f"{design}-{stage}", size, images=batch * (WARM + STEPS))
                pairs = []
                for number in range(ROUNDS):
                    job = one_epoch(folder, sets, case, number)
                    pairs.append((theirs(job, folder), ours(group, job)))
                bare, full = (statistics.median(side) for side in zip(*pairs, strict=True))
                note = f"DDP {1000 * bare:.0f} ms, ours {1000 * full:.0f} ms a step"
                title = f"{design} {size} px, batch {batch}, ZeRO-{stage}: DDP / ours"
                figures.append(Figure(title, bare / full, "x", ">= 0.9", note))
                if stage == 0:
                    note = f"DDP without Ray {1000 * alone:.0f} ms, beside its processes {1000 * bare:.0f} ms"
                    figures.append(
                        Figure(f"{design} {size} px: DDP alone / DDP beside Ray", alone / bare, "x", "", note)
                    )
    report("Training step on 2 ranks under Ray Train against torchrun DDP", figures)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        bare_rank(Path(sys.argv[1]))
    else:
        main()
