"""Checkpoints that a kill cannot spoil, and that a run can continue from on another number of ranks.

    checkpoints/step-00000120/          whole, or absent: written as .step-00000120.partial and renamed by rank 0
        engine/...                      DeepSpeed's own files (weights, optimizer shards of every rank)
        state.json                      TrainState, the number of ranks and the ZeRO stage
        best.safetensors                the best weights so far by validation loss (hard-linked while they stay so)

DeepSpeed's files hold pickles, so they are read from the run's own private folder alone, and never shipped.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from xinv.errors import WorkError
from xinv.files import make_private, write_json
from xinv.train.engine import Engine
from xinv.train.weights import save_weights

BEST = "best.safetensors"


@dataclass
class TrainState:
    """All that a restart must find again, the engine's tensors apart."""

    step: int = 0
    """Optimizer steps taken."""
    epoch: int = 0
    """The epoch in progress, from 0."""
    cursor: int = 0
    """Images of this epoch already trained on, over all ranks."""
    best: float | None = None
    """Lowest validation loss so far."""
    best_values: dict[str, float] = field(default_factory=dict)
    """All metrics of that validation."""
    loss_sum: float = 0.0
    """Training loss summed over the images since the last validation."""
    loss_images: float = 0.0
    """Those images."""
    best_epoch: int = 0
    """Epochs finished when it was reached."""
    stale: int = 0
    """Validations since then."""
    finished: bool = False
    """Early stopping has ended the run."""
    last: dict[str, Any] = field(default_factory=dict)
    """Record of the newest validation, for those who may not have heard of it when the run was killed."""


class Checkpoints:
    """The checkpoints of one training in `folder`, the newest kept. Methods are collectives: all ranks call them."""

    def __init__(self, folder: Path, rank: int, world: int, zero_stage: int) -> None:
        self.folder = folder
        self.rank = rank
        self.world = world
        self.zero_stage = zero_stage
        if rank == 0:
            make_private(folder)

    def latest(self) -> Path | None:
        """The newest whole checkpoint, as rank 0 sees it."""
        found = sorted(self.folder.glob("step-*")) if self.rank == 0 and self.folder.exists() else []
        chosen: list[str | None] = [str(found[-1]) if found else None]
        dist.broadcast_object_list(chosen, src=0)
        return Path(chosen[0]) if chosen[0] else None

    def save(self, engine: Engine, state: TrainState, improved: bool) -> None:
        """Write one checkpoint, then drop the older ones. `improved`: these weights are the best so far."""
        previous = self.latest()
        name = f"step-{state.step:08d}"
        draft = self.folder / f".{name}.partial"
        if self.rank == 0:
            for left in (draft, *self.folder.glob(".step-*.old")):
                shutil.rmtree(left, ignore_errors=True)
            make_private(draft)
        dist.barrier()
        engine.save(str(draft), "engine", asdict(state))
        weights = engine.full_weights() if improved else {}
        if self.rank == 0:
            if improved:
                save_weights(draft / BEST, weights)
            elif previous is not None and (previous / BEST).exists():
                os.link(previous / BEST, draft / BEST)
            note = {"state": asdict(state), "world": self.world, "zero_stage": self.zero_stage}
            write_json(draft / "state.json", note)
        dist.barrier()  # every rank's shards are on the disk before the name says so
        if self.rank == 0:
            _remove(self.folder / name)
            draft.rename(self.folder / name)
            for old in self.folder.glob("step-*"):
                if old.name != name:
                    _remove(old)
        dist.barrier()

    def load(self, engine: Engine) -> TrainState:
        """Put the newest checkpoint into `engine`; a fresh TrainState where there is none."""
        latest = self.latest()
        if latest is None:
            return TrainState()
        note = json.loads((latest / "state.json").read_text())
        if note["world"] == self.world or self.zero_stage == 0:
            state = engine.load(str(latest), "engine")
        else:
            if self.rank == 0:
                _make_universal(latest)
            dist.barrier()
            state = engine.load_universal(str(latest), "universal")
        return TrainState(**state)

    def drop(self) -> None:
        """Remove all checkpoints: the run has ended and its weights are exported."""
        dist.barrier()
        if self.rank == 0:
            for step in self.folder.glob("step-*"):
                _remove(step)
            shutil.rmtree(self.folder, ignore_errors=True)


def _remove(step: Path) -> None:
    """Take a checkpoint away: for whoever else looks (keeping.py) it is whole until it is gone."""
    if step.exists():
        old = step.with_name(f".{step.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        step.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def _make_universal(checkpoint: Path) -> None:
    """Convert DeepSpeed's per-rank shards to its universal form, which any number of ranks can load."""
    out = checkpoint / "universal"
    if out.exists():
        return
    draft = checkpoint / ".universal.partial"
    shutil.rmtree(draft, ignore_errors=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(checkpoint / "engine"), "--output_folder", str(draft)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise WorkError(
            f"{checkpoint} was written by another number of ranks and could not be converted: {done.stderr[-2000:]}\n"
            "Continue with the number of workers it was started with."
        )
    draft.rename(out)
