"""What is to run: one verb on one configuration, what it needs, and how its settings follow the room that it gets.

A job takes the configuration with it as it was when it was submitted, every default and override resolved: what is
edited while it waits in a queue changes nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from xinv.errors import InputError
from xinv.files import digest
from xinv.overrides import load_yaml
from xinv.parallel import WorkerSettings


class Verb(StrEnum):
    """What can be submitted."""

    audit = "audit"
    search = "search"
    factors = "factors"


WORKERS = {
    Verb.audit: ("workers",),
    Verb.search: ("place", "base.workers"),
    Verb.factors: ("trials", "base.workers"),
}
"""Sections that say where the work runs. The first has the CPUs and GPUs of one process; in `workers` there is also a
number of processes, where a search and an analysis of factors find out by themselves how many fit side by side."""

GIB = 2**30


class Shape(BaseModel):
    """The room of a job: so many machines, each with so much."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = Field(1, ge=1, description="machines")
    cpus: int = Field(1, ge=1, description="CPU cores on each")
    gpus: int = Field(0, ge=0, description="GPUs on each")
    memory: int | None = Field(None, ge=1, description="bytes of memory on each; null: what the site gives by default")

    def words(self) -> str:
        each = [f"{self.cpus} CPUs", *([f"{self.gpus} GPUs"] if self.gpus else [])]
        each += [f"{self.memory / GIB:g} GiB"] if self.memory else []
        return f"{self.nodes} {'node' if self.nodes == 1 else 'nodes'} of {', '.join(each)}"


class Work(BaseModel):
    """One command, validated before it goes anywhere."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verb: Verb
    config: Path = Field(description="its file, as the user named it: for messages alone")
    tree: dict[str, Any] = Field(description="the resolved configuration")
    given: tuple[str, ...] = Field((), description="settings that the command line named, which no job changes")
    name: str = Field(description="name of the run")
    runs: Path = Field(description="absolute path of the folder of run folders")
    identity: str = Field(description="stands for the configuration, but for where it runs")
    processes: int = Field(ge=1, description="training processes at once that the configuration asks for")
    cpus: int = Field(ge=1, description="CPU cores of each")
    gpus: float = Field(ge=0, description="GPUs of each")
    inputs: tuple[Path, ...] = Field((), description="absolute paths of the files and folders that it reads")
    storage: str | None = Field(None, description="URL where finished work is kept as well")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.runs / self.name

    def shape(self) -> Shape:
        """The room on one machine that the configuration asks for."""
        return Shape(cpus=self.processes * self.cpus, gpus=int(-(-self.processes * self.gpus // 1)))

    def workers(self, shape: Shape, address: str | None = None) -> WorkerSettings:
        """The processes of the work in a job of `shape`, those settings heeded that the command line named. As
        `_filling`."""
        section = next(name for name in WORKERS[self.verb] if name.endswith("workers"))
        own: Any = self.tree
        for part in section.split("."):
            own = own[part]
        named = {name: own[name] for name in ("count", "cpus", "gpus") if f"{section}.{name}" in self.given}
        return self._filling(shape, address).model_copy(update=named)

    def _filling(self, shape: Shape, address: str | None) -> WorkerSettings:
        """The processes that fill `shape`: one a GPU, or where there are none, one for each `cpus` cores.

        Args:
            shape: the room of the job.
            address: of the Ray cluster that it runs on; None: it starts its own on one machine.

        Raises:
            InputError: not even one process fits on a node.
        """
        gpu = shape.gpus > 0
        a_node = shape.gpus if gpu else shape.cpus // self.cpus
        if a_node < 1:
            raise InputError(
                f"A training process of {self.config} has {self.cpus} CPU cores, and a node of the job has "
                f"{shape.cpus}. Ask for more (--cpus-per-node), or lower {WORKERS[self.verb][0]}.cpus."
            )
        cpus = max(1, shape.cpus // shape.gpus) if gpu else self.cpus
        return WorkerSettings(address=address, count=shape.nodes * a_node, cpus=cpus, gpus=int(gpu))

    def placed(self, shape: Shape, address: str | None = None) -> list[str]:
        """Settings that make the work fill `shape`, but for those that the command line named. As
        `_filling`."""
        group = self._filling(shape, address)
        fitting: dict[str, Any] = {}
        for section in WORKERS[self.verb]:
            fitting |= {f"{section}.cpus": group.cpus, f"{section}.gpus": group.gpus}
            if section.endswith("workers"):
                fitting[f"{section}.count"] = group.count
            elif group.gpus and 0 < self.gpus < 1:
                fitting[f"{section}.gpus"] = self.gpus  # trials that share a GPU
            if address is not None:
                fitting[f"{section}.address"] = address
        return [f"{key}={value}" for key, value in fitting.items() if key not in self.given]


def verb_of(config: Path) -> Verb:
    """The verb that a configuration file is for, by its sections. InputError as `load_yaml`."""
    tree = load_yaml(config)
    if "factors" in tree:
        return Verb.factors
    return Verb.search if "base" in tree else Verb.audit


def work_of(verb: Verb, config: Path, overrides: tuple[str, ...], needs_inputs: bool = True) -> Work:
    """The work of `xinv VERB CONFIG OVERRIDES`, its configuration read and validated by the verb's own rules.

    `needs_inputs`: whether the files that it reads must be there.

    Raises:
        InputError: the configuration is wrong, or names a file that is not there.
    """
    found = _READERS[verb](config, overrides)
    paths = tuple(dict.fromkeys(path.absolute() for path in found.pop("inputs")))
    missing = [path for path in paths if not path.exists()]
    if missing and needs_inputs:
        raise InputError(f"{config} reads {missing[0]}, which is not there. Put it there, or name another file.")
    given = tuple(override.split("=", 1)[0] for override in overrides)
    return Work(verb=verb, config=config, given=given, inputs=paths, **found)


def _read_audit(config: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    from xinv import config as configs

    found = configs.load(config, overrides)
    tree = found.model_dump(mode="json")
    return {
        "name": found.name,
        "runs": found.runs.absolute(),
        "tree": tree,
        "identity": digest(without(tree, [(section,) for section in configs.UNBOUND])),
        "processes": found.workers.count,
        "cpus": found.workers.cpus,
        "gpus": found.workers.gpus,
        "storage": found.storage,
        "inputs": [*_paths(found.data), *_paths(found.target)],
    }


def _read_search(config: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    from xinv.search import run as searches
    from xinv.search import settings

    found = settings.load(config, overrides)
    base = settings.base_audit(found, str(config))
    tree = searches.resolved(found, base)
    return {
        "name": found.name,
        "runs": found.runs.absolute(),
        "tree": tree,
        "identity": digest(without(tree, settings.UNBOUND)),
        "processes": (found.place.at_once or 1) * found.place.workers,
        "cpus": found.place.cpus,
        "gpus": found.place.gpus,
        "storage": base.storage,
        "inputs": [*_paths(base.data), *_paths(base.target), *found.warm_start],
    }


def _read_factors(config: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    from xinv.factors import run as analyses
    from xinv.factors import settings
    from xinv.factors.trial import trials_of

    found = settings.load(config, overrides)
    trials = trials_of(found, str(config))
    tree = analyses.resolved(found, trials)
    return {
        "name": found.name,
        "runs": found.runs.absolute(),
        "tree": tree,
        "identity": digest(without(tree, analyses.UNBOUND)),
        "processes": found.trials.at_once or 1,
        "cpus": found.trials.cpus,
        "gpus": found.trials.gpus,
        "storage": trials.base.storage,
        "inputs": [path for one in trials.configs.values() for path in (*_paths(one.data), *_paths(one.target))],
    }


_READERS = {Verb.audit: _read_audit, Verb.search: _read_search, Verb.factors: _read_factors}


def without(tree: Mapping[str, Any], paths: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """A copy of `tree` that lacks what `paths` lead to."""
    kept = {}
    for key, value in tree.items():
        deeper = [path[1:] for path in paths if path[0] == key]
        if () not in deeper:
            kept[key] = without(value, deeper) if deeper and isinstance(value, Mapping) else value
    return kept


def _paths(settings: Any) -> Iterator[Path]:
    """Every path in settings, however deep."""
    if isinstance(settings, Path):
        yield settings.expanduser()
    elif isinstance(settings, BaseModel):
        for name in type(settings).model_fields:
            yield from _paths(getattr(settings, name))
    elif isinstance(settings, dict):
        for value in settings.values():
            yield from _paths(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _paths(value)
