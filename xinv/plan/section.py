"""DeepSpeed's ZeRO settings that decide about memory, as the engine configures them."""

from collections.abc import Sequence
from dataclasses import dataclass

from xinv.train.section import deepspeed_section
from xinv.train.settings import TrainingSettings


@dataclass(frozen=True)
class Section:
    """Sizes are in numbers, not bytes. Defaults are DeepSpeed's own where the engine's section has none."""

    stage: int
    reduce_bucket: int
    contiguous_gradients: bool
    reduce_scatter: bool
    overlap: bool
    persistence_threshold: int
    prefetch_bucket: int
    max_live: int
    max_reuse_distance: int
    offload_optimizer: bool
    offload_weights: bool


def section_of(settings: TrainingSettings, sizes: Sequence[int]) -> Section:
    """What the engine asks DeepSpeed for, for a network whose trained weights have so many numbers each. How a batch is
    cut plays no part here."""
    zero = deepspeed_section(settings, micro=1, accumulation=1, sizes=sizes)["zero_optimization"]
    stage = int(zero["stage"])

    def offloads(key: str) -> bool:
        return bool((zero.get(key) or {}).get("device", "none") != "none")

    return Section(
        stage=stage,
        reduce_bucket=int(zero.get("reduce_bucket_size", 500_000_000)),
        contiguous_gradients=bool(zero.get("contiguous_gradients", True)),
        reduce_scatter=bool(zero.get("reduce_scatter", True)),
        overlap=bool(zero.get("overlap_comm", False)) and stage < 3,
        persistence_threshold=int(zero.get("stage3_param_persistence_threshold", 100_000)),
        prefetch_bucket=int(zero.get("stage3_prefetch_bucket_size", 50_000_000)),
        max_live=int(zero.get("stage3_max_live_parameters", 1_000_000_000)),
        max_reuse_distance=int(zero.get("stage3_max_reuse_distance", 1_000_000_000)),
        offload_optimizer=offloads("offload_optimizer"),
        offload_weights=offloads("offload_param") and stage == 3,
    )
