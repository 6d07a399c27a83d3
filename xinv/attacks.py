"""The trainings of an audit's attackers: inverters of what the target released, and the surrogate attack.

Each function returns the finished stages as `Attack`s, which scoring carries out.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from xinv.config import AuditConfig, SurrogateSettings
from xinv.data.index import Index
from xinv.leak.score import Attack
from xinv.leak.subsets import proper_subsets
from xinv.nets.design import InverterDesign, ReleaseShape
from xinv.progress import Progress
from xinv.release.methods import METHODS
from xinv.release.precompute import LESSON_PARTITIONS, ReleaseSettings
from xinv.stage import Finished
from xinv.train.inline import Group
from xinv.train.loop import TrainJob
from xinv.train.losses import LossSettings
from xinv.train.recipe import Recipe
from xinv.train.settings import TrainingSettings
from xinv.train.weights import (
    ClassifierSpec,
    InverterSpec,
    SurrogateSpec,
)

Work = Callable[[Path, Progress], Any]
INVERTER_FORMAT = 2
SURROGATE_FORMAT = 2
TITLES = {"same_capacity": "same network", "two_stage": "in two stages", "joint": "jointly"}


class Stages(Protocol):
    """What `audit` offers to those who add stages."""

    config: AuditConfig
    group: Group

    def stage(self, kind: str, title: str, identity: dict[str, Any], work: Work) -> Finished: ...

    def train(self, job: TrainJob, series: str, progress: Progress) -> dict[str, Any]: ...

    def run_tasks(self, factory: Any, tasks: Sequence[Any], progress: Progress) -> list[Any]: ...

    def explain(
        self,
        kind: str,
        images: Finished,
        target: Finished,
        settings: ReleaseSettings,
        partitions: Sequence[str] = ...,
    ) -> Finished: ...


def inverters(
    audit: Stages, images: Finished, releases: Finished, random_releases: Finished | None = None
) -> list[Attack]:
    """Every inverter trained on every release; the baseline, which sees predictions alone, first.

    With explanation dropout, an inverter of several explanations also attacks every smaller subset of them.
    With `random_releases`, an untrained target's, they are trained on its maps beside the target's own predictions, all
    of them at once: the controls `random_target`, without a baseline of their own.
    """
    attack = audit.config.attack
    wanted: list[tuple[str, tuple[str, ...]]] = [] if random_releases else [(attack.baseline, ())]
    wanted += [(name, group) for group in audit.config.attacked_releases() for name in attack.inverters]
    found = []
    for name, methods in wanted:
        ident = ":".join(filter(None, [name, "+".join(methods)]))
        for repeat in range(attack.seeds):
            trained = _inverter(audit, images, releases, name, methods, repeat, random_releases)
            one = Attack(id=ident, kind="attack", inverter=name, folder=trained.folder, methods=methods, seed=repeat)
            if random_releases:
                changes = {"id": f"random_target:{ident}", "kind": "control", "lessons": random_releases.folder}
                one = one.model_copy(update=changes)
            elif attack.dropout(methods):
                one = one.model_copy(update={"group": methods})
            found.append(one)
    return [*found, *(part for one in found if one.group for part in proper_subsets(one))]


def _inverter(
    audit: Stages,
    images: Finished,
    releases: Finished,
    name: str,
    methods: tuple[str, ...],
    repeat: int,
    random_releases: Finished | None,
) -> Finished:
    attack = audit.config.attack
    label = " + ".join([name, *methods]) + (f", seed {repeat + 1}" if repeat else "")
    asked = InverterTraining(
        label=label + (", random target" if random_releases else ""),
        design=attack.design(name),
        training=attack.training_of(name),
        loss=attack.loss_of(name),
        methods=methods,
        repeat=repeat,
        dropout=None if random_releases else attack.dropout(methods),
        recipe=attack.recipes.get(name),
    )
    return train_inverter(audit, images, releases, asked, random_releases)


@dataclass(frozen=True)
class InverterTraining:
    """One training of an inverter on what the target released for the attacker's images.

    `label`: how messages call it. `repeat`: which of several trainings it is, from 0; each begins with other weights
    and sees the images in another order. `dropout`: of explanations. `recipe`: the one that it follows, if any.
    `size`: of images, where it is trained on smaller ones than the audit's.
    """

    label: str
    design: InverterDesign
    training: TrainingSettings
    loss: LossSettings
    methods: tuple[str, ...]
    repeat: int = 0
    dropout: float | None = None
    recipe: Recipe | None = None
    size: int | None = None

    def seed(self, config: AuditConfig) -> int:
        return config.seed + 3 + 1000 * self.repeat

    def identity(
        self,
        config: AuditConfig,
        images: Finished,
        releases: Finished,
        lessons: Finished | None = None,
        small: Finished | None = None,
    ) -> dict[str, Any]:
        """Of its stage, which is an "inverter". `small`: the one for smaller images that it grows from."""
        identity = {
            "format": INVERTER_FORMAT,
            "design": self.design.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
            "loss": self.loss.model_dump(mode="json"),
            "images": images.id,
            "releases": releases.id,
            "methods": list(self.methods),
            "limit": config.attack.images,
            "seed": self.seed(config),
        }
        if self.dropout:  # no key where there is none: such stages are kept
            identity["explanation_dropout"] = self.dropout
        if lessons:
            identity["lessons"] = lessons.id
        if small:
            identity["small"] = small.id
        if self.size:
            identity["size"] = self.size
        return identity


def train_inverter(
    audit: Stages, images: Finished, releases: Finished, asked: InverterTraining, lessons: Finished | None = None
) -> Finished:
    """The stage of one inverter, after those for smaller images that it grows from, where the audit asks for it.

    `lessons`: a release set whose maps take the place of the target's.
    """
    small: Finished | None = None
    if (growing := audit.config.attack.progressive) is not None:
        shorter = asked.training.model_copy(update={"epochs": growing.epochs})
        for size in growing.sizes:
            step = replace(asked, label=f"{asked.label}, {size} px", training=shorter, size=size)
            small = _trained(audit, images, releases, step, lessons, small)
    return _trained(audit, images, releases, asked, lessons, small)


def _trained(
    audit: Stages,
    images: Finished,
    releases: Finished,
    asked: InverterTraining,
    lessons: Finished | None,
    small: Finished | None,
) -> Finished:
    config = audit.config

    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        shape = release_shape(releases, asked.methods, lessons)
        if asked.recipe is not None:
            asked.recipe.check_release(asked.methods, shape)
        spec = InverterSpec(
            design=asked.design,
            channels=config.data.channels,
            size=asked.size or config.data.size,
            classes=shape.classes,
            methods=asked.methods,
            maps=shape.maps,
            explanation_dropout=asked.dropout,
        )
        job = TrainJob(
            folder=folder.resolve(),
            objective="invert",
            network=spec,
            images=images.folder.resolve(),
            releases=releases.folder.resolve(),
            lessons=lessons.folder.resolve() if lessons else None,
            small=small.folder.resolve() if small else None,
            partition="attack",
            limit=config.attack.images,
            settings=asked.training,
            loss=asked.loss,
            seed=asked.seed(config),
        )
        return audit.train(job, asked.label, progress)

    identity = asked.identity(config, images, releases, lessons, small)
    return audit.stage("inverter", f"Inverter: {asked.label}", identity, work)


def surrogate_attacks(audit: Stages, images: Finished, releases: Finished) -> list[Attack]:
    """The attack on a target that explains nothing, each beside its control of the same capacity and budget.

    The surrogate itself is trained once, as the target is; what learns from it is trained `attack.seeds` times.
    """
    settings = audit.config.attack.surrogate
    if settings is None:
        return []
    model = _surrogate_model(audit, images, releases, settings)
    asked = ReleaseSettings(methods=settings.methods, batch_size=audit.config.release.batch_size)
    explained = audit.explain("lessons", images, model, asked, LESSON_PARTITIONS)
    found: list[Attack] = []
    for method, repeat in itertools.product(settings.methods, range(audit.config.attack.seeds)):
        imagine = _SurrogateTraining(audit, images, releases, explained, method, settings, repeat)
        # Against an inverter of the same size and budget: the imagined explanation adds no information in theory.
        control = imagine.train("same_capacity", "invert_explained")
        found.append(imagine.attack("same_capacity", control, kind="control"))
        if "two_stage" in settings.modes:
            explainer = imagine.train("explain", "explain")
            second = imagine.train("two_stage", "invert_explained", start=explainer)
            found.append(imagine.attack("two_stage", second))
        if "joint" in settings.modes:
            found.append(imagine.attack("joint", imagine.train("joint", "invert_jointly")))
    return found


def _surrogate_model(audit: Stages, images: Finished, releases: Finished, settings: SurrogateSettings) -> Finished:
    """The attacker's own classifier, trained on the attack partition."""
    data, seed = audit.config.data, audit.config.seed + 4
    distils = settings.learns == "predictions"
    identity = {
        "format": SURROGATE_FORMAT,
        "network": settings.network.model_dump(mode="json"),
        "training": settings.training.model_dump(mode="json"),
        "learns": settings.learns,
        "images": images.id,
        "releases": releases.id if distils else None,
        "limit": audit.config.attack.images,
        "seed": seed,
    }

    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        spec = ClassifierSpec(
            settings=settings.network, channels=data.channels, size=data.size, classes=_classes(releases)
        )
        job = TrainJob(
            folder=folder.resolve(),
            objective="distil" if distils else "classify",
            network=spec,
            images=images.folder.resolve(),
            releases=releases.folder.resolve() if distils else None,
            partition="attack",
            limit=audit.config.attack.images,
            settings=settings.training,
            seed=seed,
        )
        return audit.train(job, "surrogate", progress)

    return audit.stage("surrogate", f"Surrogate: {settings.network.network}, {settings.learns}", identity, work)


class _SurrogateTraining:
    """Trains the networks that imagine one explanation of the surrogate."""

    def __init__(
        self,
        audit: Stages,
        images: Finished,
        releases: Finished,
        explained: Finished,
        method: str,
        settings: SurrogateSettings,
        repeat: int,
    ) -> None:
        self.audit, self.images, self.releases, self.explained = audit, images, releases, explained
        self.method, self.settings, self.repeat = method, settings, repeat

    def train(self, role: str, objective: Any, start: Finished | None = None) -> Finished:
        """One training; with `start`, its explanation inverter is taken over and kept."""
        config = self.audit.config
        attack, seed = config.attack, config.seed + 5 + 1000 * self.repeat
        label = self.method + (f", seed {self.repeat + 1}" if self.repeat else "")
        explainer, design = attack.design(self.settings.explainer), attack.design(self.settings.inverter)
        identity = {
            "format": SURROGATE_FORMAT,
            "objective": objective,
            "explainer": explainer.model_dump(mode="json"),
            "design": design.model_dump(mode="json"),
            "training": attack.training.model_dump(mode="json"),
            "loss": attack.loss.model_dump(mode="json"),
            "images": self.images.id,
            "releases": self.releases.id,
            "lessons": self.explained.id,
            "method": self.method,
            "start": start.id if start else None,
            "limit": attack.images,
            "seed": seed,
        }

        def work(folder: Path, progress: Progress) -> dict[str, Any]:
            spec = SurrogateSpec(
                explainer=explainer,
                design=design,
                channels=config.data.channels,
                size=config.data.size,
                classes=_classes(self.releases),
                methods=(self.method,),
                maps=(_map_shape(self.explained, self.method),),
            )
            job = TrainJob(
                folder=folder.resolve(),
                objective=objective,
                network=spec,
                images=self.images.folder.resolve(),
                releases=self.releases.folder.resolve(),
                lessons=self.explained.folder.resolve(),
                start=start.folder.resolve() if start else None,
                frozen=("explainer",) if start else (),
                partition="attack",
                limit=attack.images,
                settings=attack.training,
                loss=attack.loss,
                seed=seed,
            )
            return self.audit.train(job, f"surrogate {role} + {label}", progress)

        return self.audit.stage("imagined", f"Surrogate {role}: {label}", identity, work)

    def attack(self, role: str, trained: Finished, kind: Any = "attack") -> Attack:
        """What scoring does with it: the victims' predictions are all that it reads."""
        control = kind == "control"
        return Attack(
            id=f"surrogate_{role}:{self.method}",
            kind=kind,
            inverter=self.settings.inverter,
            folder=trained.folder,
            title=f"{'Untaught' if control else 'Imagined'} {METHODS[self.method].title} ({TITLES[role]})",
            baseline="" if control else f"surrogate_same_capacity:{self.method}",
            seed=self.repeat,
        )


def release_shape(releases: Finished, methods: Sequence[str], maps: Finished | None = None) -> ReleaseShape:
    """What an inverter of `methods` reads: predictions of `releases`, explanations of it or of `maps`."""
    return ReleaseShape(_classes(releases), tuple(_map_shape(maps or releases, method) for method in methods))


def _classes(releases: Finished) -> int:
    return Index.load(releases.folder).fields["prediction.npy"].shape[0]


def _map_shape(releases: Finished, method: str) -> tuple[int, int, int]:
    channels, height, width = Index.load(releases.folder).fields[f"{method}.npy"].shape
    return channels, height, width
