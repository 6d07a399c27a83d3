"""How fast a machine trains a network: a few steps on random numbers, timed.

Axes: B batch, C channels, H height, W width, K classes, M map channels.
"""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from xinv.nets.recompute import recompute
from xinv.train.engine import bf16_in_hardware, pick_device
from xinv.train.settings import TrainingSettings
from xinv.train.weights import InverterSpec

ENOUGH = 1.0
"""Seconds of steps after which no further one is timed."""
STEPS = 10
WARM = 2
"""Steps that are not timed: kernels are picked and memory is taken in them."""


def images_per_second(spec: InverterSpec, settings: TrainingSettings, threads: int) -> float:
    """Images that one process trains on in a second, reading them and validation aside.

    Forward and backward pass in the precision of the settings, on this process's GPU where it has one. Not the
    optimizer, a small part (and torch's take seconds to import), nor DeepSpeed, which costs little beside them. Leaves
    torch's number of threads and random numbers as they were.
    """
    device = pick_device()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            return _timed(spec, settings, device)
    finally:
        torch.set_num_threads(before)


def _timed(spec: InverterSpec, settings: TrainingSettings, device: torch.device) -> float:
    batch = min(settings.batch_size, settings.micro_batch or settings.batch_size)
    network = spec.build().to(device)
    recompute(network, settings.recompute)
    logit_BK = torch.randn(batch, spec.classes, device=device)
    maps = [torch.randn(batch, *shape, device=device) for shape in spec.maps]
    image_BCHW = torch.rand(batch, spec.channels, spec.size, spec.size, device=device)
    narrow = settings.precision != "fp32" and bf16_in_hardware(device)
    begun, steps = 0.0, 0
    for number in range(WARM + STEPS):
        if number == WARM:
            begun = _now(device)
        precision: AbstractContextManager[Any] = (
            torch.autocast(device.type, torch.bfloat16) if narrow else nullcontext()
        )
        with precision:
            made_BCHW = network(logit_BK, maps)
        (made_BCHW.float() - image_BCHW).square().mean().backward()
        network.zero_grad()
        steps = number + 1 - WARM
        if steps > 0 and _now(device) - begun > ENOUGH:
            break
    return batch * steps / (_now(device) - begun)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()
