"""What a training run can be told, whichever of the four kinds of network it trains."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xinv.train.section import contradiction


class TrainingSettings(BaseModel):
    """One training run. Everything counts in epochs and in images over all ranks, so that a run keeps its meaning when
    the number of workers changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(20, ge=1, description="passes over the training part")
    batch_size: int = Field(128, ge=1, description="images per optimizer step, over all ranks together")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="images a rank takes through the network at once; the rest accumulates (null: all of its share)",
    )
    optimizer: Literal["adamw", "adam"] = Field("adamw", description="Adam with decoupled weight decay, or plain Adam")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's exponential decay rates")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay for adamw, L2 for adam")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps in which the learning rate rises linearly")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="learning rate after the warm-up; cosine ends at 0"
    )
    clip: float = Field(1.0, ge=0, description="largest global gradient norm (0: no clipping)")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="bf16 autocast with fp32 master weights, or fp32; auto: bf16 where the hardware computes it"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="DeepSpeed ZeRO: 1 shards optimizer states, 2 gradients, 3 weights"
    )
    offload_optimizer: Literal["none", "cpu", "nvme"] = Field(
        "none",
        description="where Adam's moments and master weights lie: with the weights, or in main memory (from ZeRO 1 on)",
    )
    offload_weights: Literal["none", "cpu", "nvme"] = Field(
        "none", description="where ZeRO-3 keeps this rank's share of the weights: on the GPU, in main memory, on a disk"
    )
    nvme: Path | None = Field(None, description="folder on each worker's own NVMe disk, for offload_weights: nvme")
    recompute: bool = Field(
        False,
        description="work activations out again in backward, level by level, in place of keeping them: a third more "
        "arithmetic for much less memory",
    )
    compile: bool = Field(False, description="torch.compile the network; the first steps take minutes")
    validate_every: int = Field(1, ge=1, description="epochs between validations; each is followed by a checkpoint")
    checkpoint_steps: int = Field(
        0, ge=0, description="further checkpoints every so many steps, for long epochs (0: none)"
    )
    patience: int = Field(0, ge=0, description="stop after so many validations without improvement (0: never)")
    shuffle_window: int = Field(16384, ge=1, description="images among which the order is shuffled, shard by shard")
    memory_mib: int = Field(2048, ge=1, description="decoded shards kept in memory by each rank, in MiB")
    decoders: int = Field(
        2,
        ge=0,
        le=64,
        description="processes of each rank that decode images and maps ahead, where they do not fit into memory_mib; "
        "0: a thread of the rank does it",
    )
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="further DeepSpeed settings, passed through verbatim"
    )

    @model_validator(mode="after")
    def _offload_fits_the_stage(self) -> "TrainingSettings":
        if self.offload_optimizer == "nvme":
            # Probed with 0.19.8 on two ranks: other weights after the second step, and those of the beginning after a
            # resume, without an error.
            raise ValueError(
                "offload_optimizer is nvme, and DeepSpeed trains other weights that way and cannot resume; "
                "expected cpu or none"
            )
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise ValueError(
                f"offload_optimizer is {self.offload_optimizer}, and at zero_stage 0 the optimizer is not sharded; "
                "set zero_stage to 1, 2 or 3"
            )
        if self.offload_weights != "none" and self.zero_stage != 3:
            raise ValueError(
                f"offload_weights is {self.offload_weights}, and zero_stage is {self.zero_stage}; only ZeRO-3 shards "
                "weights, set zero_stage to 3"
            )
        if self.offload_weights == "nvme" and self.nvme is None:
            raise ValueError("offload_weights is nvme, and nvme names no folder; name one on the worker's NVMe disk")
        if self.nvme is not None and self.offload_weights != "nvme":
            raise ValueError("nvme names a folder, and nothing is offloaded there; set offload_weights to nvme")
        return self

    @model_validator(mode="after")
    def _deepspeed_section_does_not_contradict(self) -> "TrainingSettings":
        problem = contradiction(self)
        if problem:
            raise ValueError(problem)
        return self


def learning_rate_at(settings: TrainingSettings, step: int, steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0) of `steps`: linear warm-up, then constant or half a cosine."""
    import math

    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    if settings.schedule == "constant":
        return settings.learning_rate
    share = (step - warm) / max(1, steps - warm)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
