"""Which layer class activation maps should read, in a network that does not name it.

Axes in tensor names: B batch, C image channels, H height, W width.
A module counts when it runs once in a forward pass and gives a map: four axes, two places or more. It is a bottleneck
when nothing of the image reaches the logits past it; which that is, autograd's graph of one forward pass tells.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SHOWN = 4  # layers that a message proposes
HEAD = (nn.Linear, nn.BatchNorm1d)
"""Layers with weights that may follow the last map. Others, such as attention, work on it in ways no map would show."""


@dataclass(frozen=True)
class _Call:
    """One run of a module, in the order in which modules finish."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]  # of its output; empty where that is no tensor
    node: Any  # autograd's node of the output

    @property
    def is_map(self) -> bool:
        return len(self.shape) == 4 and self.shape[2] * self.shape[3] >= 2 and self.node is not None


def find_cam_layer(network: nn.Module, image_BCHW: Tensor) -> str | None:
    """The dotted name of the layer with the last convolutional activation map, where the network makes it plain.

    That is the last bottleneck behind (or at) the last convolution that has the size of that convolution's map:
    normalisation and activation included, pooling not. None where there is no such layer, or where layers with weights
    other than linear ones follow: then a person has to say.
    """
    calls, end, start = _followed(network, image_BCHW)
    last = max((i for i, call in enumerate(calls) if call.is_map and isinstance(call.module, nn.Conv2d)), default=None)
    if last is None:
        return None
    size = calls[last].shape[2:]
    behind = [call for call in _bottlenecks(calls[last:], calls, end, start) if call.shape[2:] == size]
    if not behind:
        return None
    chosen = next(call for call in behind if call.node is behind[-1].node)  # not the containers that hand its map on
    for call in calls[calls.index(chosen) + 1 :]:
        holds = chosen.name.startswith(f"{call.name}.")
        weighted = any(True for _ in call.module.parameters(recurse=False))
        if weighted and not holds and not isinstance(call.module, HEAD) and not _is_small_convolution(call):
            return None
    return chosen.name


def cam_candidates(network: nn.Module, image_BCHW: Tensor) -> list[str]:
    """Dotted names of the last layers that a person could choose, in the order in which they run."""
    calls, end, start = _followed(network, image_BCHW)
    found = _bottlenecks(calls, calls, end, start) or _maps(calls, calls)
    first: dict[int, str] = {}  # one name a map: a container hands on that of its last part
    for call in found:
        first.setdefault(id(call.node), call.name)
    return list(first.values())[-SHOWN:]


def _is_small_convolution(call: _Call) -> bool:
    """Whether a convolution works on what is no map any more, as a linear layer would."""
    return isinstance(call.module, nn.Conv2d) and not call.is_map


def _followed(network: nn.Module, image_BCHW: Tensor) -> tuple[list[_Call], Any, Any]:
    """The runs of all modules in one forward pass, and autograd's nodes of the logits and of the image."""
    calls: list[_Call] = []

    def note(name: str, module: nn.Module, output: object) -> None:
        seen = isinstance(output, Tensor)
        calls.append(
            _Call(name, module, tuple(output.shape) if seen else (), output.grad_fn if seen else None)  # type: ignore[attr-defined]
        )

    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: note(name, module, output))
        for name, module in network.named_modules()
        if name
    ]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            start_BCHW = image_BCHW.detach().clone().requires_grad_().clone()
            start = start_BCHW.grad_fn  # kept before the network may go on in place
            logit_BK: Tensor = network(start_BCHW)
    finally:
        for handle in handles:
            handle.remove()
    return calls, logit_BK.grad_fn, start


def _maps(calls: list[_Call], everything: list[_Call]) -> list[_Call]:
    runs = Counter(call.name for call in everything)
    return [call for call in calls if call.is_map and runs[call.name] == 1]


def _bottlenecks(calls: list[_Call], everything: list[_Call], end: Any, start: Any) -> list[_Call]:
    if not _reaches(end, start, without=None):
        return []
    return [call for call in _maps(calls, everything) if not _reaches(end, start, without=call.node)]


def _reaches(end: Any, start: Any, without: Any) -> bool:
    """Whether a path of autograd's graph leads from `end` back to `start` past the node `without`."""
    waiting, seen = [end], {None, without}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        if node is start:
            return True
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
    return False
