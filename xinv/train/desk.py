"""Where an audit leaves trainings for the ranks that do them, and they their progress and results for it."""

import asyncio
import time
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

    async def post(self, job: str, paced: bool) -> int:
        self._progress = (0, 0, "waiting for the training processes")
        self._jobs.append((job, paced))
        return len(self._jobs) - 1

    async def close(self) -> None:
        self._closed = True

    async def next_job(self, start: str, turn: int, rank: int) -> tuple[int, str, bool] | None:
        """The first job without an outcome, waiting for one; None once the desk is closed.

        What the first rank to ask gets as the `turn`-th job of a start of the group, all its ranks get.
        """
        self._begun.add(rank)
        handed = self._handed.setdefault(start, [])
        while len(handed) <= turn:
            number = len(self._outcomes)
            if self._closed:
                handed.append(None)
            elif number in self._stopped:  # while the group was started again
                self._outcomes[number] = {"stopped": True}
            elif number < len(self._jobs) and not (handed and handed[-1] and handed[-1][0] == number):
                handed.append((number, *self._jobs[number]))
            else:
                await asyncio.sleep(0.05)
        return handed[turn]

    async def tell(self, done: float, total: float, note: str) -> bool:
        """Note how far the job at hand is; returns whether it is to save and stop at once."""
        self._progress = (done, total, note)
        return self._halting

    async def halt(self) -> None:
        """The job at hand saves at its next step and stops; no other one begins."""
        self._closed = self._halting = True

    async def record(self, number: int, event: dict[str, Any]) -> None:
        self._events.setdefault(number, []).append(event)

    async def settle(self, number: int, outcome: dict[str, Any]) -> None:
        self._outcomes.setdefault(number, outcome)

    async def fail(self, start: str, number: int, rank: int, world: int, outcome: dict[str, Any]) -> bool:
        """As `settle`; whether all ranks have failed alike, so that none waits for another within the job."""
        self._outcomes.setdefault(number, outcome)
        told = self._failed.setdefault((start, number), {})
        told[rank] = outcome["message"]
        deadline = time.monotonic() + AGREE
        while len(told) < world and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return len(told) == world and len(set(told.values())) == 1

    async def allow(self, number: int, step: int) -> None:
        """Ranks of a paced job may go on from their validation at `step`."""
        self._allowed[number] = step

    async def stop(self, number: int) -> None:
        """They go no further than that."""
        self._stopped.add(number)

    async def may_pass(self, number: int, step: int) -> bool:
        """Asked by every rank at a validation. What was allowed comes first: no rank stops where another went on."""
        while self._allowed.get(number, -1) < step:
            if self._closed or number in self._stopped:
                return False
            await asyncio.sleep(0.02)
        return True

    async def look(self, number: int, events_seen: int) -> dict[str, Any]:
        jobs = [job for handed in self._handed.values() for job in handed if job]
        return {
            "progress": self._progress,
            "events": self._events.get(number, [])[events_seen:],
            "outcome": self._outcomes.get(number),
            "ranks": len(self._begun),
            "starts": sum(job[0] == number for job in jobs),
        }
