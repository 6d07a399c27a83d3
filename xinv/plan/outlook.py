"""`xinv plan`: what an audit's trainings take on given ranks, what fits, what lies on disk, how long it takes."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from xinv.config import AuditConfig
from xinv.plan.advice import Option, Ranks, Trial, precision_of
from xinv.plan.footprint import Footprint, checkpoint_bytes, footprint
from xinv.plan.pace import Rate, measured, seconds
from xinv.plan.rehearsal import Rehearsed, Training, rehearse
from xinv.plan.room import HEADROOM, Room
from xinv.progress import Progress, silent


@dataclass(frozen=True)
class Prospect:
    """One training. `recommended`: none where nothing fits, and then `instead` says what would.

    `flops`: of an optimizer step over all ranks. `seconds`: of one such training, where a rate is known.
    """

    training: Training
    parameters: int
    flops: int
    configured: Option
    options: tuple[Option, ...]
    recommended: Option | None
    instead: tuple[str, ...]
    checkpoint: int
    rate: Rate | None
    seconds: float | None


@dataclass(frozen=True)
class Outlook:
    """All of an audit."""

    ranks: Ranks
    room: Room
    prospects: tuple[Prospect, ...]
    disk: Footprint
    assumed: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """Of all trainings, one after another."""
        known = [one.seconds * one.training.times for one in self.prospects if one.seconds is not None]
        return sum(known) if len(known) == len(self.prospects) else None

    def as_json(self) -> dict[str, Any]:
        """Everything, plain data; bytes, FLOPs and seconds."""
        hours = None if self.seconds is None else self.seconds * self.ranks.count / 3600
        return {
            "ranks": asdict(self.ranks),
            "room": {**asdict(self.room), "usable": self.room.usable, "headroom": HEADROOM},
            "trainings": [_described(one) for one in self.prospects],
            "disk": asdict(self.disk),
            "seconds": self.seconds,
            "rank_hours": hours,
            "assumed": list(self.assumed),
        }


def outlook(
    config: AuditConfig,
    ranks: Callable[[Training], Ranks],
    room: Room,
    rate: Rate | None = None,
    measure: bool = False,
    progress: Progress = silent,
) -> Outlook:
    """Work everything out. InputError where the configuration cannot be carried out.

    Args:
        ranks: which ranks a training has, and in which precision they compute.
        rate: of a rank, as the user states it; `measure`: found by a few steps here in its place.
    """
    rehearsed: Rehearsed = rehearse(config)
    prospects = []
    for number, training in enumerate(rehearsed.trainings):
        progress(number, len(rehearsed.trainings), training.title)
        prospects.append(_prospect(training, ranks(training), room, rate, measure))
    shared = ranks(rehearsed.trainings[0])
    return Outlook(shared, room, tuple(prospects), footprint(config, rehearsed), rehearsed.assumed)


def _prospect(training: Training, ranks: Ranks, room: Room, rate: Rate | None, measure: bool) -> Prospect:
    trial = Trial(training, ranks)
    best = trial.recommended(room.usable)
    step = trial.step(training.job.settings.recompute)
    micro = best.micro_batch if best else 1
    pace = measured(training, micro) if measure else rate
    stage = best.zero_stage if best else training.job.settings.zero_stage
    return Prospect(
        training=training,
        parameters=step.total,
        flops=step.flops(training.job.settings.batch_size),
        configured=trial.configured(),
        options=tuple(trial.table()),
        recommended=best,
        instead=() if best else tuple(trial.instead(room.usable)),
        checkpoint=checkpoint_bytes(step, stage),
        rate=pace,
        seconds=None if pace is None else seconds(training, step, pace, ranks.count),
    )


def ranks_for(count: int, room: Room, bf16: bool) -> Callable[[Training], Ranks]:
    """The ranks of every training; `bf16`: whether their hardware computes it."""
    return lambda training: Ranks(count, room.device, precision_of(training.job.settings, room.device, bf16))


def _described(one: Prospect) -> dict[str, Any]:
    return {
        "titles": list(one.training.titles),
        "setting": one.training.setting,
        "objective": one.training.job.objective,
        "times": one.training.times,
        "images": one.training.images,
        "parameters": one.parameters,
        "flops": one.flops,
        "configured": _option(one.configured),
        "options": [_option(option) for option in one.options],
        "recommended": None if one.recommended is None else _option(one.recommended),
        "instead": list(one.instead),
        "checkpoint": one.checkpoint,
        "rate": None if one.rate is None else asdict(one.rate),
        "seconds": one.seconds,
    }


def _option(option: Option) -> dict[str, Any]:
    return {**asdict(option), "memory": {**asdict(option.memory), "total": option.memory.total}}
