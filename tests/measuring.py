"""What a rank of DeepSpeed's own engine really allocates: `python tests/measuring.py CASES`, a JSON list.

The rank is one of `world` on torch's fake process group, whose collectives do nothing: tensors are as large as on so
many ranks, in one process. Prints a JSON list of what `measured` found, in the order of the cases.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STEPS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """One training: the preset of an inverter (of one map that is as large as the image) or a classifier.

    It is measured on the one of its ranks that `rank` says.
    """

    network: str
    size: int = 32
    micro: int = 4
    accumulation: int = 1
    world: int = 1
    rank: int = 0
    training: dict[str, Any] = dataclasses.field(default_factory=dict)


def spec_of(case: Case) -> tuple[Any, str]:
    """The network and its objective."""
    from xinv.nets.classifier import ClassifierSettings
    from xinv.nets.inverter import PRESETS
    from xinv.train.weights import ClassifierSpec, InverterSpec

    if case.network not in PRESETS:
        settings = ClassifierSettings(network=case.network)
        return ClassifierSpec(settings=settings, channels=3, size=case.size, classes=10), "classify"
    design = PRESETS[case.network]
    maps = ((3, case.size, case.size),) if design.reads_maps else ()
    methods = ("gradient",) * len(maps)
    return (
        InverterSpec(design=design, channels=3, size=case.size, classes=10, methods=methods, maps=maps),
        "invert",
    )


def settings_of(case: Case) -> Any:
    from xinv.train.settings import TrainingSettings

    batch = case.micro * case.accumulation * case.world
    return TrainingSettings(**{"batch_size": batch, "micro_batch": case.micro, "precision": "fp32", **case.training})


def planned(case: Case) -> tuple[Any, Any, Any]:
    """(peak, standing, step) as the planner has them."""
    from xinv.plan.memory import Rank
    from xinv.plan.section import section_of
    from xinv.plan.step import step_of
    from xinv.plan.zero import memory, standing

    settings = settings_of(case)
    spec, objective = spec_of(case)
    precision = "fp32" if settings.precision == "fp32" else "bf16"
    step = step_of(spec, objective, None, precision, settings.recompute)
    rank = Rank.of(settings.batch_size, settings.micro_batch, case.world, "cpu")
    section = section_of(settings, step.sizes)
    return memory(step, section, rank), standing(step, section, rank), step


def measure(cases: list[Case]) -> list[dict[str, Any]]:
    """Measure in processes of their own, one for each rank: a process has one group."""
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for place in dict.fromkeys((case.rank, case.world) for case in cases):
        own = [dataclasses.asdict(case) for case in cases if (case.rank, case.world) == place]
        ended = subprocess.run(
            [sys.executable, __file__, json.dumps(own)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            raise RuntimeError(ended.stderr[-3000:])
        found[place] = json.loads(ended.stdout.splitlines()[-1])
    return [found[case.rank, case.world].pop(0) for case in cases]


def measured(case: Case) -> dict[str, Any]:
    """A few optimizer steps under torch's profiler, which sees every allocation of its CPU allocator."""
    import gc

    from torch.profiler import ProfilerActivity, profile

    from xinv.plan.step import batch_for
    from xinv.train.batches import split
    from xinv.train.engine import Engine
    from xinv.train.losses import LossSettings
    from xinv.train.objectives import OBJECTIVES

    settings = settings_of(case)
    spec, objective = spec_of(case)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        network = spec.build()
        engine = Engine(network, settings, case.world)
        learned = OBJECTIVES[objective](network, LossSettings())
        for _ in range(STEPS):
            for piece in split(batch_for(spec, case.micro * case.accumulation), engine.accumulation):
                output = engine.forward(*learned.inputs(piece))
                engine.backward((learned.loss_B(output, piece) * piece.weight_B).sum())
                engine.step()
        del output, piece
    zero = engine._engine._config.zero_config
    total = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    engine.close()
    names = ("reduce_bucket_size", "param_persistence_threshold", "prefetch_bucket_size", "max_live_parameters")
    config = {name: int(getattr(zero, name)) for name in (*names, "max_reuse_distance")}
    return {"peak": peak, "standing": total, "zero": {**config, "contiguous": bool(zero.contiguous_gradients)}}


def main() -> None:
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    cases = [Case(**one) for one in json.loads(sys.argv[1])]
    dist.init_process_group("fake", store=FakeStore(), rank=cases[0].rank, world_size=cases[0].world)
    print(json.dumps([measured(case) for case in cases]))


if __name__ == "__main__":
    main()
