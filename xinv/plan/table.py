"""An outlook as the terminal shows it: a table a training, and lines on disk and time."""

from rich.console import Console

from xinv.plan.advice import STAGES, Option
from xinv.plan.footprint import words
from xinv.plan.outlook import Outlook, Prospect
from xinv.plan.room import HEADROOM
from xinv.progress import clock, table


def show(console: Console, found: Outlook) -> None:
    """Print all of it, within 100 columns."""
    ranks, room = found.ranks, found.room
    each = f"{ranks.count} {'rank' if ranks.count == 1 else 'ranks'}, each with {room.words}"
    console.print(f"{each}: {words(room.usable)} to fill ({HEADROOM:.0%} headroom kept)", soft_wrap=True)
    for prospect in found.prospects:
        console.print()
        _training(console, prospect, room.usable)
    console.print()
    for line in [*_disk(found), *_time(found), *(f"Assumed: {words_}." for words_ in found.assumed)]:
        console.print(line, markup=False, soft_wrap=True)


def _training(console: Console, one: Prospect, usable: int) -> None:
    training = one.training
    times = f", {training.times} times" if training.times > 1 else ""
    console.print(
        f"{', '.join(training.titles)}{times}: {one.parameters:,} parameters, {_flops(one.flops)} a step of "
        f"{training.job.settings.batch_size} images",
        markup=False,
        soft_wrap=True,
    )
    console.print(table([_row(option, option.memory.total <= usable) for option in _shown(one)], words=1))
    if one.recommended is not None:
        line = f"Recommended: {one.recommended.words(training.setting)} ({words(one.recommended.memory.total)})"
    else:
        line = f"Nothing fits. What would: {'; or '.join(one.instead) or 'a smaller network or image'}."
    if one.configured.memory.total <= usable and one.recommended is not None:
        line += "; the configuration's own setting fits too"
    console.print(line, markup=False, soft_wrap=True)


def _shown(one: Prospect) -> list[Option]:
    """The configuration's own setting, and for each stage the recommended micro-batch, 1 and the whole share."""
    largest = max(option.micro_batch for option in one.options)
    middle = one.recommended.micro_batch if one.recommended else 1
    wanted = {1, middle, largest}
    return [
        option
        for stage in STAGES
        for option in one.options
        if option.zero_stage == stage and option.micro_batch in wanted
    ]


def _row(option: Option, fits: bool) -> dict[str, str]:
    memory = option.memory
    return {
        "ZeRO": str(option.zero_stage),
        "micro": str(option.micro_batch),
        "weights": words(memory.weights),
        "gradients": words(memory.gradients),
        "optimizer": words(memory.optimizer),
        "activations": words(memory.activations),
        "buffers": words(memory.buffers),
        "a rank": words(memory.total),
        "fits": "yes" if fits else "no",
    }


def _flops(value: float) -> str:
    for unit, scale in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e6:.3g} MFLOP"


def _disk(found: Outlook) -> list[str]:
    disk = found.disk
    released = ", ".join(f"{name} {words(size)}" for name, size in disk.released.items())
    sets = ", ".join(f"{name} {words(size)}" for name, size in disk.releases.items())
    largest = max(prospect.checkpoint for prospect in found.prospects)
    return [
        f"On disk: {disk.image_count:,} images, about {words(disk.images)}; {sets}; a checkpoint of "
        f"up to {words(largest)}, for a moment twice",
        f"Released of one image: {released}",
    ]


def _time(found: Outlook) -> list[str]:
    if found.seconds is None:
        return ["Time: say what a GPU reaches (--rate 120tflops, --rate 850images), or measure it here (--measure)."]
    rates = {prospect.rate.words() for prospect in found.prospects if prospect.rate is not None}
    rate = f"at {rates.pop()}" if len(rates) == 1 else "each at the rate that was measured"
    hours = found.seconds * found.ranks.count / 3600
    unit = "GPU-hours" if found.ranks.device == "cuda" else "rank-hours"
    return [f"Time: {clock(found.seconds)} for all trainings, {hours:.3g} {unit}, {rate}"]
