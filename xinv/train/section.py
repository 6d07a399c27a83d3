"""The DeepSpeed section of a training: what the user wrote there, verbatim, and what our own settings decide.

No torch and no DeepSpeed in here, so that reading a config costs nothing. What DeepSpeed itself says of the section
(a key that it does not know, a value out of range) comes when the engine starts.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xinv.train.settings import TrainingSettings

OWNED: dict[str, str] = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch",
    "gradient_accumulation_steps": "micro_batch",
    "elasticity": "batch_size, whatever the number of workers",
    "optimizer": "optimizer, learning_rate, betas and weight_decay",
    "zero_allow_untested_optimizer": "optimizer",
    "zero_force_ds_cpu_optimizer": "offload_optimizer",
    "scheduler": "schedule and warmup",
    "gradient_clipping": "clip",
    "torch_autocast": "precision",
    "bf16": "precision",
    "bfloat16": "precision",
    "fp16": "precision",
    "amp": "precision",
    "activation_checkpointing": "recompute",
    "compile": "compile",
}
"""DeepSpeed's keys that settings of ours decide, and which."""

OWNED_CHECKPOINT: dict[str, str] = {
    "load_universal": "nothing: checkpoints are converted by themselves when the number of workers changes",
    "use_node_local_storage": "storage, or runs on a disk that all workers share",
}

OWNED_ZERO: dict[str, str] = {
    "stage": "zero_stage",
    "cpu_offload": "offload_optimizer",
    "cpu_offload_param": "offload_weights",
    "cpu_offload_use_pin_memory": "offload_optimizer and offload_weights",
    "elastic_checkpoint": "nothing: checkpoints are converted by themselves when the number of workers changes",
}

LIVE = 50_000_000
"""Weights that ZeRO-3 keeps gathered at a time, but for a layer that is larger: 200 MB in fp32."""

OFFLOADS: dict[str, str] = {"offload_optimizer": "offload_optimizer", "offload_param": "offload_weights"}
"""Parts of DeepSpeed's zero_optimization that say where something lies: what decides the place, `device`, is ours."""

OWNED_OFFLOAD: tuple[str, ...] = ("device", "nvme_path")


def contradiction(settings: "TrainingSettings") -> str | None:
    """What of `settings.deepspeed` would contradict a setting of ours, in words that name it; None: nothing."""
    section = settings.deepspeed
    zero = section.get("zero_optimization", {})
    for name, part in (("zero_optimization", zero), ("checkpoint", section.get("checkpoint", {}))):
        if not isinstance(part, Mapping):
            return f"deepspeed.{name} is {part!r}; expected a section of keys and values"
    for place, part, owned in (
        ("deepspeed", section, OWNED),
        ("deepspeed.checkpoint", section.get("checkpoint", {}), OWNED_CHECKPOINT),
        ("deepspeed.zero_optimization", zero, OWNED_ZERO),
    ):
        for key in part:
            if key in owned:
                return f"{place}.{key} would contradict a setting of ours; use {owned[key]} instead"
    for key, ours in OFFLOADS.items():
        if key not in zero:
            continue
        place = f"deepspeed.zero_optimization.{key}"
        if not isinstance(zero[key], Mapping) or any(name in zero[key] for name in OWNED_OFFLOAD):
            return f"{place} says where to offload to; set {ours} (and nvme) for that, and only further keys here"
        if getattr(settings, ours) == "none":
            return f"{place} is of no use while {ours} is none; set {ours}, or leave it out"
    return None


def deepspeed_section(
    settings: "TrainingSettings", micro: int, accumulation: int, sizes: Sequence[int]
) -> dict[str, Any]:
    """What DeepSpeed is configured with: the user's section, and ours over it.

    Args:
        settings: checked by `contradiction`.
        micro, accumulation: images a rank takes at once, and how often for one step.
        sizes: elements of each tensor of weights.
    """
    given = dict(settings.deepspeed.get("zero_optimization", {}))
    zero: dict[str, Any] = {
        # DeepSpeed's defaults suit language models: buffers of 2 GB, and no partitioning of weights under 100,000
        # elements, which would leave nearly every convolution replicated at stage 3.
        "reduce_bucket_size": min(50_000_000, sum(sizes)),
        "stage3_param_persistence_threshold": 1_000,
        # By its defaults DeepSpeed would keep every weight of a network below a thousand million gathered through a
        # step. With these a rank holds the layers at hand, and those that come next.
        "stage3_max_live_parameters": LIVE,
        "stage3_max_reuse_distance": LIVE,
        # By its defaults DeepSpeed reduces a copy of the bucket over all ranks, at stages 1 and 2, and copies back what
        # is a rank's own. So it reduces the bucket itself: the same traffic, less memory and time.
        "reduce_scatter": settings.zero_stage == 3,
        **given,
        "stage": settings.zero_stage,
    }
    for key, ours in OFFLOADS.items():
        device = getattr(settings, ours)
        if device != "none":
            zero[key] = {**given.get(key, {}), "device": device}
            if device == "nvme":
                # DeepSpeed's buffers would be 2 GB of locked memory, however small the network.
                zero[key] = {"buffer_size": max(sizes), **zero[key], "nvme_path": str(settings.nvme)}
    return {
        **settings.deepspeed,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": settings.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # Our optimizer is torch's Adam, on the CPU as well: offloading must not change what is computed.
        "zero_force_ds_cpu_optimizer": False,
    }
