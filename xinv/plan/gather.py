"""ZeRO-3's gathered layers: which weights a rank holds in full at each operation of a step.

A replay of DeepSpeed's partitioned_param_coordinator from the second step on, when it knows the order of the modules: a
module's weights are gathered before it runs, those of the next modules ahead of it, and they are let go after it unless
they will soon be used again. What is gathered together arrives in one flat tensor, and is copied out of it when the
first of it is used; the flat tensor stays until the last of it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from xinv.plan.memory import NUMBER
from xinv.plan.section import Section
from xinv.plan.step import Step


@dataclass(frozen=True)
class Gathered:
    """Bytes with each operation, and what is more than that for a moment before one: (operation, bytes in all)."""

    held: np.ndarray
    passing: tuple[tuple[int, int], ...]

    @classmethod
    def none(cls, operations: int) -> "Gathered":
        return cls(np.zeros(operations, dtype=np.int64), ())


@dataclass
class _Flight:
    """Weights that are gathered together."""

    bytes: int
    members: list[int]
    pending: set[int] = field(default_factory=set)
    copied: bool = False


@dataclass(frozen=True)
class _Visit:
    """A module at work, from operation `start` to `stop`."""

    parameters: tuple[int, ...]
    start: int
    stop: int


def gathered(step: Step, section: Section, world: int, persistent: frozenset[int]) -> Gathered:
    """The replay for one rank of `world`; `persistent` weights are always there and do not count."""
    return _Replay(step, section, world, persistent).run()


class _Replay:
    def __init__(self, step: Step, section: Section, world: int, persistent: frozenset[int]) -> None:
        self.step, self.section, self.world, self.persistent = step, section, world, persistent
        self.visits = _visits(step)
        self.flights: dict[int, _Flight] = {}
        self.present: set[int] = set()
        self.bytes = 0
        self.passing: list[tuple[int, int]] = []
        operations = len(step.held(1))
        self.held = np.zeros(operations, dtype=np.int64)

    def run(self) -> Gathered:
        queue = [number for visit in self.visits for number in visit.parameters]
        before = 0
        ahead = self._prefetch(queue, 0, 0)  # the outermost module has no weights of its own, and is entered first
        for place, visit in enumerate(self.visits):
            self.held[before : visit.start] = self.bytes
            before = visit.start
            self._fetch(visit)
            done = sum(len(one.parameters) for one in self.visits[: place + 1])
            ahead = self._prefetch(queue, max(ahead, done), visit.start)
            self.held[before : visit.stop + 1] = self.bytes
            before = visit.stop + 1
            self._release(place)
        self.held[before:] = self.bytes
        return Gathered(self.held, tuple(self.passing))

    def _fetch(self, visit: _Visit) -> None:
        lacking = [one for one in visit.parameters if self._absent(one)]
        if lacking:
            self._launch(lacking)
        for number in visit.parameters:
            flight = self.flights.get(number)
            if flight is None:
                continue
            if not flight.copied:
                flight.copied = True
                if len(flight.members) > 1:
                    self.bytes += NUMBER * sum(self.step.parameters[one] for one in flight.members)
                self.present.update(flight.members)
            self.passing.append((visit.start, self.bytes))
            flight.pending.discard(number)
            del self.flights[number]
            if not flight.pending and len(flight.members) > 1:
                self.bytes -= flight.bytes

    def _absent(self, number: int) -> bool:
        return number not in self.persistent and number not in self.present and number not in self.flights

    def _launch(self, members: Sequence[int]) -> None:
        pieces = sum(-(-self.step.parameters[one] // self.world) for one in members)
        flight = _Flight(NUMBER * self.world * pieces, list(members), set(members))
        self.bytes += flight.bytes
        for one in members:
            self.flights[one] = flight

    def _prefetch(self, queue: Sequence[int], ahead: int, operation: int) -> int:
        live = sum(self.step.parameters[one] for one in (*self.present, *self.flights))
        room = min(self.section.max_live - live, self.section.prefetch_bucket)
        chosen: list[int] = []
        taken = 0
        while ahead < len(queue) and taken < room:
            number = queue[ahead]
            ahead += 1
            if self._absent(number) and number not in chosen:
                chosen.append(number)
                taken += self.step.parameters[number]
        if chosen:
            self._launch(chosen)
            self.passing.append((operation, self.bytes))
        return ahead

    def _release(self, place: int) -> None:
        going = {one for one in self.visits[place].parameters if one in self.present}
        passed = 0
        for visit in self.visits[place + 1 :]:
            if passed >= self.section.max_reuse_distance or not going:
                break
            going -= set(visit.parameters)
            passed += sum(self.step.parameters[one] for one in visit.parameters)
        for one in going:
            self.present.discard(one)
            self.bytes -= NUMBER * self.step.parameters[one]


def _visits(step: Step) -> list[_Visit]:
    """The modules in the order in which they work: whose weights are read, and in backward whose gradients come."""
    of_owner: dict[str, list[int]] = {}
    for number, owner in enumerate(step.owners):
        of_owner.setdefault(owner, []).append(number)
    touched = sorted([*step.uses, *((max(0, place - 1), number) for place, number in step.arrivals)])
    spans: list[tuple[str, int, int]] = []
    for operation, number in touched:
        owner = step.owners[number]
        if spans and spans[-1][0] == owner:
            spans[-1] = (owner, spans[-1][1], operation)
        else:
            spans.append((owner, operation, operation))
    return [_Visit(tuple(of_owner[owner]), start, stop) for owner, start, stop in spans]
