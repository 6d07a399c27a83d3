"""One training step of a network, worked out without allocating it: parameters, FLOPs, and what memory holds when.

The step is run twice on tensors that have shapes and no numbers, with 2 images and with 3. Every storage's size is a
constant or a multiple of the number of images, so the two runs tell all others.
"""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from xinv.data.loader import Batch
from xinv.nets.recompute import recompute
from xinv.plan.meter import Meter
from xinv.train.losses import LossSettings
from xinv.train.objectives import OBJECTIVES
from xinv.train.weights import ClassifierSpec, NetworkSpec

Precision = Literal["fp32", "bf16"]
Line = tuple[np.ndarray, np.ndarray]
"""A series, one value an operation: what is constant, and what each image adds."""

SIZES = (2, 3)
_SPEC: TypeAdapter[NetworkSpec] = TypeAdapter(NetworkSpec)


@dataclass(frozen=True)
class Step:
    """A forward and backward pass of one rank, as a function of its images.

    Attributes:
        parameters: numbers of each parameter, in the network's order; `owners`: the module that each belongs to.
        trained: whether each parameter is trained.
        buffers: bytes of what the network holds beside its parameters.
        input_bytes: bytes of one image's part of a batch.
        arrivals: as `Meter.arrivals`; `uses`: as `Meter.uses`.
    """

    parameters: tuple[int, ...]
    owners: tuple[str, ...]
    trained: tuple[bool, ...]
    buffers: int
    input_bytes: int
    arrivals: tuple[tuple[int, int], ...]
    uses: tuple[tuple[int, int], ...]
    _held: Line
    _flops: tuple[int, int]
    _validation: Line | None

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parameters)

    @property
    def sizes(self) -> list[int]:
        """Numbers of each parameter that is trained."""
        return [count for count, on in zip(self.parameters, self.trained, strict=True) if on]

    def held(self, images: int) -> np.ndarray:
        """Bytes alive with each operation, weights and gradients at rest aside; int64."""
        return self._held[0] + images * self._held[1]

    def flops(self, images: int) -> int:
        """Forward and backward of so many images."""
        return self._flops[0] + images * self._flops[1]

    def validation(self, images: int) -> int:
        """The most bytes that are alive while so many images are validated, weights aside; 0 where nobody asked."""
        if self._validation is None:
            return 0
        return int((self._validation[0] + images * self._validation[1]).max())


def step_of(
    spec: NetworkSpec,
    objective: str,
    loss: LossSettings | None = None,
    precision: Precision = "fp32",
    recompute: bool = False,
    frozen: tuple[str, ...] = (),
) -> Step:
    """The training step of a network, for any number of images; a tenth of a second, several times that in bf16, and
    remembered.

    Args:
        spec, objective, loss, frozen: as in a `TrainJob`.
        precision: bf16: as `Engine` runs it, in autocast.
        recompute: activations are computed again in backward (`TrainingSettings.recompute`).

    Raises:
        InputError: the network cannot be built, as `spec.build`.
    """
    return _step_of(spec.model_dump_json(), objective, loss or LossSettings(), precision, recompute, frozen)


@functools.lru_cache(maxsize=1024)
def _step_of(
    described: str, objective: str, loss: LossSettings, precision: Precision, recompute: bool, frozen: tuple[str, ...]
) -> Step:
    asked = _Asked(_SPEC.validate_json(described), objective, loss, precision, recompute, frozen)
    first, second = SIZES
    small, large = (_measured(asked, images, validates=True) for images in SIZES)
    assert small.meter.arrivals == large.meter.arrivals and small.validation and large.validation
    slope = (large.meter.flops - small.meter.flops) // (second - first)
    return small.step(
        held=_line(small.meter.held, large.meter.held),
        flops=(small.meter.flops - first * slope, slope),
        validation=_line(small.validation, large.validation),
        input_bytes=small.input_bytes // first,
    )


def step_at(
    spec: NetworkSpec, objective: str, images: int, precision: Precision = "fp32", loss: LossSettings | None = None
) -> Step:
    """As `step_of`, for this number of images alone and without its validation: in a third of the time."""
    return _step_at(spec.model_dump_json(), objective, images, precision, loss or LossSettings())


@functools.lru_cache(maxsize=1024)
def _step_at(described: str, objective: str, images: int, precision: Precision, loss: LossSettings) -> Step:
    asked = _Asked(_SPEC.validate_json(described), objective, loss, precision, False, ())
    found = _measured(asked, images, validates=False)
    held = np.asarray(found.meter.held, dtype=np.int64)
    return found.step((held, np.zeros_like(held)), (found.meter.flops, 0), None, found.input_bytes // images)


def _line(small: list[int], large: list[int]) -> "Line":
    assert len(small) == len(large), "a step whose operations depend on the batch"
    low, high = np.asarray(small, dtype=np.int64), np.asarray(large, dtype=np.int64)
    slope = (high - low) // (SIZES[1] - SIZES[0])
    return low - SIZES[0] * slope, slope


@dataclass(frozen=True)
class _Asked:
    spec: NetworkSpec
    objective: str
    loss: LossSettings
    precision: Precision
    recompute: bool
    frozen: tuple[str, ...]


@dataclass(frozen=True)
class _Measured:
    parameters: tuple[int, ...]
    owners: tuple[str, ...]
    trained: tuple[bool, ...]
    buffers: int
    meter: Meter
    input_bytes: int
    validation: list[int] | None

    def step(self, held: Line, flops: tuple[int, int], validation: Line | None, input_bytes: int) -> Step:
        return Step(
            parameters=self.parameters,
            owners=self.owners,
            trained=self.trained,
            buffers=self.buffers,
            input_bytes=input_bytes,
            arrivals=tuple(self.meter.arrivals),
            uses=tuple(self.meter.uses),
            _held=held,
            _flops=flops,
            _validation=validation,
        )


def _measured(asked: "_Asked", images: int, validates: bool) -> _Measured:
    """The step on so many images, without numbers."""
    spec = asked.spec
    with _empty(asked.precision):
        network = spec.build()
        recompute(network, asked.recompute)
        for name in asked.frozen:
            network.get_submodule(name).requires_grad_(False)
        learned = OBJECTIVES[asked.objective](network, asked.loss)
        with Meter(network) as meter:
            batch = batch_for(spec, images)
            input_bytes = meter.held[-1]
            output = _forward(network, learned.inputs(batch), asked.precision)
            (learned.loss_B(output, batch) * batch.weight_B).sum().backward()
        del output
        validating = None
        if validates:
            network.eval()
            with Meter(network) as looking, torch.no_grad():
                batch = batch_for(spec, images)
                output = _forward(network, learned.inputs(batch), asked.precision)
                learned.selection_B(output, batch)
                learned.metrics_B(output, batch)
            validating = looking.held
    named = list(network.named_parameters())
    return _Measured(
        parameters=tuple(parameter.numel() for _, parameter in named),
        owners=tuple(name.rpartition(".")[0] for name, _ in named),
        trained=tuple(parameter.requires_grad for _, parameter in named),
        buffers=sum(buffer.nbytes for buffer in network.buffers()),
        meter=meter,
        input_bytes=input_bytes,
        validation=validating,
    )


@contextmanager
def _empty(precision: Precision) -> Iterator[None]:
    # Meta tensors are several times faster than fake ones, and have no autocast.
    empty: AbstractContextManager[Any] = torch.device("meta")
    if precision == "bf16":
        from torch._subclasses.fake_tensor import FakeTensorMode

        empty = FakeTensorMode()
    with empty:
        yield


def _forward(network: nn.Module, inputs: tuple[Any, ...], precision: Precision) -> Any:
    """As the engine calls it: autocast inside, fp32 outside."""
    if precision == "fp32":
        return network(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(*inputs)
    return output.float() if isinstance(output, Tensor) else tuple(one.float() for one in output)


def batch_for(spec: NetworkSpec, images: int, device: torch.device | None = None) -> Batch:
    """What a rank reads for a step: ones, labels 0. Without numbers where an empty kind of tensor is in force."""
    attributes = len(spec.attributes) if isinstance(spec, ClassifierSpec) else 0
    maps = {} if isinstance(spec, ClassifierSpec) else dict(zip(spec.methods, spec.maps, strict=True))
    dropout = getattr(spec, "explanation_dropout", None)

    def ones(*shape: int) -> Tensor:
        return torch.ones(images, *shape, device=device)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(images, *shape, dtype=torch.int64, device=device)

    return Batch(
        key=[""] * images,
        identity=[""] * images,
        image_BCHW=ones(spec.channels, spec.size, spec.size),
        label_B=zeros(),
        prediction_BK=ones(spec.classes),
        maps={name: ones(*shape) for name, shape in maps.items()},
        weight_B=ones(),
        samples=images,
        cursor=0,
        present_BG=None if dropout is None else ones(len(maps)),
        attribute_BA=zeros(attributes) if attributes else None,
    )
