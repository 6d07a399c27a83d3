"""What a rank holds of the model at ZeRO-3 on 2 and on 4 ranks, against ZeRO-0: the paper's Flatten design at 256 px.

Weights, gradients and Adam's moments, counted in the engine's own tensors after a real backward pass on real ranks,
each storage once. Activations do not count, nor DeepSpeed's bucket for reduction, nor what it gathers for a moment.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from figures import Figure, report
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # ranks.py, which the tests share
from ranks import run_on_ranks

from xinv.nets.design import ReleaseShape
from xinv.nets.inverter import build_inverter, preset
from xinv.train.engine import Engine
from xinv.train.settings import TrainingSettings

SIZE, CLASSES = 256, 10
MAP = (3, SIZE, SIZE)
DESIGN = preset("flatten", bottleneck=512)  # with a map of three channels: 101 M weights in the Flatten branch alone


def held(engine: Engine) -> dict[str, int]:
    """Bytes of distinct storages by what they are: weights, gradients, optimizer."""
    network, zero = engine.network, engine._optimizer
    inner = getattr(zero, "optimizer", zero)
    seen: set[int] = set()

    def count(tensors: Iterator[Tensor]) -> int:
        total = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
        return total

    partitioned = engine.settings.zero_stage == 3
    weights = count(part.ds_tensor if partitioned else part.detach() for part in network.parameters())
    weights += count(part.detach() for part in network.parameters())  # gathered ones, which ought to be none
    gradients = count(part.grad for part in network.parameters() if part.grad is not None)
    if partitioned:
        gradients += count(iter([zero.grad_partitions_flat_buffer]))
    moments = count(value for state in inner.state.values() for value in state.values() if isinstance(value, Tensor))
    # Between steps DeepSpeed takes its master weights out of the optimizer's groups.
    masters = count(part.detach() for part in getattr(zero, "fp32_partitioned_groups_flat", ()))
    return {"weights": weights, "gradients": gradients, "optimizer": moments + masters}


def measured(stage: int) -> dict[str, int]:
    torch.manual_seed(0)
    world = dist.get_world_size()
    network = build_inverter(DESIGN, ReleaseShape(CLASSES, (MAP,)), 3, SIZE)
    parameters = sum(part.numel() for part in network.parameters())
    engine = Engine(network, TrainingSettings(batch_size=world, zero_stage=stage), world)
    found: dict[str, int] = {}
    # Gradients are counted when they are there, just before the optimizer moves; its moments after it has.
    for _ in range(2):
        made_BCHW = engine.forward(torch.randn(1, CLASSES), [torch.randn(1, *MAP)])
        engine.backward(made_BCHW.square().mean())
        found = held(engine)
        engine.step()
    engine.close()
    return {**found, "parameters": parameters}


def total(found: dict[str, int]) -> int:
    return found["weights"] + found["gradients"] + found["optimizer"]


def words(found: dict[str, int]) -> str:
    parts = (f"{name} {found[name] / 2**20:.0f}" for name in ("weights", "gradients", "optimizer"))
    return f"MiB: {', '.join(parts)}"


def main() -> None:
    figures, results = [], {}
    for world, stage in ((1, 0), (2, 3), (4, 3)):
        with tempfile.TemporaryDirectory() as name:
            answers: list[Any] = run_on_ranks(measured, world, Path(name), stage, limit=600)
        results[world] = max(answers, key=total)
    whole = results[1]
    title = f"flatten {SIZE} px, {whole['parameters'] / 1e6:.0f} M weights"
    figures.append(Figure(f"{title}, ZeRO-0: a rank's model state", total(whole) / 2**30, "GiB", "", words(whole)))
    for world in (2, 4):
        share = total(results[world]) / total(whole) * world
        note = f"{total(results[world]) / 2**30:.3f} GiB; {words(results[world])}"
        figures.append(Figure(f"ZeRO-3, {world} ranks: share of ZeRO-0 / (1/{world})", share, "x", "<= 1.15", note))
    report("Model state of a rank", figures)


if __name__ == "__main__":
    sys.exit(main())
