"""How far the planner is from real training steps: memory against torch's CPU allocator, FLOPs against torch's counter.

    python tests/bench/planner.py

Presets and classifiers at 64 and 128 px, one rank at ZeRO stage 0, and `flatten` at stages 1 to 3 on fake groups of 2
and 4 ranks. Every measured side runs DeepSpeed's own engine on real numbers (tests/measuring.py); its peak is that of
tensors, not of the process: memory that is freed is not given back at once, and buffers that nothing was written to
take none.
"""

import sys
import time
from pathlib import Path

from figures import Figure, report

sys.path.insert(0, str(Path(__file__).parent.parent))

from measuring import Case, measure, planned, spec_of

NETWORKS = ("flatten", "unet", "flatten_unet", "film_unet", "cnn", "residual")
SIZES = {64: 16, 128: 8}
"""Images of a micro-batch by size."""


def flops_error(case: Case) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    from xinv.plan.step import batch_for
    from xinv.train.losses import LossSettings
    from xinv.train.objectives import OBJECTIVES

    spec, objective = spec_of(case)
    network = spec.build()
    learned = OBJECTIVES[objective](network, LossSettings())
    batch = batch_for(spec, case.micro)
    with FlopCounterMode(display=False) as counter:
        output = network(*learned.inputs(batch))
        (learned.loss_B(output, batch) * batch.weight_B).sum().backward()
    return abs(planned(case)[2].flops(case.micro) / counter.get_total_flops() - 1)


def worst(errors: dict[str, float]) -> tuple[float, str]:
    name = max(errors, key=lambda key: abs(errors[key]))
    return abs(errors[name]), f"{name}, {100 * errors[name]:+.1f} %"


def main() -> None:
    plain = [Case(network, size, micro) for size, micro in SIZES.items() for network in NETWORKS]
    # Every rank, since the planner states the one with the most; at stage 3 all hold the same.
    sharded = [
        Case("flatten", 64, world=world, rank=rank, training={"zero_stage": stage})
        for world in (2, 4)
        for stage in (1, 2, 3)
        for rank in range(world if stage < 3 else 1)
    ]
    memory: dict[str, float] = {}
    shards: dict[str, float] = {}
    for cases, errors in ((plain, memory), (sharded, shards)):
        peaks: dict[str, float] = {}
        for case, real in zip(cases, measure(cases), strict=True):
            name = f"{case.network} {case.size} px" + (f" {case.training} N={case.world}" if case.training else "")
            peaks[name] = max(real["peak"], peaks.get(name, 0))
            errors[name] = planned(case)[0].total / peaks[name] - 1
        for name, error in errors.items():
            print(f"{name:<44} {100 * error:+6.2f} % of {peaks[name] / 2**20:.1f} MiB")
    flops = {f"{case.network} {case.size} px": flops_error(case) for case in plain}
    begun = time.perf_counter()
    from xinv.plan.step import _step_of

    _step_of.cache_clear()
    planned(Case("flatten_unet", 1024, 1))
    seconds = time.perf_counter() - begun
    figures = [
        Figure("memory of a rank, largest relative error", worst(memory)[0], "", "<= 0.10", worst(memory)[1]),
        Figure("the same, ZeRO 1 to 3 on 2 and 4 ranks", worst(shards)[0], "", "<= 0.10", worst(shards)[1]),
        Figure("FLOPs of a step, largest relative error", worst(flops)[0], "", "<= 0.02", worst(flops)[1]),
        Figure("time for flatten_unet at 1024 px", seconds, "s", "", "its step, without numbers"),
    ]
    report("Planner against real training steps", figures)


if __name__ == "__main__":
    main()
