"""Which piece of work is next, when pieces need each other and several workers ask."""

from collections.abc import Iterable, Mapping

from xinv.trials.walk import Step

FINISH = "trial"
"""Kind of the last step of a trial: its scores and its report."""


class Schedule:
    """Steps by id, each to be done once, however many trials want it. No clock and no Ray in here.

    A step is ready when all that it needs is done. Of the ready ones the last steps of trials come first, for a
    finished trial can be looked at; then those with the longest chain of others waiting behind them (a target before an
    inverter), then the oldest.
    """

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}
        self.owner: dict[str, str] = {}  # the trial whose configuration makes the step
        self.trials: dict[str, set[str]] = {}  # every step that a trial waits for
        self.running: set[str] = set()
        self.finished: set[str] = set()
        self.failures: dict[str, Exception] = {}

    def add(self, trial: str, steps: Iterable[Step]) -> None:
        """What `trial` waits for. A step that another trial wants already is that same step."""
        wanted = self.trials.setdefault(trial, set())
        for step in steps:
            self.steps.setdefault(step.id, step)
            self.owner.setdefault(step.id, trial)
            wanted.add(step.id)

    def next(self) -> Step | None:
        """A ready step, from now on running; None where there is none at the moment."""
        ready = self.waiting()
        if not ready:
            return None
        behind = self._behind()
        chosen = min(ready, key=lambda step: (step.kind != FINISH, -behind[step.id]))
        self.running.add(chosen.id)
        return chosen

    def waiting(self) -> list[Step]:
        """The ready steps that nobody has taken yet."""
        taken = self.running | self.finished | self.failures.keys()
        return [step for step in self.steps.values() if step.id not in taken and step.needs <= self.finished]

    def done(self, ident: str) -> None:
        self.running.remove(ident)
        self.finished.add(ident)

    def failed(self, ident: str, error: Exception) -> None:
        self.running.remove(ident)
        self.failures[ident] = error

    def settled(self) -> list[str]:
        """Trials for which all is done that they wait for, and which may turn out to want more."""
        return [trial for trial, wanted in self.trials.items() if wanted <= self.finished]

    def lost(self) -> dict[str, str]:
        """Trials that cannot be finished, each with the id of the failed step in its way."""
        return {
            trial: min(wanted & self.failures.keys())
            for trial, wanted in self.trials.items()
            if wanted & self.failures.keys()
        }

    def share(
        self, seconds: Mapping[str, list[float]], under_way: Mapping[str, float], more: int
    ) -> tuple[float, float]:
        """(work done, all work) in estimated seconds: each step counts as the mean of its kind so far, one of an unseen
        kind as the mean of all.

        Args:
            seconds: kind -> how long its finished steps took.
            under_way: running step -> share of it that is done, in [0, 1].
            more: last steps of trials that are not in the schedule yet.
        """
        known = [value for values in seconds.values() for value in values]
        usual = sum(known) / len(known) if known else 1.0

        def weight(kind: str) -> float:
            values = seconds.get(kind)
            return sum(values) / len(values) if values else usual

        out_of_reach = {step for trial in self.lost() for step in self.trials[trial]} - self.finished - self.running
        counted = [step for step in self.steps.values() if step.id not in out_of_reach]
        total = sum(weight(step.kind) for step in counted) + more * weight(FINISH)
        done = sum(weight(step.kind) for step in counted if step.id in self.finished)
        done += sum(weight(self.steps[ident].kind) * share for ident, share in under_way.items())
        return done, total

    def _behind(self) -> dict[str, int]:
        """Length of the longest chain of steps that waits for each step."""
        found: dict[str, int] = dict.fromkeys(self.steps, 0)
        # A step is noted down after what it needs, so from the end every chain is known before it is used.
        for step in reversed(self.steps.values()):
            for need in step.needs:
                found[need] = max(found[need], found[step.id] + 1)
        return found
