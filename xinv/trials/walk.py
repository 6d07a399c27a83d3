"""An audit gone through one stage at a time, so that several audits can share out their stages among processes.

A `Walk` calls the very methods of `Audit`, and so knows no stage by its name. What is finished it takes. What is not,
it notes down as a step, under the id that the stage will have, and goes on: ids follow from the ids of inputs, which
need not exist yet. What a step needs stands in its identity, because that names every input by its id.

Code outside a stage's work that reads an unfinished input fails, of course. Then the steps noted down so far are what
can be known, and another walk, when they are finished, finds the rest.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xinv.audit import Audit, Stop, unseen
from xinv.config import AuditConfig
from xinv.errors import InputError
from xinv.files import digest
from xinv.progress import Progress, silent
from xinv.stage import Finished
from xinv.target import ImportedTarget
from xinv.train.inline import Group

Tell = Callable[[dict[str, Any]], None]
"""Takes one event of a trial: {"kind", ...} as `Tracker.event` has it."""


@dataclass(frozen=True)
class Step:
    """A stage that is not finished: its id, its title, and the ids of the unfinished ones that it reads."""

    id: str
    title: str
    needs: frozenset[str]

    @property
    def kind(self) -> str:
        return self.id.rpartition("-")[0]


class Relay:
    """A recorder that hands on what it hears."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def event(self, kind: str, **fields: Any) -> None:
        self._tell({"kind": kind, **fields})

    def picture(self, name: str, png: bytes, step: int) -> None:
        self._tell({"kind": "picture", "name": name, "step": step, "bytes": len(png)})

    def summary(self, values: Any) -> None:
        self._tell({"kind": "summary", "values": dict(values)})


@dataclass
class Memory:
    """What walks of one process need not look at again: the images of a data section, whose source may be large."""

    images: dict[str, Finished] = field(default_factory=dict)


class _MadeError(Exception):
    """The wanted stage is made: the walk is over. (An exception, because the methods of `Audit` lie in between.)"""


class Walk(Audit):
    """One walk through the stages of an audit.

    Args:
        wanted: id of a stage to make on the way, with `group`, after which the walk ends.
        checked: whether explanations were held against their networks already (`Audit._check_methods`).
    """

    def __init__(
        self,
        config: AuditConfig,
        group: Group,
        memory: Memory,
        *,
        wanted: str | None = None,
        checked: bool = False,
        tell: Tell = lambda event: None,
        progress: Progress = silent,
    ) -> None:
        super().__init__(config, unseen, Relay(tell), group)
        self._memory, self._wanted, self._checked, self._progress = memory, wanted, checked, progress
        self.steps: dict[str, Step] = {}

    def plan(self, until: Stop) -> tuple[dict[str, Step], bool]:
        """The steps that are left up to `until`, and whether these are all that there will be.

        Raises:
            InputError: what can be known already is wrong.
        """
        whole = True
        try:
            self.run(until)
        except (InputError, OSError):
            if not self.steps:
                raise
            whole = False
        return self.steps, whole

    def make(self) -> bool:
        """Make the wanted stage; False where no stage has that id."""
        try:
            self.run("inverters")
        except _MadeError:
            return True
        return False

    def stage(self, kind: str, title: str, identity: dict[str, Any], work: Callable[[Path, Progress], Any]) -> Finished:
        found = self.store.finished(kind, identity)
        if found is not None:
            return found
        ident = self.store.name(kind, identity)
        if ident == self._wanted:
            self.store.make(kind, identity, lambda folder: work(folder, self._progress))
            raise _MadeError
        needs = frozenset(_texts(identity)) & self.steps.keys()
        self.steps.setdefault(ident, Step(ident, title, needs))
        return Finished(ident, self.store.root / ident, None, fresh=False)

    def images(self) -> Finished:
        key = digest([self.config.data.model_dump(mode="json"), self.config.seed])
        if key not in self._memory.images:
            found = super().images()
            if found.id in self.steps:
                return found
            self._memory.images[key] = found
        return self._memory.images[key]

    def _check_methods(self, images: Finished, imported: ImportedTarget | None) -> None:
        if not self._checked and images.id not in self.steps:
            super()._check_methods(images, imported)


def _texts(value: Any) -> Iterator[str]:
    """Every text in an identity; ids of inputs are among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)
