"""What is to run: one verb on one configuration, what it needs, and how its settings follow the room that it gets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from xinv.errors import InputError
from xinv.files import digest
from xinv.overrides import apply, load_yaml

Verb = Literal["audit", "search", "factors"]

ADDRESS = {"audit": "workers.address", "search": "place.address", "factors": "trials.address"}
"""The setting that names a running Ray cluster."""

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
    config: Path = Field(description="its file, as the user named it")
    overrides: tuple[str, ...] = ()
    name: str = Field(description="name of the run")
    runs: Path = Field(description="absolute path of the folder of run folders")
    identity: str = Field(description="stands for the resolved configuration, but for where it runs")
    processes: int = Field(ge=1, description="training processes at once that the configuration asks for")
    cpus: int = Field(ge=1, description="CPU cores of each")
    gpus: float = Field(ge=0, description="GPUs of each")
    inputs: tuple[Path, ...] = Field((), description="absolute paths of the files and folders that it reads")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.runs / self.name

    def shape(self) -> Shape:
        """The room on one machine that the configuration asks for."""
        return Shape(cpus=self.processes * self.cpus, gpus=int(-(-self.processes * self.gpus // 1)))

    def placed(self, shape: Shape) -> list[str]:
        """Settings that make the work fill `shape`: a process a GPU, or where there are none, for each `cpus` cores.

        Raises:
            InputError: not even one process fits on a node.
        """
        given = {override.split("=", 1)[0] for override in self.overrides}
        gpu = shape.gpus > 0
        a_node = shape.gpus if gpu else shape.cpus // self.cpus
        cpus = max(1, shape.cpus // shape.gpus) if gpu else self.cpus
        if a_node < 1:
            raise InputError(
                f"A training process of {self.config} has {self.cpus} CPU cores, and a node of the job has "
                f"{shape.cpus}. Ask for more (--cpus-per-node), or lower {_CPUS[self.verb]}."
            )
        fitting = _FITTING[self.verb](shape.nodes * a_node, cpus, gpu)
        return [f"{key}={value}" for key, value in fitting.items() if key not in given]


def _audit(processes: int, cpus: int, gpu: bool) -> dict[str, str]:
    return {"workers.count": str(processes), "workers.cpus": str(cpus), "workers.gpus": "1" if gpu else "0"}


def _search(processes: int, cpus: int, gpu: bool) -> dict[str, str]:
    # As many trials at once as there is room for is what a search does by itself.
    return {"place.cpus": str(cpus), **({"place.gpus": "1"} if gpu else {})}


def _factors(processes: int, cpus: int, gpu: bool) -> dict[str, str]:
    return {"trials.cpus": str(cpus), **({"trials.gpus": "1"} if gpu else {})}


_FITTING = {"audit": _audit, "search": _search, "factors": _factors}
_CPUS = {"audit": "workers.cpus", "search": "place.cpus", "factors": "trials.cpus"}


def verb_of(config: Path) -> Verb:
    """The verb that a configuration file is for, by its sections. InputError as `load_yaml`."""
    tree = load_yaml(config)
    if "factors" in tree:
        return "factors"
    return "search" if "base" in tree else "audit"


def work_of(verb: Verb, config: Path, overrides: tuple[str, ...]) -> Work:
    """The work of `xinv VERB CONFIG OVERRIDES`, its configuration read and validated by the verb's own rules.

    Raises:
        InputError: the configuration is wrong, or names a file that is not there.
    """
    found = _READERS[verb](config, overrides)
    paths = tuple(dict.fromkeys(path.absolute() for path in (config, *found.pop("inputs"))))
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise InputError(f"{config} reads {missing[0]}, which is not there. Put it there, or name another file.")
    return Work(verb=verb, config=config, overrides=overrides, inputs=paths, **found)


def _read_audit(config: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    from xinv import config as configs

    found = configs.load(config, overrides)
    return {
        "name": found.name,
        "runs": found.runs.absolute(),
        "identity": digest(found.model_dump(mode="json", exclude=set(configs.UNBOUND))),
        "processes": found.workers.count,
        "cpus": found.workers.cpus,
        "gpus": found.workers.gpus,
        "inputs": [*_paths(found.data), *_paths(found.target), *_recipes(config, overrides)],
    }


def _read_search(config: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    from xinv.search import settings as searches

    found = searches.load(config, overrides)
    base = searches.base_audit(found, str(config))
    return {
        "name": found.name,
        "runs": found.runs.absolute(),
        "identity": digest(
            [found.model_dump(mode="json", exclude={"place", "base"}), base.model_dump(mode="json", exclude={"workers"})]
        ),
        "processes": (found.place.at_once or 1) * found.place.workers,
        "cpus": found.place.cpus,
        "gpus": found.place.gpus,
        "inputs": [*_paths(base.data), *_paths(base.target), *_base(config, overrides), *found.warm_start],
    }


def _read_factors(config: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    from xinv.factors import settings as analyses
    from xinv.factors.trial import trials_of

    found = analyses.load(config, overrides)
    trials = trials_of(found, str(config))
    audits = [trial.config for trial in trials]
    return {
        "name": found.name,
        "runs": found.runs.absolute(),
        "identity": digest([audit.model_dump(mode="json", exclude={"workers"}) for audit in audits]),
        "processes": found.trials.at_once or 1,
        "cpus": found.trials.cpus,
        "gpus": found.trials.gpus,
        "inputs": [*(path for audit in audits for path in (*_paths(audit.data), *_paths(audit.target))),
                   *_base(config, overrides)],
    }  # fmt: skip


_READERS = {"audit": _read_audit, "search": _read_search, "factors": _read_factors}


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


def _recipes(config: Path, overrides: tuple[str, ...]) -> Iterator[Path]:
    """Files of inverters that searches found."""
    from xinv.train.recipe import KEY

    named = apply(load_yaml(config), overrides).get(KEY) or ()
    yield from map(Path, [named] if isinstance(named, str) else named)


def _base(config: Path, overrides: tuple[str, ...]) -> Iterator[Path]:
    """The file of a base that is one."""
    base = apply(load_yaml(config), overrides).get("base")
    if isinstance(base, str):
        yield config.parent / Path(base).expanduser()
