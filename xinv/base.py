"""The audit that a search or an analysis of factors starts from: read, changed, and where its trials run."""

from pathlib import Path
from typing import Any, Protocol

from xinv.overrides import apply, leaves, load_yaml
from xinv.parallel import WorkerSettings

Base = Path | dict[str, Any]
"""The key `base`: a configuration file, its path relative to the file that names it, or its content."""
Overrides = tuple[str, ...] | dict[str, Any]
"""The key `overrides`: key.sub=value, ..., or a tree of sections and dotted keys."""


class Place(Protocol):
    """Where trials run, as a search and an analysis say it."""

    @property
    def cpus(self) -> int: ...

    @property
    def gpus(self) -> float: ...

    @property
    def address(self) -> str | None: ...

    @property
    def max_failures(self) -> int: ...

    @property
    def start_limit(self) -> int: ...


def read_base(base: Base, named_in: Path) -> dict[str, Any]:
    """The base's content; `named_in`: the file that names it. InputError: its own file is missing or no YAML."""
    return base if isinstance(base, dict) else load_yaml(named_in.parent / base.expanduser())


def changed(base: Base, overrides: Overrides) -> dict[str, Any]:
    """The content of a base with `overrides` applied. InputError for one that does not apply."""
    assert isinstance(base, dict), "load() has read it"
    return apply(base, list(overrides) if isinstance(overrides, tuple) else leaves(overrides))


def trial_workers(place: Place, base: WorkerSettings) -> WorkerSettings:
    """The process that a trial runs in, on the cluster of `place`, or of the base."""
    return WorkerSettings(
        address=place.address or base.address,
        count=1,
        cpus=place.cpus,
        gpus=1 if place.gpus else 0,
        max_failures=place.max_failures,
        start_limit=place.start_limit,
    )
