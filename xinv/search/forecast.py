"""How long a search will take, worked out before it begins and again as it goes on: an estimate, by which nothing is
refused.

Work is counted in FLOPs of training, and the speed of the machine is what it has shown: of this search's trials so far,
or, before there are any, of a few steps of its first candidate.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from xinv.parallel import WorkerSettings
from xinv.pool import map_tasks
from xinv.progress import clock
from xinv.report import amounts
from xinv.search.record import Past
from xinv.search.settings import AshaSettings, SearchConfig
from xinv.search.study import Study
from xinv.search.task import Candidate, Pricing, Space, Task
from xinv.train.settings import TrainingSettings
from xinv.train.weights import InverterSpec

DRAWN = 48
"""Proposals at random that are looked at for the usual work of a candidate."""
PRICED = 16
"""Those of them within the budgets whose work is worked out."""


@dataclass(frozen=True)
class Speed:
    """FLOP/s of training that one trial reaches, and what it was measured on."""

    flops: float
    source: str


@dataclass(frozen=True)
class Forecast:
    """What is known of a search's work.

    Attributes:
        config: the search.
        samples: images of an epoch.
        presets: FLOPs of training for each image, of the candidates that are tried first, by title.
        proposal: the same of a proposal, on average.
        width: trials at once.
        timed: speed of the first candidate, where it was measured.
    """

    config: SearchConfig
    samples: int
    presets: Mapping[str, int]
    proposal: float
    width: int
    timed: Speed | None

    def work(self, past: Past) -> float:
        """FLOPs that are left: of trials under way and of those to come, each as far as halving lets it go."""
        config = self.config
        begun = {trial.title for trial in past.trials.values()} | {line["title"] for line in past.refused}
        coming = max(0, config.budget.trials - len(past.trials))
        each = [flops for title, flops in self.presets.items() if title not in begun][:coming]
        images = sum(each) + self.proposal * (coming - len(each))
        found = images * expected_epochs(config.epochs, config.asha)
        for trial in past.trials.values():
            if trial.state == "running":
                found += trial.cost["flops"] * expected_epochs(config.epochs, config.asha, trial.epoch)
        return found * self.samples

    def speed(self, past: Past) -> Speed | None:
        """Of all trials so far, else of the first candidate's few steps; None: nothing is known."""
        timed = [trial for trial in past.trials.values() if trial.seconds > 0]
        if not timed:
            return self.timed
        flops, seconds = sum(trial.flops for trial in timed), sum(trial.seconds for trial in timed)
        return Speed(flops / seconds, f"{len(timed)} trials so far")

    def seconds(self, past: Past) -> float | None:
        """Time that is left, the search's own limit aside; None where the speed is not known."""
        speed = self.speed(past)
        return self.work(past) / (speed.flops * self.width) if speed and speed.flops > 0 else None

    def words(self, past: Past) -> str:
        """The estimate with its arithmetic, in a sentence."""
        config, speed, seconds = self.config, self.speed(past), self.seconds(past)
        if speed is None or seconds is None:
            return "no estimate of the time before the first trial"
        epochs = expected_epochs(config.epochs, config.asha)
        coming = max(0, config.budget.trials - len(past.trials))
        halving = f", {epochs:.1f} of {config.epochs} on average by halving" if config.asha else ""
        found = (
            f"about {clock(seconds)}, an estimate: {coming} trials to come at "
            f"{amounts.flops(self.proposal * self.samples)} an epoch{halving}; "
            f"{amounts.flops(speed.flops)}/s each, from {speed.source}"
        )
        minutes = config.budget.minutes
        if minutes is not None:
            found += f"; it ends after {clock(max(0.0, 60 * minutes - past.elapsed))} at the latest"
        return found


def forecast(
    config: SearchConfig, task: Task, space: Space, price: Pricing, width: int, timed: Speed | None
) -> Forecast:
    """The work of a search, from the costs of its presets and of a sample of proposals drawn at random.

    The searcher will draw others as it learns; and the presets count only where the search tries them.
    """
    presets = {title: price(candidate).flops for title, candidate in _presets(config, space)}
    costs = [price(candidate).flops for candidate in itertools.islice(_drawn(config, space), PRICED)]
    mean = sum(costs) / len(costs) if costs else 0.0
    return Forecast(config, task.samples, presets, mean, width, timed)


def _presets(config: SearchConfig, space: Space) -> list[tuple[str, Candidate]]:
    found = space.presets() if config.presets else []
    return [(title, candidate) for title, candidate in found if space.refusal(candidate) is None]


def _drawn(config: SearchConfig, space: Space) -> Iterator[Candidate]:
    """Proposals at random that keep to the budgets."""
    study = Study("random", config.seed)
    for number in range(DRAWN):
        candidate = space.propose(study.ask(str(number), number))
        if space.refusal(candidate) is None:
            yield candidate


def expected_epochs(epochs: int, asha: AshaSettings | None, age: int = 0) -> float:
    """Epochs that a trial of this age is still expected to get, if one in `asha.reduction` goes on at each rung.

    (Asynchronous halving lets more go on while few trials have come to a rung.)
    """
    alive, found = 1.0, 0.0
    rungs: set[int] = set()
    if asha:
        rung = asha.grace
        while rung < epochs:
            rungs.add(rung)
            rung *= asha.reduction
    for epoch in range(age + 1, epochs + 1):
        found += alive
        if asha and epoch in rungs:
            alive /= asha.reduction
    return found


def time_first(
    config: SearchConfig, task: Task, space: Space, price: Pricing, settings: WorkerSettings
) -> Speed | None:
    """The speed of the first candidate, from a few steps on the kind of machine that trials run on.

    On this machine's CPUs that is done here, which takes a second or two; on a GPU or another cluster in a process
    there. Needs a connection (`parallel.connect`). None where no candidate was found.
    """
    candidates = itertools.chain(_presets(config, space), (("a proposal", one) for one in _drawn(config, space)))
    found = next(candidates, None)
    if found is None:
        return None
    title, candidate = found
    job = task.job(candidate.model_dump(mode="json"), config.folder)
    assert isinstance(job.network, InverterSpec)
    timer = functools.partial(_timer, job.network, job.settings, config.place.cpus)
    if settings.gpus or settings.address is not None:
        (images,) = map_tasks(timer, [0], settings=settings, log=config.folder / "log.txt")
    else:
        images = timer()(0)
    return Speed(images * price(candidate).flops * config.place.workers, f"a few steps of {title}")


def _timer(spec: InverterSpec, settings: TrainingSettings, threads: int) -> Callable[[int], float]:
    """Built where trials run: times a candidate's steps."""
    from xinv.train.pace import images_per_second

    return lambda _: images_per_second(spec, settings, threads)
