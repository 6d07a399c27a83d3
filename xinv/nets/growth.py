"""Progressive resolution: what a network for small images hands on to the same design for larger ones.

Karras et al., "Progressive Growing of GANs", ICLR 2018, grow a generator level by level. Deviations: new levels take
part from the first step instead of fading in, and all levels go on learning.
"""

import itertools
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from xinv.errors import InputError
from xinv.nets.design import InverterDesign
from xinv.nets.inverter import Inverter

_ENCODER_LEVEL = re.compile(r"^encoder\.levels\.(\d+)\.")


def check_growth(name: str, design: InverterDesign, sizes: tuple[int, ...]) -> None:
    """InputError unless a network of `design`, called `name`, can grow through these sizes, the smallest first."""
    if design.schedule == "doubling":
        raise InputError(
            f"the inverter {name} cannot grow with the images: with schedule=doubling the width of every level changes "
            "with the size of the image. Use a design with schedule=resolution, such as pyramid (baseline: "
            "pyramid_prediction_only), or leave attack.progressive out."
        )
    for small, large in itertools.pairwise(sizes):
        levels = design.sizes(large)
        if small not in levels or levels[levels.index(small) :] != design.sizes(small):
            raise InputError(
                f"attack.progressive goes from {small} to {large} px, and {large} px halves to "
                f"{', '.join(map(str, levels[1:]))}; name sizes of that list, in ascending order."
            )


@torch.no_grad()
def grow(network: Inverter, small: Mapping[str, Tensor]) -> int:
    """Take over the weights of the same design for smaller images; returns how many numbers came from there.

    Levels are told by their size in pixels. What the larger network alone has keeps its initial weights, and so has
    what meets the new levels there and has another shape for it (the input of the old outermost encoder level).
    """
    shift = len(network.decoder.levels) - 1 - max(int(name.split(".")[2]) for name in small if _is_decoder_level(name))
    taken = 0
    for name, parameter in network.named_parameters():
        found = small.get(_name_in_small(name, shift))
        if found is not None and found.shape == parameter.shape:
            parameter.copy_(found)
            taken += parameter.numel()
    return taken


def _is_decoder_level(name: str) -> bool:
    return name.startswith("decoder.levels.")


def _name_in_small(name: str, shift: int) -> str:
    # Decoder levels are numbered from the coarsest, so they keep their numbers; the encoder's from the finest.
    found = _ENCODER_LEVEL.match(name)
    if found is None:
        return name
    return f"encoder.levels.{int(found[1]) - shift}.{name[found.end() :]}"
