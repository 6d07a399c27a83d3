"""The configuration of a search: a base audit, the explanations it attacks, the space, and how it is walked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xinv.base import Base, Overrides, changed, read_base
from xinv.bucket import StorageUrl
from xinv.config import UNBOUND as CARRIES
from xinv.config import AuditConfig, validated
from xinv.errors import InputError
from xinv.mistakes import checked
from xinv.overrides import apply, load_yaml
from xinv.search.choices import SpaceSettings
from xinv.search.comparison import FinalSettings
from xinv.search.record import read_earlier
from xinv.train.settings import TrainingSettings

UNBOUND = (("budget",), ("place",), ("final",), ("runs",), ("storage",), *(("base", section) for section in CARRIES))
"""Parts of resolved.yaml that may differ between two starts of one search: a larger budget goes on where it stopped."""

PBT = (
    "population based training is not offered: it copies weights between trials of unlike designs, which do not fit, "
    "and changes settings under way, so that what it finds is no recipe that could be trained again"
)


class AshaSettings(BaseModel):
    """Asynchronous successive halving (Li et al., MLSys 2020): most trials end early, at rungs of equal age."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grace: int = Field(1, ge=1, description="epochs that every trial gets: the age at the first rung")
    reduction: int = Field(3, ge=2, description="the best of so many go on at a rung; the next is so many times older")


class BudgetSettings(BaseModel):
    """When a search ends. It may be raised later: the same command then goes on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(40, ge=1, description="trials begun, presets among them")
    minutes: float | None = Field(
        None, gt=0, description="time spent on trials, over all starts of the search; null: no limit"
    )


class PlaceSettings(BaseModel):
    """Where trials run. Nothing here changes what one trial computes beyond rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_once: int | None = Field(
        None,
        ge=1,
        description="trials side by side; null: as many as CPUs and GPUs allow. One at a time, the same seed proposes "
        "the same candidates; several learn from each other in the order in which they happen to end",
    )
    workers: int = Field(
        1,
        ge=1,
        description="training processes (ranks) of each trial; 1: it trains inside Ray Tune's own process and starts "
        "at once; more: DeepSpeed on a group that Ray Train places, for designs that one GPU cannot hold or is slow at",
    )
    cpus: int = Field(1, ge=1, description="CPU cores, and so computing threads, of each worker")
    gpus: float = Field(
        0, ge=0, le=1, description="share of a GPU that each worker has; 0.5 puts two trials of one worker on one GPU"
    )
    address: str | None = Field(
        None, description="a running Ray cluster, host:port or auto; null: workers.address of the base"
    )
    max_failures: int = Field(2, ge=0, description="how often a trial that lost its machine is started again")
    start_limit: int = Field(
        180, ge=1, description="seconds to wait for the cluster, and for the workers of a trial to start"
    )

    @model_validator(mode="after")
    def _ranks_share_no_gpu(self) -> "PlaceSettings":
        if self.workers > 1 and 0 < self.gpus < 1:
            raise ValueError(
                f"place.gpus is {self.gpus:g}: {self.workers} workers of one trial cannot share a GPU; 0 or 1"
            )
        return self


class SearchConfig(BaseModel):
    """One search."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run folder is RUNS/NAME")
    runs: Path = Field(Path("runs"), description="where run folders are; finished stages of audits are found there")
    storage: StorageUrl | None = Field(None, description="as `storage` of an audit; null: that of the base")
    base: Base = Field(
        description="the audit whose data, target and releases are attacked: a configuration file, its path relative "
        "to the folder of this file, or the configuration itself"
    )
    overrides: Overrides = Field(
        (), description="changes to the base: [key.sub=value, ...], or a tree of sections and dotted keys"
    )
    release: tuple[str, ...] = Field(
        description="explanations that the inverter sees beside the prediction, of the base's release.methods; []: none"
    )
    space: SpaceSettings = Field(
        default_factory=SpaceSettings, description="values that each axis may take, and budgets for what they make"
    )
    searcher: Literal["tpe", "random"] = Field(
        "tpe", description="how candidates are proposed: Optuna's tree-structured Parzen estimator, or at random"
    )
    objective: Literal["mse"] = Field(
        "mse", description="what is made small: the squared error on the attacker's own validation images"
    )
    second: Literal["flops", "parameters"] | None = Field(
        None,
        description="what is made small beside the error, for a front of designs of which none is worse in both: "
        "FLOPs of a training step, or numbers learned. Halving goes by the error alone. null: the error is all",
    )
    epochs: int = Field(12, ge=1, description="epochs of a trial that is not ended early, and of the learning rate")
    asha: AshaSettings | None = Field(
        default_factory=AshaSettings, description="how trials are ended early; null: all run to their end"
    )
    presets: bool = Field(True, description="try the known designs first: the search can then only improve on them")
    seed: int = Field(0, ge=0, description="of the proposals; weights and order of images have the base's")
    budget: BudgetSettings = Field(default_factory=BudgetSettings, description="when it ends")
    place: PlaceSettings = Field(default_factory=PlaceSettings, description="where trials run")
    final: FinalSettings | None = Field(
        default_factory=FinalSettings,
        description="the comparison of the best designs with known ones, after the trials; its time is not of the "
        "budget. null: none",
    )
    warm_start: tuple[Path, ...] = Field((), description="run folders of earlier searches to learn from")

    @model_validator(mode="before")
    @classmethod
    def _no_population(cls, value: Any) -> Any:
        if isinstance(value, dict) and ("pbt" in value or value.get("searcher") == "pbt"):
            raise ValueError(PBT)
        return value

    @model_validator(mode="after")
    def _rungs_are_within_a_trial(self) -> "SearchConfig":
        if self.asha and self.asha.grace > self.epochs:
            raise ValueError(f"asha.grace is {self.asha.grace}, and a trial has {self.epochs} epochs; lower it")
        if len(set(self.release)) < len(self.release):
            raise ValueError("release names an explanation twice")
        return self

    @property
    def folder(self) -> Path:
        return self.runs / self.name


def load(path: Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """The search in `path` with `key.sub=value` overrides applied, its base read in.

    Raises:
        InputError: as `config.load`; the base's own content is looked at by `base_audit`.
    """
    found = checked(SearchConfig, apply(load_yaml(path), overrides), str(path))
    return found.model_copy(update={"base": read_base(found.base, path)})


def base_audit(config: SearchConfig, source: str = "search") -> AuditConfig:
    """The base as an audit of the search's own name. `source` names the search in messages.

    Raises:
        InputError: the base is no valid audit, or does not release what the search attacks; a search to start from
            is none.
    """
    tree = changed(config.base, config.overrides)
    owned = {"name": config.name, "runs": str(config.runs)} | ({"storage": config.storage} if config.storage else {})
    base = validated(tree | owned, f"{source}: base")
    for method in config.release:
        if method not in base.release.methods:
            raise InputError(
                f"{source}: release names {method!r}, and the base releases {', '.join(base.release.methods)}. "
                "Choose among these, or add it: overrides={release.methods: [...]}."
            )
    for folder in config.warm_start:
        read_earlier(folder)  # here already, before the base is trained
    if config.final:
        config.final.check(base.attack, source)
    training_of(config, base)
    return base


def training_of(config: SearchConfig, base: AuditConfig) -> TrainingSettings:
    """How a trial is trained where the space does not say otherwise: as the base's inverters are, for the search's
    epochs, and ended by nobody but the search.

    Raises:
        InputError: trials would be looked at less often than they are compared.
    """
    training = base.attack.training.model_copy(update={"epochs": config.epochs, "patience": 0})
    if config.asha and config.asha.grace % training.validate_every:
        raise InputError(
            f"attack.training.validate_every is {training.validate_every} and asha.grace {config.asha.grace} epochs: "
            "trials would be compared at ages at which they are not validated. Make grace a multiple of it."
        )
    return training
