"""Every training of an audit, found by going through the audit's own stages without images, targets or shards.

A stage's folder is a temporary one, and holds what later stages read of it: an index without shards, a network.json
without weights. What is not known before there are images comes from the source where it can be opened, and is assumed,
and said, where it cannot.
"""

import functools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xinv.answers import check_attributes
from xinv.attacks import inverters, surrogate_attacks
from xinv.audit import Audit
from xinv.config import AuditConfig, ClassifierPart, EvaluatorPart
from xinv.data.attacker import open_images
from xinv.data.attributes import Attribute, choose
from xinv.data.build import DataSettings
from xinv.data.fields import FieldSchema
from xinv.data.index import Index
from xinv.data.records import Source
from xinv.data.splits import split
from xinv.errors import InputError
from xinv.files import digest, write_json
from xinv.plan.shapes import Released, released, schemas
from xinv.plan.step import Precision, Step, step_of
from xinv.progress import Progress, silent
from xinv.random_target import random_targets
from xinv.release.precompute import PARTITIONS, ReleaseSettings
from xinv.stage import Finished
from xinv.target import checked_target
from xinv.train.imported import ImportedSpec, load_target_spec
from xinv.train.loop import TrainJob
from xinv.train.weights import NETWORK, ClassifierSpec, NetworkSpec, save_spec

LABELS = {"celeba": 2, "celeba_hq": 2, "lfw_emotion": 2, "synthetic_faces": 2}
"""Of sources by kind, where their files are not here; others are taken to have 10."""
IMAGES_OF_A_PERSON = 10
"""In the gallery, where the source cannot be asked."""


@dataclass(frozen=True)
class Training:
    """One training, or several that differ by their seed or by what the images show.

    `titles`: how messages call it, or them. `setting`: the dotted key of its `TrainingSettings` in the configuration.
    `times`: how often the audit trains it. `images`: of its training part, `held_out` of its validation part.
    """

    titles: tuple[str, ...]
    setting: str
    job: TrainJob
    images: int
    held_out: int
    times: int = 1

    @property
    def title(self) -> str:
        """All of them in a line."""
        first, *others = self.titles
        return f"{first} and {len(others)} more" if others else first

    @property
    def spec(self) -> NetworkSpec:
        """The network, which explanations it reads forgotten: their shapes alone count."""
        network = self.job.network
        if isinstance(network, ClassifierSpec):
            return network
        return network.model_copy(update={"methods": tuple(f"map {n}" for n in range(len(network.methods)))})

    @property
    def shape(self) -> list[Any]:
        """All that its cost depends on, plain data."""
        job = self.job
        parts = (self.spec, job.settings, job.loss)
        return [job.objective, list(job.frozen), *(part.model_dump(mode="json") for part in parts)]

    def step(self, precision: Precision, recompute: bool) -> Step:
        """Its step. InputError as `step_of`."""
        job = self.job
        return step_of(self.spec, job.objective, job.loss, precision, recompute, job.frozen)


@dataclass(frozen=True)
class ReleaseSet:
    """Explanations that an audit makes: of so many images, these fields each."""

    title: str
    images: int
    fields: dict[str, Released]


@dataclass(frozen=True)
class Rehearsed:
    """What an audit will do. `assumed`: sentences on what could not be known."""

    trainings: tuple[Training, ...]
    releases: tuple[ReleaseSet, ...]
    assumed: tuple[str, ...]


def rehearse(config: AuditConfig) -> Rehearsed:
    """Go through an audit. InputError as the audit itself, but for images that are not there: those are assumed."""
    with tempfile.TemporaryDirectory(prefix="xinv-plan-") as folder:
        stages = _Rehearsal(config, Path(folder))
        stages.go()
        return Rehearsed(tuple(_grouped(stages.trainings)), tuple(stages.sets), tuple(stages.assumed))


def _grouped(trainings: Sequence[Training]) -> list[Training]:
    """Trainings that take the same, as one; in the order of the first of each."""
    found: dict[str, Training] = {}
    for one in trainings:
        key = digest([one.setting, one.images, one.held_out, *one.shape])
        first = found.get(key)
        titles = (one.title,) if first is None or one.title in first.titles else (*first.titles, one.title)
        found[key] = one if first is None else replace(first, titles=titles, times=first.times + 1)
    return list(found.values())


class _Rehearsal(Audit):
    """The stages of an audit, what they would make left out."""

    def __init__(self, config: AuditConfig, root: Path) -> None:
        self.config, self.root = config, root
        self.assumed: list[str] = []
        self.sets: list[ReleaseSet] = []
        self.trainings: list[Training] = []
        self.source, self.parts = self._opened()

    def go(self) -> None:
        images = self.images()
        imported = checked_target(self.config)
        target = self._imported(imported.spec) if imported is not None else self.target(images, None)
        self.evaluators(images)
        releases = self.explain("releases", images, target, self.config.release)
        inverters(self, images, releases)
        surrogate_attacks(self, images, releases)
        random_targets(self, images, releases, target)

    def _opened(self) -> tuple[Source | None, dict[str, list[int]]]:
        """The images' source and who gets which of them; none where it cannot be opened here."""
        opened = _opened(self.config.data.model_dump_json(), self.config.seed)
        if isinstance(opened, str):
            self.assumed.append(
                f"data.source cannot be opened here, so labels and people are assumed: {str(opened).rstrip('.')}"
            )
            return None, {}
        return opened

    def images(self) -> Finished:
        if self.source is not None:
            shared = [place for name, part in self.parts.items() if not name.startswith("attack") for place in part]
            check_attributes(self.config, [self.source.records[place] for place in shared])
            names = self.source.label_names
        else:
            count = _labels(self.config)
            self.assumed.append(f"{count} labels are assumed ({self.config.data.source.kind})")
            names = tuple(str(number) for number in range(count))
        size, channels = self.config.data.size, self.config.data.channels
        png = FieldSchema(dtype="uint8", shape=(size, size, channels), units="")
        fields = {"png": png, "json": FieldSchema(dtype="json", shape=(), units="")}
        folder = self._folder("images")
        Index(kind="images", made_by={}, label_names=names, fields=fields, partitions={}).save(folder)
        return Finished("images", folder, {}, fresh=True)

    def answers(self, part: ClassifierPart, images: Finished) -> dict[str, Any]:
        predicts = part.predicts if isinstance(part, EvaluatorPart) else "label"
        if predicts == "label":
            return super().answers(part, images)
        gallery = self.parts.get("gallery", []) + self.parts.get("gallery_validation", [])
        records = [self.source.records[place] for place in gallery] if self.source else []
        if predicts == "identity":
            people = tuple(sorted({record.identity for record in records})) or self._people()
            return {"classes": len(people), "identities": people}
        assert isinstance(part, EvaluatorPart)
        if records:
            found, _ = choose(
                records, part.attributes, "an evaluator that predicts attributes", "images of the gallery"
            )
        else:
            self.assumed.append("attributes of two values are assumed")
            names = part.attributes or ("attribute",)
            found = tuple(Attribute(name=name, values=(0, 1), counts=(1, 1)) for name in names)
        return {"classes": sum(len(one.values) for one in found), "attributes": found}

    def _people(self) -> tuple[str, ...]:
        settings = self.config.data.split
        count = settings.people or max(2, settings.gallery // IMAGES_OF_A_PERSON)
        self.assumed.append(f"{count} people are assumed in the gallery")
        return tuple(str(number) for number in range(count))

    def explain(
        self,
        kind: str,
        images: Finished,
        target: Finished,
        settings: ReleaseSettings,
        partitions: Sequence[str] = PARTITIONS,
    ) -> Finished:
        data, spec = self.config.data, load_target_spec(target.folder)
        if isinstance(spec, ImportedSpec):
            network: nn.Module = spec.build(Path.cwd())
        else:
            with torch.device("meta"):
                network = spec.build().eval()
        fields = released(network, (data.channels, data.size, data.size), spec.classes, settings)
        folder = self._folder(kind)
        Index(kind="releases", made_by={}, fields=schemas(fields), partitions={}).save(folder)
        count = sum(self._count(partition) for partition in partitions)
        self.sets.append(ReleaseSet(kind.replace("_", " "), count, fields))
        return Finished(folder.name, folder, {}, fresh=True)

    def stage(self, kind: str, title: str, identity: dict[str, Any], work: Callable[[Path, Progress], Any]) -> Finished:
        folder = self._folder(kind)
        if kind == "random_target":  # the target's own network, which its work would fill with other weights
            shutil.copyfile(self.root / "target" / NETWORK, folder / NETWORK)
        else:
            work(folder, silent)
        return Finished(folder.name, folder, {}, fresh=True)

    def train(self, job: TrainJob, series: str, progress: Progress) -> dict[str, Any]:
        save_spec(job.folder, job.network)
        images, held_out = self._count(job.partition), self._count(f"{job.partition}_validation")
        images = min(images, job.limit or images)
        setting = self._setting(job)
        title = f"evaluator {setting.split('.')[1]}" if series == "evaluator" else series
        self.trainings.append(Training((title,), setting, job, images, held_out))
        return {}

    def _count(self, partition: str) -> int:
        """Images of a partition."""
        group, _, validation = partition.partition("_")
        settings: Any = self.config.data.split
        if group == "victim":
            return int(settings.victim)
        held_out = settings.validation_part(group)
        return int(held_out if validation else getattr(settings, group) - held_out)

    def _setting(self, job: TrainJob) -> str:
        """The key of the configuration that says how a job trains."""
        config = self.config
        known = {"target.training": getattr(config.target, "training", None)}
        known |= {f"evaluators.{name}.training": part.training for name, part in config.evaluators.items()}
        known |= {f"attack.recipes.{name}.training": recipe.training for name, recipe in config.attack.recipes.items()}
        if config.attack.surrogate is not None:
            known["attack.surrogate.training"] = config.attack.surrogate.training
        return next((key for key, settings in known.items() if settings is job.settings), "attack.training")

    def _imported(self, spec: ImportedSpec) -> Finished:
        folder = self._folder("target")
        write_json(folder / NETWORK, spec.model_dump(mode="json"))
        return Finished("target", folder, {}, fresh=True)

    def _folder(self, kind: str) -> Path:
        """A fresh folder; the first of a kind has its name."""
        number = sum(1 for path in self.root.iterdir() if path.name.partition("-")[0] == kind)
        folder = self.root / (f"{kind}-{number}" if number else kind)
        folder.mkdir()
        return folder


@functools.lru_cache(maxsize=1)  # trials of one analysis differ in other things
def _opened(described: str, seed: int) -> tuple[Source, dict[str, list[int]]] | str:
    """The images and who gets which of them; or why they cannot be opened here. InputError where they are too few."""
    data = DataSettings.model_validate_json(described)
    try:
        source, attackable, shared = open_images(data.source, data.attacker)
    except InputError as error:
        return str(error)
    return source, split(source.records, data.split, seed, attackable, shared)


def forget() -> None:
    """Let go of the images that the last rehearsal opened."""
    _opened.cache_clear()


def _labels(config: AuditConfig) -> int:
    """How many labels a source has whose files are not here."""
    source = config.data.source
    if source.kind == "mefed":
        return 50 if source.label == "compound" else 8
    return LABELS.get(source.kind, 10)
