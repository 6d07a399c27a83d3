"""Activation checkpointing: a network keeps what enters each of its levels, and works out the rest again in backward.

It trades about a third of a step's arithmetic for the memory of the activations inside the levels (Chen et al., 2016).
What a network computes, its weights' names and its hooks stay as they are. Levels are recomputed in training mode and
with gradients alone: an explanation is made of a network in evaluation mode, and its hooks see one run of each module.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Levelled(nn.Module):
    """A part of a network that calls its levels by `through`, which may forget what is inside them.

    A level draws no random numbers and changes nothing in place: computed twice, it is the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recomputes = False

    def through(self, level: Callable[..., Any], *inputs: Any) -> Any:
        """level(*inputs)."""
        if not (self.recomputes and self.training and torch.is_grad_enabled()):
            return level(*inputs)
        # Not the reentrant kind: it gives no gradient to the weights of a level whose inputs need none, and the first
        # level reads maps or an image. This kind gives the same gradients to the bit at ZeRO 0 to 3, in bf16 as well.
        return checkpoint(level, *inputs, use_reentrant=False, preserve_rng_state=False)


class Levels(Levelled, nn.Sequential):
    """An nn.Sequential, with its names, that is made of levels: the layers [0, ends[0]), [ends[0], ends[1]), ..."""

    def __init__(self, layers: Sequence[nn.Module], ends: Sequence[int]) -> None:
        assert list(ends) == sorted({*ends}) and ends[-1] == len(layers), (ends, len(layers))
        Levelled.__init__(self)
        for number, layer in enumerate(layers):
            self.add_module(str(number), layer)
        self.ends = tuple(ends)

    def forward(self, input: Tensor) -> Tensor:
        layers = list(self)
        for begin, end in zip((0, *self.ends), self.ends, strict=False):
            input = self.through(_chain(layers[begin:end]), input)
        return input


def _chain(layers: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    def run(value: Tensor) -> Tensor:
        for layer in layers:
            value = layer(value)
        return value

    return run


def recompute(network: nn.Module, on: bool) -> None:
    """Have every level of `network` (encoder, decoder, classifier) recompute its activations in backward, or keep them.

    Parts that have no levels are left as they are.
    """
    for part in network.modules():
        if isinstance(part, Levelled):
            part.recomputes = on
