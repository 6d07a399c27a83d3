"""Where an audit leaves trainings for the ranks that do them, and they their progress and results for it.

Who asks for what is not there yet waits here until it is, or for so long as they have said: nobody asks twice. On a
small machine each question takes time from the training.
"""

import asyncio
from collections.abc import Callable
from typing import Any

AGREE = 5.0
"""Seconds within which the ranks of a failed job must have told the same error to stay together."""


class Desk:
    """Between the audit and the ranks: jobs in one direction, progress and results in the other. `train.run` makes it
    an actor of Ray's."""

    def __init__(self) -> None:
        self._jobs: list[tuple[str, bool]] = []
        self._closed = False
        self._outcomes: dict[int, dict[str, Any]] = {}
        self._progress: tuple[float, float, str] = (0, 0, "")
        self._events: dict[int, list[dict[str, Any]]] = {}
        self._begun: set[int] = set()
        self._handed: dict[str, list[tuple[int, str, bool] | None]] = {}  # by start of the group
        self._allowed: dict[int, int] = {}
        self._stopped: set[int] = set()
        self._halting = False
        self._failed: dict[tuple[str, int], dict[int, str]] = {}
        self._change = asyncio.Event()

    def _tell_all(self) -> None:
        """Let all who wait look again."""
        before, self._change = self._change, asyncio.Event()
        before.set()

    async def _until(self, true: Callable[[], bool], seconds: float | None = None) -> bool:
        """Whether it is true, waiting until it is, at most for so long."""
        try:
            async with asyncio.timeout(seconds):
                while not true():
                    await self._change.wait()
        except TimeoutError:
            return true()
        return True

    async def post(self, job: str, paced: bool) -> int:
        self._progress = (0, 0, "waiting for the training processes")
        self._jobs.append((job, paced))
        self._tell_all()
        return len(self._jobs) - 1

    async def close(self) -> None:
        self._closed = True
        self._tell_all()

    async def next_job(self, start: str, turn: int, rank: int) -> tuple[int, str, bool] | None:
        """The first job without an outcome, waiting for one; None once the desk is closed.

        What the first rank to ask gets as the `turn`-th job of a start of the group, all its ranks get.
        """
        self._begun.add(rank)
        handed = self._handed.setdefault(start, [])
        await self._until(lambda: len(handed) > turn or self._hand_out(handed))
        return handed[turn]

    def _hand_out(self, handed: list[tuple[int, str, bool] | None]) -> bool:
        """Add what comes next; whether there was anything."""
        while (number := len(self._outcomes)) in self._stopped and not self._closed:
            self._settle(number, {"stopped": True})  # while the group was started again
        if self._closed:
            handed.append(None)
        elif number < len(self._jobs) and not (handed and handed[-1] and handed[-1][0] == number):
            handed.append((number, *self._jobs[number]))
        else:
            return False
        return True

    async def tell(self, done: float, total: float, note: str) -> bool:
        """Note how far the job at hand is; returns whether it is to save and stop at once."""
        self._progress = (done, total, note)
        return self._halting

    async def halt(self) -> None:
        """The job at hand saves at its next step and stops; no other one begins."""
        self._closed = self._halting = True
        self._tell_all()

    async def record(self, number: int, event: dict[str, Any]) -> None:
        self._events.setdefault(number, []).append(event)
        self._tell_all()

    async def settle(self, number: int, outcome: dict[str, Any]) -> None:
        self._settle(number, outcome)

    def _settle(self, number: int, outcome: dict[str, Any]) -> None:
        self._outcomes.setdefault(number, outcome)
        self._tell_all()

    async def fail(self, start: str, number: int, rank: int, world: int, outcome: dict[str, Any]) -> bool:
        """As `settle`; whether all ranks have failed alike, so that none waits for another within the job."""
        told = self._failed.setdefault((start, number), {})
        told[rank] = outcome["message"]
        self._settle(number, outcome)
        return await self._until(lambda: len(told) == world, AGREE) and len(set(told.values())) == 1

    async def allow(self, number: int, step: int) -> None:
        """Ranks of a paced job may go on from their validation at `step`."""
        self._allowed[number] = step
        self._tell_all()

    async def stop(self, number: int) -> None:
        """They go no further than that."""
        self._stopped.add(number)
        self._tell_all()

    async def may_pass(self, number: int, step: int) -> bool:
        """Asked by every rank at a validation. What was allowed comes first: no rank stops where another went on."""

        def allowed() -> bool:
            return self._allowed.get(number, -1) >= step

        await self._until(lambda: allowed() or self._closed or number in self._stopped)
        return allowed()

    async def ended(self, number: int, patience: float) -> bool:
        """Whether a job has its outcome, waiting at most `patience` seconds for it."""
        return await self._until(lambda: number in self._outcomes, patience)

    async def look(self, number: int, events_seen: int, patience: float) -> dict[str, Any]:
        """How a job stands, as soon as it has its outcome or an unseen event, or after `patience` seconds."""
        await self._until(lambda: number in self._outcomes or len(self._events.get(number, [])) > events_seen, patience)
        jobs = [job for handed in self._handed.values() for job in handed if job]
        return {
            "progress": self._progress,
            "events": self._events.get(number, [])[events_seen:],
            "outcome": self._outcomes.get(number),
            "ranks": len(self._begun),
            "starts": sum(job[0] == number for job in jobs),
        }
