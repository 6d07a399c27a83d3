"""What one rank holds, by kind, and how a batch is cut for it."""

from dataclasses import dataclass
from typing import Literal

NUMBER = 4
"""Bytes of a number: weights, gradients and moments are fp32."""

Device = Literal["cpu", "cuda"]
Moment = Literal["building", "backward", "reducing", "optimizer", "validation"]


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors on one rank's device at the moment when they are most.

    Attributes:
        weights: of the network, as they lie on the rank; at stage 3 its share of them.
        gradients: that wait for the optimizer.
        optimizer: Adam's moments, and the fp32 copy of the partition. Its steps, fused ones, take nothing beside.
        activations: of one micro-batch, what its kernels take meanwhile, and the batch itself.
        buffers: what DeepSpeed adds: reduce buckets, flat copies of gradients, layers gathered at stage 3.
        host: beside these, bytes in the machine's memory, of what is offloaded.
        moment: when that is.
        untouched: of `buffers`, what nothing is ever written to: allocated on a GPU, and on a CPU no memory at all.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    buffers: int = 0
    host: int = 0
    moment: Moment = "backward"
    untouched: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers

    @property
    def state(self) -> int:
        """Weights, gradients and optimizer alone."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class Rank:
    """One of `world` ranks that train together.

    Attributes:
        micro: images through the network at once; `accumulation`: so many times for an optimizer step.
        share: images of a whole batch that are this rank's.
    """

    world: int
    micro: int
    accumulation: int
    share: int
    device: Device

    @classmethod
    def of(cls, batch_size: int, micro_batch: int | None, world: int, device: Device) -> "Rank":
        """As `Engine` cuts a batch."""
        share = -(-batch_size // world)
        micro = min(share, micro_batch or share)
        return cls(world, micro, -(-share // micro), share, device)
