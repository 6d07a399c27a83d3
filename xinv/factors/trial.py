"""From an analysis of factors to its trials: one audit for the base and one for every setting that differs."""

from dataclasses import dataclass
from typing import Any

from xinv.base import changed, trial_workers
from xinv.config import AuditConfig, validated
from xinv.errors import InputError
from xinv.factors.settings import OWNED, FactorsConfig, slug
from xinv.files import digest
from xinv.overrides import apply, leaves

BASE = "as configured"
"""The label of the base."""


@dataclass(frozen=True)
class Use:
    """One setting of one factor, and the trial that answers for it. Settings that come to the same share a trial."""

    factor: str
    label: str
    changes: dict[str, Any]
    run: str  # the name of its trial


@dataclass(frozen=True)
class Trials:
    """The trials of an analysis."""

    base: AuditConfig
    configs: dict[str, AuditConfig]  # by name, the base first
    uses: tuple[Use, ...]
    origins: dict[str, str]  # trial name -> "factor, setting", for messages


def trials_of(config: FactorsConfig, source: str = "factors") -> Trials:
    """Every trial, validated. `source` names the analysis in messages.

    Raises:
        InputError: the base or a setting is no valid audit, named by factor and label; two settings of a factor whose
            folders would have one name.
    """
    tree = changed(config.base, config.overrides)
    owned = {"name": f"{config.name}.base", "runs": str(config.runs)}
    owned |= {"storage": config.storage} if config.storage else {}
    base = validated(tree | owned, f"{source}: base")
    workers = base.workers if config.trials.in_turn else trial_workers(config.trials, base.workers)
    track = base.track if config.trials.in_turn else base.track.model_copy(update={"mode": "disabled"})
    placed = {"workers": workers, "track": track}
    base_trial = base.model_copy(update=placed)
    configs, origins = {base.name: base_trial}, {base.name: BASE}
    by_content = {_content(base): base.name}
    uses = []
    for factor, described in config.factors.items():
        taken: dict[str, str] = {}
        for label, changes in described.settings.items():
            where = f"{source}: factors.{factor}, setting {label!r}"
            name = f"{config.name}.{factor}.{slug(label)}"
            if not slug(label):
                raise InputError(f"{where}: a label needs a letter or a digit, for its folder.")
            if name in taken:
                raise InputError(f"{where}: its folder {name} is that of {taken[name]!r} too; give it another label.")
            taken[name] = label
            trial = _changed(tree, changes, owned | {"name": name}, where)
            run = by_content.setdefault(_content(trial), name)
            if run == name:
                configs[name], origins[name] = trial.model_copy(update=placed), f"{factor}, {label}"
            uses.append(Use(factor, label, changes, run))
    return Trials(base, configs, tuple(uses), origins)


def _changed(tree: dict[str, Any], changes: dict[str, Any], owned: dict[str, Any], where: str) -> AuditConfig:
    try:
        overrides = list(leaves(changes))
        for path, _ in overrides:
            if path[0] in OWNED:
                raise InputError(f"{path[0]} is the same for all trials; set it at the top, or in overrides.")
        return validated(apply(tree, overrides) | owned, where)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(where) else f"{where}: {message}") from None


def _content(config: AuditConfig) -> str:
    """Stands for what an audit computes, whatever it is called and wherever it runs."""
    return digest({key: value for key, value in config.model_dump(mode="json").items() if key not in OWNED})
