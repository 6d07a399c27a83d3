"""The course of a search: which candidate is next, and what is known of those before. No Ray and no clock of its own.

All that it decides follows from the record (`record.py`), which it reads first and writes before anything goes on.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xinv.errors import InputError, WorkError
from xinv.files import digest
from xinv.search.record import Past, Record, State, Trial, read_earlier
from xinv.search.settings import SearchConfig
from xinv.search.study import Outcome, Study, Suggested, UnheldError
from xinv.search.task import Candidate, Pricing, Space, Task

PROBES = 64
"""Candidates at random that are looked at before a space is called empty."""
REFUSALS = 200
"""Candidates in a row that are refused before a space is called exhausted."""
HOPELESS = 5
"""Trials that may fail before any has come as far as a validation."""
SHOWN = 3
"""Best candidates that are taken over from a search on other data, whose scores mean nothing here."""


class Course:
    """One search under way.

    Args:
        config, task, space: what is searched.
        price: what a candidate takes.
        record: open, its past read.
        clock: seconds, of this start of the search.
    """

    def __init__(
        self, config: SearchConfig, task: Task, space: Space, price: Pricing, record: Record, clock: Callable[[], float]
    ) -> None:
        self.config, self.task, self.space, self.price, self.record = config, task, space, price, record
        self._clock, self._before = clock, record.past.elapsed
        self._study = Study(config.searcher, config.seed, 2 if config.second else 1)
        self._seen: dict[str, str] = {}  # digest of a candidate -> its trial
        self.live: set[str] = set()
        self.exhausted = False
        """No further candidate was found that is neither refused nor known."""
        described = task.described()
        if self.past.task is None:
            record.add(kind="task", **described)
        elif self.past.task["task"] != described["task"]:
            raise InputError(
                f"{record.path} was made on other data ({self.past.task['images']}, {self.past.task['releases']}) than "
                f"there is now ({described['images']}, {described['releases']}). Give the search another name "
                "(name=...)."
            )
        self._fixed = self._first_candidates()
        for line in list(self.past.lines):
            self._replay(line)
        numbers = [line["proposal"] for line in self.past.lines if line.get("proposal") is not None]
        self._proposals = 1 + max(numbers, default=-1)
        self._open = [trial.id for trial in self.past.trials.values() if trial.state == "running"]

    @property
    def past(self) -> Past:
        return self.record.past

    def elapsed(self) -> float:
        """Seconds spent on trials, by all starts of the search."""
        return self._before + self._clock()

    def time_is_up(self) -> bool:
        minutes = self.config.budget.minutes
        return minutes is not None and self.elapsed() >= 60 * minutes

    def over(self) -> bool:
        """Whether nothing is left to do: no trial is open, and none may begin."""
        waits = any(trial.state == "running" for trial in self.past.trials.values())
        return self.time_is_up() or (not waits and len(self.past.trials) >= self.config.budget.trials)

    def folder(self, trial: str) -> Path:
        return self.config.folder / "trials" / trial

    # ------------------------------------------------------------------------------------------------- what comes next

    def check(self) -> None:
        """InputError where the space has nothing to offer: every candidate looked at breaks a budget."""
        probe, reason = Study("random", self.config.seed), ""
        for number in range(PROBES):
            found = self.space.refusal(self.space.propose(probe.ask(str(number), number)))
            if found is None:
                return
            reason = reason or found
        raise InputError(
            f"Every one of {PROBES} candidates drawn at random breaks a budget of the space; the first: {reason} "
            "Raise the budget, or make the space's choices smaller."
        )

    def next(self) -> Trial | None:
        """The trial to run now, from now on live: one that was interrupted, else a new one. None: the search begins
        no more."""
        if self.time_is_up():
            return None
        while self._open:
            trial = self.past.trials[self._open.pop(0)]
            if trial.state == "running":
                self.live.add(trial.id)
                return trial
        if len(self.past.trials) >= self.config.budget.trials or self.exhausted:
            return None
        while self._fixed:
            title, origin, candidate, parameters = self._fixed.pop(0)
            if (begun := self._consider(title, origin, candidate, parameters, None)) is not None:
                return begun
        return self._propose()

    def _propose(self) -> Trial | None:
        for _ in range(REFUSALS):
            proposal, self._proposals = self._proposals, self._proposals + 1
            asked = self._study.ask(_key(proposal), proposal)
            candidate = self.space.propose(asked)
            begun = self._consider("", "proposal", candidate, dict(asked.params), proposal)
            if begun is not None:
                return begun
        self.exhausted = True
        return None

    def _consider(
        self, title: str, origin: str, candidate: Candidate, parameters: dict[str, Any] | None, proposal: int | None
    ) -> Trial | None:
        """Begin a candidate, or note why not."""
        dumped = candidate.model_dump(mode="json")
        twin = self._seen.get(digest(dumped))
        reason = f"the same as trial {twin}" if twin else self.space.refusal(candidate)
        ident = f"{len(self.past.trials):04d}"
        common = {"title": title, "proposal": proposal, "parameters": parameters}
        if reason is not None:
            self.record.add(kind="refused", **common, twin=twin, reason=reason)
            self._refuse(_key(proposal), twin)
            return None
        if candidate.training.epochs != self.config.epochs:
            raise InputError(
                f"The space gives a candidate {candidate.training.epochs} epochs, and a trial of this search has "
                f"{self.config.epochs}: trials would be compared at unlike ages. Leave epochs to the search."
            )
        price = self.price(candidate)
        cost = {"parameters": price.parameters, "flops": price.flops, "memory_bytes": price.memory_bytes}
        self.record.add(kind="begin", trial=ident, **common, origin=origin, candidate=dumped, cost=cost)
        self._seen[digest(dumped)] = ident
        if proposal is None and parameters is not None:
            self._study.know(ident, parameters, self.space.propose)
        self.live.add(ident)
        return self.past.trials[ident]

    def _refuse(self, key: str, twin: str | None) -> None:
        """Tell the searcher of a candidate that is not begun: as its twin's, where that has come to an end."""
        known = self.past.trials[twin] if twin else None
        if known is not None and known.state in ("finished", "stopped"):
            self._study.tell(key, known.state, _scores(known), self._price(known))
        else:
            self._study.tell(key, "refused", {})

    # -------------------------------------------------------------------------------------------------- what came of it

    def report(self, trial: str, epoch: int, mse: float, loss: float, seconds: float) -> bool:
        """One validation of a trial; False where the record has it already (a continued trial tells its last again).

        Args:
            seconds: since the trial's report before this one.
        """
        known = self.past.trials[trial]
        if epoch <= known.epoch:
            return False
        self.record.add(
            kind="report",
            trial=trial,
            epoch=epoch,
            mse=mse,
            loss=loss,
            seconds=round(known.seconds + seconds, 3),
            flops=known.cost["flops"] * self.task.samples * epoch,
            elapsed=round(self.elapsed(), 3),
        )
        return True

    def end(self, trial: str, state: State, reason: str = "") -> None:
        """A trial is over; the searcher learns from it. Its checkpoints go, its network stays where it finished.

        Raises:
            WorkError: so many have failed, and no trial has come as far as its first validation.
        """
        if self.past.trials[trial].state != "running":
            return
        self.record.add(kind="end", trial=trial, state=state, reason=reason)
        self.live.discard(trial)
        shutil.rmtree(self.folder(trial) / "checkpoints", ignore_errors=True)
        self._learn(self.past.trials[trial])
        failed = [one for one in self.past.trials.values() if one.state == "failed"]
        if len(failed) >= HOPELESS and not any(one.reports for one in self.past.trials.values()):
            raise WorkError(f"All of {len(failed)} trials failed; the last: {reason}")

    def pause(self, trial: str) -> None:
        """The search ends before the trial does; its checkpoint stays for another start."""
        self.live.discard(trial)

    def _learn(self, trial: Trial) -> None:
        assert trial.state != "running"
        outcome: Outcome = trial.state
        if outcome == "finished" and not trial.reports:
            outcome = "failed"
        key = _key(trial.proposal) if trial.proposal is not None else trial.id
        self._study.tell(key, outcome, _scores(trial), self._price(trial))

    def _price(self, trial: Trial) -> float | None:
        """The second objective, where there is one."""
        return float(trial.cost[self.config.second]) if self.config.second else None

    # -------------------------------------------------------------------------------------------------- what was before

    def _replay(self, line: dict[str, Any]) -> None:
        """Take the searcher through one line of the record, as it went through it then."""
        if line["kind"] == "begin":
            self._seen[digest(line["candidate"])] = line["trial"]
            key = _key(line["proposal"]) if line["proposal"] is not None else line["trial"]
            if line["parameters"] is not None and self._held(line["parameters"]) is not None:
                self._study.know(key, line["parameters"], self.space.propose)
        elif line["kind"] == "refused" and line["proposal"] is not None:
            if self._held(line["parameters"]) is not None:
                self._study.know(_key(line["proposal"]), line["parameters"], self.space.propose)
                self._replay_refused(line)
        elif line["kind"] == "end":
            self._learn(self.past.trials[line["trial"]])

    def _replay_refused(self, line: dict[str, Any]) -> None:
        """As `_refuse`, by what was known of the twin then: it had ended where its end stands before this line."""
        lines = self.past.lines
        ended = any(one["kind"] == "end" and one["trial"] == line["twin"] for one in lines[: lines.index(line)])
        self._refuse(_key(line["proposal"]), line["twin"] if ended else None)

    def _held(self, parameters: dict[str, Any]) -> Candidate | None:
        """The candidate that the space makes of parameters; None where it does not hold them."""
        suggested = Suggested(parameters)
        try:
            candidate = self.space.propose(suggested)
        except UnheldError:
            return None
        return candidate if suggested.whole() else None

    def _first_candidates(self) -> list[tuple[str, str, Any, dict[str, Any] | None]]:
        """Candidates to begin before any proposal, those aside that the record has: presets, then the best of earlier
        searches on other data. Earlier searches on the same data are told to the searcher here, scores and all."""
        found: list[tuple[str, str, Any, dict[str, Any] | None]] = []
        if self.config.presets:
            for title, candidate in self.space.presets():
                parameters = self.space.parameters(candidate)
                if parameters is not None and self._held(parameters) != candidate:
                    parameters = None
                found.append((title, "preset", candidate, parameters))
        for folder in self.config.warm_start:
            found += self._earlier(folder)
        done = {line["title"] for line in self.past.lines if line["kind"] in ("begin", "refused")}
        return [one for one in found if one[0] not in done]

    def _earlier(self, folder: Path) -> list[tuple[str, str, Any, dict[str, Any] | None]]:
        past = read_earlier(folder)
        assert past.task is not None and self.past.task is not None
        same = past.task["task"] == self.past.task["task"]
        trials = sorted((trial for trial in past.trials.values() if trial.reports), key=lambda trial: trial.score)
        held = [(trial, self._held(trial.parameters)) for trial in trials if trial.parameters is not None]
        if not same:
            best = [(trial, candidate) for trial, candidate in held if candidate is not None][:SHOWN]
            return [(f"{folder.name} {one.id}", "warm", candidate, one.parameters) for one, candidate in best]
        for trial, candidate in held:
            if candidate is not None and trial.state != "running":
                key = f"{folder} {trial.id}"
                self._study.know(key, trial.parameters or {}, self.space.propose)
                self._study.tell(key, trial.state, _scores(trial), self._price(trial))
        return []


def _key(proposal: int | None) -> str:
    return f"proposal {proposal}"


def _scores(trial: Trial) -> dict[int, float]:
    """Lowest error so far by epoch."""
    return {int(report["epoch"]): trial.score_at(report["epoch"]) for report in trial.reports}
