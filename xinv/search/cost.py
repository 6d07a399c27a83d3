"""What training an inverter takes, worked out without allocating it: parameters, FLOPs, memory of one rank."""

import functools
from dataclasses import dataclass
from typing import Literal

from xinv.nets.inverter import InverterDesign, ReleaseShape
from xinv.plan.memory import Rank
from xinv.plan.section import section_of
from xinv.plan.step import step_at
from xinv.plan.zero import memory
from xinv.train.settings import TrainingSettings
from xinv.train.weights import InverterSpec

ANY_SHARE = 0.5
"""Of an explanation that may be withheld: how often it is changes no cost."""


@dataclass(frozen=True)
class Cost:
    """What training an inverter takes.

    Attributes:
        parameters: learned numbers.
        flops: floating-point operations of a training step (forward and backward), for each image of it. A multiply-add
            is two; as in `torch.utils.flop_counter`, matrix products and convolutions count and nothing else does.
        memory_bytes: one rank's peak; see `cost`.
    """

    parameters: int
    flops: int
    memory_bytes: int


@functools.lru_cache(maxsize=4096)
def cost(
    design: InverterDesign,
    release: ReleaseShape,
    channels: int,
    size: int,
    batch: int,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Cost:
    """What it takes to train `design` on images (channels, size, size), `batch` of them at once on a rank.

    The memory is what `xinv.plan` works out for one rank at ZeRO stage 0, in bytes of tensors: what a GPU's libraries
    take as work space, what the allocator cannot use again, and the process itself come on top. The loss is the mean
    squared error.

    Takes about 30 ms in fp32, several times that in bf16, which needs another kind of empty tensor; each answer is
    remembered.

    Raises:
        InputError: design, release and size do not fit, as in `build_inverter`.
    """
    spec = InverterSpec(
        design=design,
        channels=channels,
        size=size,
        classes=release.classes,
        methods=tuple(f"map {number}" for number in range(len(release.maps))),
        maps=release.maps,
        explanation_dropout=ANY_SHARE if release.optional else None,
    )
    step = step_at(spec, "invert", batch, precision)
    rank = Rank(world=1, micro=batch, accumulation=1, share=batch, device="cpu")
    return Cost(
        step.total, step.flops(batch) // batch, memory(step, section_of(TrainingSettings(), step.sizes), rank).total
    )
