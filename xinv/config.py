"""The configuration of an audit: sections owned by the parts that read them, defaults < YAML < `key.sub=value`."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from xinv.bucket import StorageUrl, local_path
from xinv.data.build import DataSettings
from xinv.leak.score import ScoreSettings
from xinv.leak.subsets import check_groups
from xinv.mistakes import checked
from xinv.nets.classifier import ClassifierSettings
from xinv.nets.growth import check_growth
from xinv.nets.inverter import PRESETS, InverterDesign
from xinv.nets.quotient import METHODS as QUOTIENT_METHODS
from xinv.overrides import apply, dump_yaml, load_yaml
from xinv.parallel import WorkerSettings
from xinv.release.methods import METHODS
from xinv.release.precompute import ReleaseSettings
from xinv.track import TrackSettings
from xinv.train.imported import ImportedSettings
from xinv.train.losses import LossSettings
from xinv.train.recipe import Recipe, with_recipes
from xinv.train.settings import TrainingSettings

ControlName = Literal["mean_image", "other_image", "same_class_image", "random_target", "nearest_neighbour"]

UNBOUND = ("runs", "storage", "cache_gib", "workers", "track")
"""Parts that may differ between two runs of one audit: where it runs and who is told changes no result."""


class ClassifierPart(BaseModel):
    """A classifier and how it is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: ClassifierSettings = Field(default_factory=ClassifierSettings, description="architecture")
    training: TrainingSettings = Field(default_factory=TrainingSettings, description="how it is trained")


def _target_kind(value: Any) -> str:
    """Imported where any key is one of that form's, or nearer to one of those than to a key of the ordinary form."""
    if isinstance(value, ImportedSettings):
        return "ImportedSettings"
    imported = [info.alias or name for name, info in ImportedSettings.model_fields.items()]
    known = [*ClassifierPart.model_fields, *imported]
    near = [difflib.get_close_matches(str(key), known, n=1) for key in (value if isinstance(value, Mapping) else ())]
    return "ImportedSettings" if any(match and match[0] in imported for match in near) else "ClassifierPart"


# A tag is its class's name: that is what messages about members of a union are found by (mistakes.py).
Target = Annotated[
    Annotated[ClassifierPart, Tag("ClassifierPart")] | Annotated[ImportedSettings, Tag("ImportedSettings")],
    Discriminator(_target_kind),
]


class EvaluatorPart(ClassifierPart):
    """A network that judges reconstructions, and what it looks for in them."""

    predicts: Literal["label", "identity", "attributes"] = Field(
        "label",
        description="what a reconstruction must still show: the label, who it is (needs images of known people), or "
        "attributes that the target never predicts, such as glasses",
    )
    attributes: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="names of the attributes that it reads, each of 2 to 10 whole numbers or words; null: every one of "
        "two values that the images have, but for the one that the labels come from",
    )

    @model_validator(mode="after")
    def _attributes_once(self) -> "EvaluatorPart":
        names = self.attributes or ()
        if names and self.predicts != "attributes":
            raise ValueError(f"attributes are read by predicts: attributes, not by predicts: {self.predicts}")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"attributes holds {twice[0]!r} twice")
        return self


class SurrogateSettings(ClassifierPart):
    """The attack on a target that explains nothing: the attacker's own explainable model, and inverters that imagine
    its explanations. Trained on the attack partition, beside a prediction-only inverter of the same capacity."""

    learns: Literal["labels", "predictions"] = Field(
        "predictions", description="the attacker's own labels, or the target's predictions (distillation)"
    )
    methods: tuple[str, ...] = Field(
        ("gradient",), min_length=1, description="the surrogate's explanations, each tried alone"
    )
    explainer: str = Field("prediction_only", description="design that imagines the explanation from the prediction")
    inverter: str = Field("flatten_unet", description="design that reads the prediction and the imagined explanation")
    modes: tuple[Literal["two_stage", "joint"], ...] = Field(
        ("two_stage", "joint"), min_length=1, description="imagine first and reconstruct then, or learn both at once"
    )


class ProgressiveSettings(BaseModel):
    """Progressive resolution: an inverter learns small images first, and grows with them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sizes: tuple[int, ...] = Field(
        min_length=1,
        description="image sizes in px before the audit's own, ascending: of those that halving it leads to",
    )
    epochs: int = Field(ge=1, description="epochs at each of these sizes; the audit's own takes training.epochs")


class AttackSettings(BaseModel):
    """What is attacked with what. Every inverter is trained on every release, the baseline on predictions alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    releases: tuple[tuple[str, ...], ...] | None = Field(
        None,
        description="explanations one attack sees together, e.g. [[gradient], [gradient, grad_cam]]; null: each alone",
    )
    explanation_dropout: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="probability with which each explanation is withheld from an image while an inverter of two or "
        "more learns; the one inverter is then scored on every subset of them. null: it always has all of them",
    )
    inverters: tuple[str, ...] = Field(("flatten_unet",), min_length=1, description="names of presets or of `designs`")
    baseline: str = Field(
        "prediction_only", description="the design that sees predictions alone; leaks are measured from it"
    )
    designs: dict[str, InverterDesign] = Field(
        default_factory=dict, description="inverter designs of the user's own, by name"
    )
    recipes: dict[str, Recipe] = Field(
        default_factory=dict,
        description="inverters that searches found, by name, each trained in its own way; `inverter=BEST.yaml` puts "
        "one here",
    )
    training: TrainingSettings = Field(
        default_factory=TrainingSettings, description="how all of them are trained, recipes aside"
    )
    loss: LossSettings = Field(
        default_factory=LossSettings,
        description="what all of them learn by, recipes aside; whatever it is, the weights of the lowest validation "
        "MSE are kept",
    )
    progressive: ProgressiveSettings | None = Field(
        None,
        description="train inverters on smaller images first and let them grow; their designs need schedule=resolution "
        "(pyramid, with the baseline pyramid_prediction_only). The surrogate attack does not. null: on the audit's "
        "images alone",
    )
    images: int | None = Field(
        None, ge=2, description="how many of the attacker's images to train on, its validation part aside; null: all"
    )
    seeds: int = Field(1, ge=1, le=100, description="trainings of every inverter, from different initial weights")
    surrogate: SurrogateSettings | None = Field(
        None, description="also attack as if the target explained nothing; null: do not"
    )
    controls: tuple[ControlName, ...] = Field(
        ("mean_image", "other_image"),
        description="attacks to compare with. mean_image, other_image and same_class_image (the explanation of another "
        "image, or of another one of the same label) ought to fail; random_target (explanations of an untrained "
        "network) shows what leaks through any network; nearest_neighbour returns the attacker's own image with the "
        "most similar release",
    )
    closed_forms: tuple[Literal["ridge", "quotient"], ...] = Field(
        (),
        description="attacks that are solved for, not trained: ridge regression, the floor that a network must beat; "
        "quotient, released gradient_input divided by released gradient",
    )

    @model_validator(mode="after")
    def _known_designs(self) -> "AttackSettings":
        known = sorted({*PRESETS, *self.designs, *self.recipes})
        surrogate = (self.surrogate.explainer, self.surrogate.inverter) if self.surrogate else ()
        for name in (*self.inverters, self.baseline, *surrogate):
            if name not in known:
                raise ValueError(f"no inverter design is called {name!r}; known are {', '.join(known)}")
        for name, recipe in self.recipes.items():
            if recipe.name != name or name in {*PRESETS, *self.designs}:
                raise ValueError(f"recipes.{name} needs a name of its own, and holds one called {recipe.name!r}")
        return self

    @model_validator(mode="after")
    def _nothing_twice(self) -> "AttackSettings":
        # Attacks of one name count as trainings of one inverter with several seeds.
        for key, given in (("inverters", self.inverters), ("releases", self.releases or ())):
            twice = next((one for place, one in enumerate(given) if one in given[:place]), None)
            if twice is not None:
                shown = twice if isinstance(twice, str) else f"[{', '.join(twice)}]"
                raise ValueError(f"{key} names {shown} twice; name it once (attack.seeds trains it several times)")
        return self

    @model_validator(mode="after")
    def _something_to_withhold(self) -> "AttackSettings":
        if self.explanation_dropout is not None:
            check_groups(self.releases or ())
        return self

    def dropout(self, methods: tuple[str, ...]) -> float | None:
        """Probability of withholding in the training on these explanations: none where there are fewer than two."""
        return self.explanation_dropout if len(methods) > 1 else None

    def design(self, name: str) -> InverterDesign:
        if name in self.recipes:
            return self.recipes[name].design
        return self.designs[name] if name in self.designs else PRESETS[name]

    def training_of(self, name: str) -> TrainingSettings:
        """How the inverter called `name` is trained."""
        return self.recipes[name].training if name in self.recipes else self.training

    def loss_of(self, name: str) -> LossSettings:
        """What the inverter called `name` learns by."""
        return self.recipes[name].loss if name in self.recipes else self.loss


class AuditConfig(BaseModel):
    """One audit. `xinv config schema` prints this as JSON schema."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run folder is RUNS/NAME")
    runs: Path = Field(
        Path("runs"), description="where run folders are; RUNS/stages holds the finished steps of all of them"
    )
    storage: StorageUrl | None = Field(
        None,
        description="URL where finished steps, checkpoints and run folders are kept too, reconstructions among them, "
        "so that another machine can go on: s3://bucket/folder, gs://, abfs://, a path. null: nowhere",
    )
    cache_gib: float | None = Field(
        None,
        gt=0,
        description="GiB of shards on this disk, at most, that were fetched from `storage`; the longest unused are "
        "removed, and fetched again. null: all are kept",
    )
    seed: int = Field(0, ge=0, description="behind every random choice: partitions, weights, order, resamples")
    data: DataSettings
    target: Target = Field(
        default_factory=ClassifierPart,
        description="the network under audit: trained here (network, training), or imported (import, weights, "
        "arguments, layer)",
    )
    evaluators: dict[str, EvaluatorPart] = Field(
        default_factory=lambda: {"residual": EvaluatorPart(network=ClassifierSettings(network="residual"))},
        min_length=1,
        description="judges of reconstructions by name, trained on the gallery, never seen by the attacker; the first "
        "gives the headline figures, another of another architecture says how much they depend on the judge",
    )
    release: ReleaseSettings = Field(default_factory=ReleaseSettings, description="what the target gives out")
    attack: AttackSettings = Field(default_factory=AttackSettings, description="who reconstructs from it")
    score: ScoreSettings = Field(default_factory=ScoreSettings, description="how the victims are scored")
    workers: WorkerSettings = Field(default_factory=WorkerSettings, description="processes, threads, GPUs, cluster")
    track: TrackSettings = Field(default_factory=TrackSettings, description="Weights & Biases")

    @model_validator(mode="after")
    def _stored_apart(self) -> "AuditConfig":
        place = local_path(self.storage) if self.storage else None
        if place is not None and place.is_relative_to(self.runs.absolute()):
            raise ValueError(f"storage {self.storage} lies in runs ({self.runs}); choose a folder on another disk")
        return self

    @model_validator(mode="after")
    def _released_before_attacked(self) -> "AuditConfig":
        surrogate = self.attack.surrogate
        for name in (*self.release.methods, *(surrogate.methods if surrogate else ())):
            if name not in METHODS:
                raise ValueError(f"no explanation is called {name!r}; known are {', '.join(METHODS)}")
        for group in self.attack.releases or ():
            for name in group:
                if name not in self.release.methods:
                    raise ValueError(
                        f"attack.releases names {name!r}, which release.methods does not hold; add it there"
                    )
        attacker, split = self.data.attacker, self.data.split
        if surrogate and surrogate.learns == "labels" and attacker and attacker.source:
            raise ValueError(
                "attack.surrogate.learns: labels needs an attacker whose images have the target's labels, and "
                "data.attacker.source brings others; use learns: predictions"
            )
        most = split.attack - split.validation_part("attack")
        if self.attack.images and self.attack.images > most:
            raise ValueError(
                f"attack.images is {self.attack.images}, and data.split leaves the attacker {most} images to train on; "
                "lower it, or raise data.split.attack"
            )
        if "quotient" in self.attack.closed_forms:
            self._quotient_has_both()
        self._recipes_fit()
        if self.attack.progressive is not None:
            sizes = (*self.attack.progressive.sizes, self.data.size)
            for name in dict.fromkeys((self.attack.baseline, *self.attack.inverters)):
                check_growth(name, self.attack.design(name), sizes)
        people = [name for name, part in self.evaluators.items() if part.predicts == "identity"]
        if people and self.data.split.disjoint != "identity":
            raise ValueError(
                f"evaluators.{people[0]}.predicts: identity needs data.split.disjoint: identity, which puts other "
                "images of victims into the gallery"
            )
        return self

    def _recipes_fit(self) -> None:
        attacked = [set(), *(set(methods) for methods in self.attacked_releases())]
        for name, recipe in self.attack.recipes.items():
            if (recipe.channels, recipe.size) != (self.data.channels, self.data.size):
                raise ValueError(
                    f"the inverter {name} was found for images of {recipe.channels} x {recipe.size} x {recipe.size}, "
                    f"and this audit's are {self.data.channels} x {self.data.size} x {self.data.size}; search again on "
                    "this audit, or leave that inverter out"
                )
            if set(recipe.release) not in attacked:
                raise ValueError(
                    f"the inverter {name} was found for {' + '.join(recipe.release)}, which this audit does not "
                    "attack; add it to attack.releases (or to release.methods), or leave that inverter out"
                )

    def _quotient_has_both(self) -> None:
        lacking = [name for name in QUOTIENT_METHODS if name not in self.release.methods]
        if lacking:
            raise ValueError(
                f"attack.closed_forms names quotient, which divides gradient_input by gradient, and release.methods "
                f"holds no {' and no '.join(lacking)}; add both there, or leave quotient out"
            )
        if self.release.format.name == "heat_map":
            raise ValueError(
                "attack.closed_forms names quotient, which divides numbers, and release.format heat_map gives out "
                "colours; leave quotient out, or choose another format"
            )

    @property
    def folder(self) -> Path:
        return self.runs / self.name

    def attacked_releases(self) -> tuple[tuple[str, ...], ...]:
        return self.attack.releases or tuple((method,) for method in self.release.methods)


def load(path: Path, overrides: Sequence[str] = ()) -> AuditConfig:
    """The validated configuration in `path` with `key.sub=value` overrides applied.

    Raises:
        InputError: missing file, broken YAML, unknown key (with the nearest known one), wrong type or value.
    """
    tree = apply(load_yaml(path), overrides)
    return validated(tree, str(path))


def validated(tree: dict[str, Any], source: str) -> AuditConfig:
    """`tree` as a configuration; `source` names it in messages. Its key `inverter`, recipe files, is read in."""
    tree = with_recipes(tree, AttackSettings.model_fields["inverters"].default)
    return checked(AuditConfig, tree, source)


def dump(config: AuditConfig) -> str:
    """The configuration with every default, as YAML that `load` accepts."""
    return dump_yaml(config.model_dump(mode="json"))


def schema() -> str:
    """JSON schema of a configuration file, for editors."""
    return json.dumps(AuditConfig.model_json_schema(), indent=1)
