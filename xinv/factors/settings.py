"""The configuration of an analysis of factors: a base audit, and for each factor the settings it is given."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xinv.base import Base, Overrides, read_base
from xinv.bucket import StorageUrl
from xinv.mistakes import checked
from xinv.overrides import apply, load_yaml

OWNED = ("name", "runs", "workers", "track", "storage", "cache_gib")
"""Sections of an audit that the analysis decides for every trial."""


class Factor(BaseModel):
    """One thing that is varied while the rest stays as the base has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    title: str = Field("", description="how the report calls it; empty: its name")
    axis: Literal["categorical", "number"] = Field(
        "categorical", description="how the plot draws the settings: side by side, or at the numbers that they are"
    )
    log: bool = Field(False, description="with axis: number, a logarithmic scale")
    base: bool = Field(True, description="show the base, as configured, beside the settings")
    settings: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="label -> what differs from the base: a tree of sections, or dotted keys. A tree is merged into "
        "the base, the value of a dotted key replaces what is there, as on the command line; {} is the base itself",
    )

    @model_validator(mode="after")
    def _labels_are_numbers(self) -> "Factor":
        if self.log and self.axis != "number":
            raise ValueError("log is for axis: number")
        if self.axis == "number":
            for label in self.settings:
                value = _number(label)
                if value is None or (self.log and value <= 0):
                    raise ValueError(
                        f"the setting {label!r} is no {'positive ' if self.log else ''}number; axis: number needs "
                        "labels that are, or use axis: categorical"
                    )
        return self


class TrialSettings(BaseModel):
    """Where trials run. Nothing here changes a result beyond rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_once: int | None = Field(
        None, ge=1, description="worker processes, each with one piece of work; null: as many as CPUs and GPUs allow"
    )
    cpus: int = Field(1, ge=1, description="CPU cores, and so computing threads, of each")
    gpus: float = Field(0, ge=0, le=1, description="share of a GPU that each has; 0.5 puts two on one GPU")
    address: str | None = Field(
        None, description="a running Ray cluster, host:port or auto; null: workers.address of the base"
    )
    max_failures: int = Field(2, ge=0, description="how often work that lost its machine is started again")
    start_limit: int = Field(180, ge=1, description="seconds to wait for the cluster, and for a first worker process")
    in_turn: bool = Field(
        False,
        description="one trial after another, each training on all the ranks of the base's `workers`: for networks too "
        "large for one process. at_once, cpus, gpus, address and the limits above then have no meaning",
    )


class FactorsConfig(BaseModel):
    """An analysis of factors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run folder is RUNS/NAME")
    runs: Path = Field(
        Path("runs"), description="where run folders are; each trial has its own, RUNS/NAME.FACTOR.SETTING"
    )
    storage: StorageUrl | None = Field(None, description="as `storage` of an audit; null: that of the base")
    base: Base = Field(
        description="the audit that is varied: a configuration file, its path relative to the folder of this file, or "
        "the configuration itself"
    )
    overrides: Overrides = Field(
        (), description="changes to the base for all trials: [key.sub=value, ...], or as in a setting"
    )
    factors: dict[str, Factor] = Field(min_length=1, description="what is varied, one at a time")
    trials: TrialSettings = Field(default_factory=TrialSettings, description="where trials run")

    @model_validator(mode="after")
    def _names_fit_folders(self) -> "FactorsConfig":
        for name in self.factors:
            if slug(name) != name or not name:
                raise ValueError(f"the factor name {name!r} is not fit for a folder; letters, digits, _ and - are")
        return self

    @property
    def folder(self) -> Path:
        return self.runs / self.name


def load(path: Path, overrides: Sequence[str] = ()) -> FactorsConfig:
    """The analysis in `path` with `key.sub=value` overrides applied, its base read in.

    Raises:
        InputError: as `config.load`; the trials' own configurations are looked at by `trials_of`.
    """
    found = checked(FactorsConfig, apply(load_yaml(path), overrides), str(path))
    return found.model_copy(update={"base": read_base(found.base, path)})


def slug(label: str) -> str:
    """`label` as a part of a folder's name: what is no letter, digit, dot or _ becomes a dash."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-")


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None
