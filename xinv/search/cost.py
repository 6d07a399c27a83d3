"""What training an inverter takes, worked out without allocating it: parameters, FLOPs, memory.

One training step is run on tensors that have shapes and no numbers. Every operation of its forward and backward pass is
looked at as it goes by, and every storage from its first tensor to its last, so that a new kind of block needs no
formula here.

Axes in tensor names: B batch, C channels, H height, W width, K classes, M map channels.
"""

import functools
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xinv.nets.inverter import InverterDesign, ReleaseShape, build_inverter

STANDING_BYTES = 12
"""Bytes that a parameter takes all the time: its fp32 value and Adam's two moments."""

NUMBER_BYTES = 4
WORKING_COPIES = 2
"""Further copies of one tensor of weights, for as long as an operation needs them: the optimizer's passing results
(AdamW, one tensor at a time), and about what a convolution's backward pass takes to rearrange its weights (oneDNN)."""


@dataclass(frozen=True)
class Cost:
    """What training an inverter takes.

    Attributes:
        parameters: learned numbers.
        flops: floating-point operations of a training step (forward and backward), for each image of it. A multiply-add
            is two; as in `torch.utils.flop_counter`, matrix products and convolutions count and nothing else does.
        memory_bytes: one rank's peak; see `cost`.
    """

    parameters: int
    flops: int
    memory_bytes: int


@functools.lru_cache(maxsize=4096)
def cost(
    design: InverterDesign,
    release: ReleaseShape,
    channels: int,
    size: int,
    batch: int,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Cost:
    """What it takes to train `design` on images (channels, size, size), `batch` of them at once on a rank.

    The memory is that of network, optimizer and one step, in bytes. With P parameters, L of them in the largest tensor:

        12 P + max(4 P + 8 L, step)

    12 P are weights and Adam's moments; 4 P all gradients and 8 L what the optimizer needs meanwhile; `step` is the
    most that forward and backward keep alive at one time of everything else: the batch, what is saved for backward,
    what operations return, gradients that are there by then, and 8 bytes for each weight of a convolution while its
    backward pass runs. The loss is the mean squared error.

    On a CPU this is within 15 % of what torch's profiler measures for the presets, least exact where weights outweigh
    activations (tests/test_cost.py). It leaves out what a GPU's libraries take as work space, DeepSpeed's flat buffers
    and what ZeRO saves, what the allocator cannot use again, and the process itself.

    Takes about 30 ms in fp32, several times that in bf16, which needs another kind of empty tensor; each answer is
    remembered.

    Raises:
        InputError: design, release and size do not fit, as in `build_inverter`.
    """
    # Meta tensors are several times faster than fake ones, and have no autocast.
    empty: AbstractContextManager[Any] = torch.device("meta")
    autocast: AbstractContextManager[Any] = nullcontext()
    if precision == "bf16":
        from torch._subclasses.fake_tensor import FakeTensorMode

        empty, autocast = FakeTensorMode(), torch.autocast("cpu", torch.bfloat16)
    with empty:
        network = build_inverter(design, release, channels, size)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        with _Meter(network) as meter:
            logit_BK = torch.empty(batch, release.classes)
            maps = [torch.empty(batch, *shape) for shape in release.maps]
            image_BCHW = torch.empty(batch, channels, size, size)
            with autocast:
                made_BCHW = network(logit_BK, maps)
            (made_BCHW - image_BCHW).square().mean().backward()
        largest = max(parameter.numel() for parameter in network.parameters())
    optimizer = NUMBER_BYTES * (parameters + WORKING_COPIES * largest)
    memory = STANDING_BYTES * parameters + max(optimizer, meter.peak)
    return Cost(parameters, meter.flops // batch, memory)


class _Meter(TorchDispatchMode):
    """Counts the FLOPs of what runs inside, and the bytes of storages that are made there: now, and at their most.

    What `network` holds already does not count.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        from torch.utils.flop_counter import flop_registry

        self.flops = 0
        self.peak = 0
        self._formulas: dict[Any, Callable[..., int]] = flop_registry
        self._bytes = 0
        self._alive: dict[int, Any] = {}
        for tensor in (*network.parameters(), *network.buffers()):
            storage = tensor.untyped_storage()
            self._alive[storage._cdata] = storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = _ANSWERS.get(func, func)(*args, **(kwargs or {}))
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        passing = WORKING_COPIES * args[2].nbytes if func is torch.ops.aten.convolution_backward.default else 0
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._hold(leaf.untyped_storage())
        self.peak = max(self.peak, self._bytes + passing)
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def freed(_: Any) -> None:
            del self._alive[key]
            self._bytes -= size

        self._alive[key] = weakref.ref(storage, freed)
        self._bytes += size


# Where torch's answer without numbers is not what a real kernel does.


def _convolution(input: Tensor, *rest: Any) -> Tensor:
    """Real kernels keep the layout of what they read; without numbers torch forgets it, and a copy would follow."""
    out = torch.ops.aten.convolution.default(input, *rest)
    if input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous():
        return torch.empty_like(out, memory_format=torch.channels_last)
    return out


# These are one kernel each. Without numbers torch takes them apart into a dozen operations, whose results nobody would
# write down, and which take longer than the rest of the step.


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


_ANSWERS: dict[Any, Callable[..., Any]] = {
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
