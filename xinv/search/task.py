"""What every trial of a search is trained on, and what it is asked for its candidates."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from xinv.attacks import release_shape
from xinv.audit import Audit
from xinv.config import AuditConfig
from xinv.data.index import Index
from xinv.files import digest
from xinv.nets.design import InverterDesign, ReleaseShape
from xinv.stage import Finished
from xinv.target import checked_target
from xinv.train.loop import TrainJob
from xinv.train.settings import TrainingSettings
from xinv.train.weights import InverterSpec

PARTITION = "attack"


class Candidate(Protocol):
    """One inverter and how it is trained (`search.space.Candidate`)."""

    @property
    def design(self) -> InverterDesign: ...

    @property
    def training(self) -> TrainingSettings: ...

    def model_dump(self, *, mode: str = ...) -> dict[str, Any]: ...


class Space(Protocol):
    """Where candidates come from (`search.space.SearchSpace`)."""

    def propose(self, trial: Any) -> Candidate:
        """The candidate that an object with optuna's suggest methods chooses."""
        ...

    def parameters(self, candidate: Any) -> dict[str, Any] | None:
        """What `propose` must choose for this candidate; None where the space does not hold it."""
        ...

    def refusal(self, candidate: Any) -> str | None:
        """Why a candidate breaks a budget, with the arithmetic; None where it does not."""
        ...

    def presets(self) -> list[tuple[str, Any]]:
        """The known designs, by name."""
        ...


class Cost(Protocol):
    """What a candidate takes: numbers learned, FLOPs of a training step for each image, bytes of one process."""

    @property
    def parameters(self) -> int: ...

    @property
    def flops(self) -> int: ...

    @property
    def memory_bytes(self) -> int: ...


Pricing = Callable[[Any], Cost]


@dataclass(frozen=True)
class Task:
    """The attacker's images and releases that all trials have in common.

    `samples`: images trained on an epoch. `shape`: what the inverter reads.
    """

    images: Finished
    releases: Finished
    methods: tuple[str, ...]
    shape: ReleaseShape
    channels: int
    size: int
    samples: int
    limit: int | None
    seed: int
    epochs: int

    def described(self) -> dict[str, Any]:
        """Two searches with the same `task` may compare their scores."""
        identity = [self.images.id, self.releases.id, self.methods, self.limit, self.seed, self.epochs]
        return {
            "task": digest(identity),
            "images": self.images.id,
            "releases": self.releases.id,
            "release": list(self.methods),
            "channels": self.channels,
            "size": self.size,
            "classes": self.shape.classes,
            "maps": [list(shape) for shape in self.shape.maps],
            "samples": self.samples,
            "epochs": self.epochs,
        }

    def job(self, candidate: dict[str, Any], folder: Path) -> TrainJob:
        """The training of a candidate, dumped as JSON, in `folder`."""
        network = InverterSpec(
            design=InverterDesign.model_validate(candidate["design"]),
            channels=self.channels,
            size=self.size,
            classes=self.shape.classes,
            methods=self.methods,
            maps=self.shape.maps,
        )
        others = {name: value for name, value in candidate.items() if name not in ("design", "training")}
        return TrainJob(
            folder=folder.resolve(),
            objective="invert",
            network=network,
            images=self.images.folder.resolve(),
            releases=self.releases.folder.resolve(),
            partition=PARTITION,
            limit=self.limit,
            settings=TrainingSettings.model_validate(candidate["training"]),
            seed=self.seed,
            **others,
        )


class Ground(Audit):
    """The part of an audit that a search stands on: no evaluator is trained, and no victim looked at."""

    def task(self, methods: tuple[str, ...], epochs: int) -> Task:
        """Make what is missing of images, target and releases.

        Raises:
            InputError, WorkError: as `audit.run`.
        """
        config: AuditConfig = self.config
        imported = checked_target(config)
        images = self.images()
        self._check_methods(images, imported)
        releases = self.explain("releases", images, self.target(images, imported), config.release)
        samples = Index.load(images.folder).samples(PARTITION)
        return Task(
            images=images,
            releases=releases,
            methods=methods,
            shape=release_shape(releases, methods),
            channels=config.data.channels,
            size=config.data.size,
            samples=min(samples, config.attack.images or samples),
            limit=config.attack.images,
            # As the audit's own inverters, so that `best.yaml` gives there what it gave here.
            seed=config.seed + 3,
            epochs=epochs,
        )
