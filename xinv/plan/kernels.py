"""Where torch's answer on tensors without numbers is not what a real kernel does: what such kernels return and take.

Without numbers torch forgets the layout that real convolutions keep, and takes some kernels apart into a dozen
operations, whose results nobody would write down, and which take longer than the rest of the step.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

REARRANGED, REARRANGED_LAST = 1, 3
"""Copies of a convolution's weights that its backward pass takes to rearrange them and their gradient (oneDNN): where
activations lie contiguous, and where they lie channels last and the weights do not. Measured on CPUs."""


def passing_bytes(operation: Any, args: tuple[Any, ...]) -> int:
    """Bytes that a kernel takes for itself while it runs, beside what it returns."""
    if operation is not torch.ops.aten.convolution_backward.default:
        return 0
    _, input, weight, *_ = args
    last = input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()
    return int((REARRANGED_LAST if last else REARRANGED) * weight.nbytes)


def _convolution(input: Tensor, *rest: Any) -> Tensor:
    """Real kernels keep the layout of what they read; without numbers torch forgets it, and a copy would follow."""
    out = torch.ops.aten.convolution.default(input, *rest)
    if input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous():
        return torch.empty_like(out, memory_format=torch.channels_last)
    return out


def _group_norm(
    input: Tensor, weight: Tensor, bias: Tensor, batch: int, channels: int, places: int, groups: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(input), input.new_empty(batch, groups), input.new_empty(batch, groups)


def _group_norm_backward(
    grad: Tensor, input: Tensor, mean: Tensor, deviation: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(input), torch.empty_like(weight), torch.empty_like(weight)


def _layer_norm(
    input: Tensor, shape: list[int], weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    kept = (*input.shape[: -len(shape)], *(1 for _ in shape))
    return input.new_empty(input.shape), input.new_empty(kept), input.new_empty(kept)


def _layer_norm_backward(
    grad: Tensor, input: Tensor, shape: list[int], mean: Tensor, deviation: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return input.new_empty(input.shape), torch.empty_like(weight), torch.empty_like(weight)


def _activation_backward(grad: Tensor, *rest: Any, **options: Any) -> Tensor:
    return torch.empty_like(grad)


KERNELS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.convolution.default: _convolution,
    torch.ops.aten.native_group_norm.default: _group_norm,
    torch.ops.aten.native_group_norm_backward.default: _group_norm_backward,
    torch.ops.aten.native_layer_norm.default: _layer_norm,
    torch.ops.aten.native_layer_norm_backward.default: _layer_norm_backward,
    torch.ops.aten.threshold_backward.default: _activation_backward,
    torch.ops.aten.leaky_relu_backward.default: _activation_backward,
    torch.ops.aten.gelu_backward.default: _activation_backward,
    torch.ops.aten.silu_backward.default: _activation_backward,
    torch.ops.aten.tanh_backward.default: _activation_backward,
}
"""Each takes what the operation takes."""
