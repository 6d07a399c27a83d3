"""Refuses what cannot fit, before anything is trained."""

from collections.abc import Mapping, Sequence

from xinv.config import AuditConfig
from xinv.errors import InputError
from xinv.plan.advice import Ranks, Trial, precision_of
from xinv.plan.footprint import words
from xinv.plan.memory import Memory, Rank
from xinv.plan.rehearsal import Training, forget, rehearse
from xinv.plan.room import Room, room_here
from xinv.plan.section import section_of
from xinv.plan.step import step_at
from xinv.plan.zero import memory

SURE = 0.9
"""A training is refused when so much of what was worked out for it is more than there is: the arithmetic is within 10 %
of what is measured, and what fits must never be refused."""


def check_here(configs: Mapping[str, AuditConfig], parts: Sequence[str] = ("",)) -> None:
    """`check_fits` for audits whose workers are on this machine; nothing where their memory cannot be known from here.

    `configs`: by the name that messages call them; "" where there is one alone.
    """
    for name, config in configs.items():
        room = room_here(config.workers)
        if room is not None:
            check_fits(config, config.workers.count, room, name, parts)
    forget()


def check_fits(config: AuditConfig, count: int, room: Room, name: str = "", parts: Sequence[str] = ("",)) -> None:
    """Compare every training of an audit with what each of `count` ranks has. Under a second for most.

    `parts`: only those whose settings begin so, such as "target".

    Raises:
        InputError: a training cannot fit: what it needs, what there is, and what would fit.
    """
    for training in rehearse(config).trainings:
        if training.setting.startswith(tuple(parts)):
            _check(training, count, room, f" of {name}" if name else "")


def _check(training: Training, count: int, room: Room, of: str) -> None:
    settings = training.job.settings
    if SURE * _at_most(training, count, room) <= room.bytes:
        return
    trial = Trial(training, Ranks(count, room.device, precision_of(settings, room.device, bf16=True)))
    needed = _needed(trial.configured().memory, room)
    if SURE * needed <= room.bytes:
        return
    best = trial.recommended(room.usable)
    if best is not None:
        advice = f"This fits: {best.words(training.setting)}."
    else:
        instead = "; or ".join(trial.instead(room.usable)) or "a smaller network, image or batch"
        advice = f"No setting of ZeRO, micro-batch, recomputing or offload makes it fit; what would: {instead}."
    one, each = trial.configured(), "its one rank" if count == 1 else f"each of {count} ranks"
    raise InputError(
        f"The training {training.title!r}{of} needs {words(needed)} on {each} (zero_stage "
        f"{one.zero_stage}, {one.micro_batch} images at once), and a rank has {room.words}. {advice} "
        f"`xinv plan` shows the arithmetic."
    )


def _at_most(training: Training, count: int, room: Room) -> int:
    """A bound that is found quickly, and shows of most trainings that they fit: a step in fp32, nothing recomputed, and
    the copy of the weights that bf16 would add."""
    job = training.job
    rank = Rank.of(job.settings.batch_size, job.settings.micro_batch, count, room.device)
    step = step_at(training.spec, job.objective, rank.micro, "fp32", job.loss)
    return _needed(memory(step, section_of(job.settings, step.sizes), rank), room) + 2 * step.total


def _needed(taken: Memory, room: Room) -> int:
    """Bytes of a rank; on a CPU with what is offloaded, and without what is never written to."""
    return taken.total + (taken.host - taken.untouched if room.device == "cpu" else 0)
