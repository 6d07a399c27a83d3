"""One forward pass of a batch, and the gradients that explanations read off it: of one class, of several, of all.

Axes in tensor names: N explained classes of each image, n those of one chunk, B batch, C image channels, A channels of
the activation, M map channels, H height, W width of the image, h and w of a map or activation, K all classes.

Calling an explainer class by class repeats the forward pass for each class. Here one forward pass serves every class
and every method that needs gradients of the logits, and the classes' backward passes run batched, by `torch.vmap`.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xinv.errors import InputError, WorkError

CPU_BUDGET = 16 << 20
"""Bytes that the gradients of one chunk of classes may take on a CPU.

Set by its caches rather than by its memory: beyond them a wide chunk is slower than its classes one by one
(tests/bench/explanations.py prints both). Any machine has this much left.
"""

WORTHWHILE = 4
"""Classes below which, on a CPU, going batched costs more than it saves."""

Classes = Tensor | int | Literal["all"]
"""The classes explained: class_NB itself, the N with the highest logits, or all in the order of the labels."""


class Chunks:
    """How many classes go backward at once: as many as memory lets through.

    On a CPU, which would swap rather than refuse, as many as `budget` bytes hold; elsewhere all at first. Whenever
    memory runs out the number is halved, tried again and kept for the batches to come.
    """

    def __init__(self, budget: int = CPU_BUDGET) -> None:
        self.budget = budget
        self.found: dict[str, int] = {}  # kind of gradient -> the number that memory let through

    def run(
        self, kind: str, total: int, bytes_each: int, device: torch.device, work: Callable[[int, int], Tensor]
    ) -> Tensor:
        """`work(start, stop)` over [0, total) in chunks, as one tensor; `bytes_each`: what one class takes, roughly."""
        size = min(total, self.found.get(kind, total))
        if device.type == "cpu":
            room = self.budget // max(1, bytes_each)
            size = min(size, room if room >= WORTHWHILE else 1)
        found: Tensor | None = None
        start = 0
        while start < total:
            short = False
            try:
                part = work(start, min(start + size, total))
                found = part.new_empty(total, *part.shape[1:]) if found is None else found
                found[start : start + size] = part
                start += size
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if size == 1:
                    raise WorkError(
                        "Memory ran out while one class was explained; lower release.batch_size, or use fewer workers."
                    ) from error
                short = True
            if short:  # behind the except clause, which holds on to the tensors of what failed
                size //= 2
                self.found[kind] = size
                if device.type == "cuda":
                    torch.cuda.empty_cache()
        assert found is not None, "no class to explain"
        return found


def out_of_memory(error: Exception) -> bool:
    """Whether torch raised `error` because memory ran out: an own class on GPUs, a message on CPUs."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


class Pass:
    """The explained classes of a batch and the gradients of their logits, from one forward pass at most.

    `image_BCHW`: a leaf that requires gradients. `graph`: whether gradients will be asked for; without, the forward
    pass keeps nothing. Hooks hang on `model` during the forward pass alone. Methods that cannot read these gradients
    take `model`, `image_BCHW` and `classes` from here.
    """

    def __init__(
        self, model: nn.Module, image_BCHW: Tensor, classes: Classes, graph: bool = True, chunks: Chunks | None = None
    ) -> None:
        self.model, self.image_BCHW = model, image_BCHW
        self.chunks = chunks or Chunks()
        self._classes, self._graph = classes, graph
        self._logit_BK: Tensor | None = None
        self._activation_BAhw: Tensor | None = None
        self._gradient: dict[str, Tensor] = {}
        self._bytes = {"image": 0, "activation": 0}  # of the outputs of all layers, and from cam_layer on
        self._batched = True

    @property
    def logits(self) -> Tensor:
        """The network's logits (B, K); computed when first asked for."""
        if self._logit_BK is None:
            self._logit_BK = self._forward()
        return self._logit_BK

    def prediction(self) -> Tensor:
        """The network's logits (B, K), float32, detached."""
        with torch.autocast(self.image_BCHW.device.type, enabled=False):
            return self.logits.detach().float()

    @property
    def classes(self) -> Tensor:
        """The classes explained, (N, B) int64. InputError when more are asked for than the network has."""
        if isinstance(self._classes, Tensor):
            return self._classes
        known = self.logits.shape[1]
        if self._classes == "all":
            return torch.arange(known, device=self.image_BCHW.device)[:, None].expand(-1, len(self.image_BCHW))
        if self._classes > known:
            raise InputError(f"{self._classes} classes cannot be explained: the network has {known}.")
        if self._classes == 1:
            return self.logits.detach().argmax(dim=1)[None]
        order_BK = self.logits.detach().argsort(dim=1, descending=True, stable=True)
        return order_BK[:, : self._classes].T

    @property
    def activation(self) -> Tensor:
        """What the model's cam_layer gave out, (B, A, h, w), detached."""
        assert self.logits is not None and self._activation_BAhw is not None, "check the network before explaining it"
        return self._activation_BAhw.detach()

    def image_gradient(self) -> Tensor:
        """Gradient (N, B, C, H, W) of each explained logit by the image; computed once for all methods."""
        if "image" not in self._gradient:
            class_NB = self.classes
            if len(class_NB) == 1 and self.logits.requires_grad and self._activation_BAhw is not None:
                # The activation's gradient lies on the way to the image's.
                image, activation = self._vjp([self.image_BCHW, self._activation_BAhw], class_NB)
                self._gradient |= {"image": image, "activation": activation}
            else:
                self._gradient["image"] = self._chunked("image", class_NB, self.image_BCHW, lambda gradient: gradient)
        return self._gradient["image"]

    def over_activation(self, reduce: Callable[[Tensor, Tensor], Tensor], class_NB: Tensor | None = None) -> Tensor:
        """`reduce(gradient_nBAhw, activation_BAhw)` -> map_nBMhw over chunks of classes, as map_NBMhw.

        Reduced chunk by chunk, because the gradients of a thousand classes by a wide layer fit in no memory.
        `class_NB`: other classes than the explained ones.
        """
        activation_BAhw = self.activation
        assert self._activation_BAhw is not None
        if class_NB is not None or len(self.classes) > 1:
            wanted_NB = self.classes if class_NB is None else class_NB
            return self._chunked(
                "activation", wanted_NB, self._activation_BAhw, lambda gradient: reduce(gradient, activation_BAhw)
            )
        if "activation" not in self._gradient:
            (gradient,) = self._vjp([self._activation_BAhw], self.classes)
            self._gradient["activation"] = gradient
        return reduce(self._gradient["activation"], activation_BAhw)

    def free(self) -> None:
        """Forget the graph; the logits and the gradients found so far stay."""
        self._graph = False
        self._activation_BAhw = None
        if self._logit_BK is not None:
            self._logit_BK = self._logit_BK.detach()

    def _chunked(self, kind: str, class_NB: Tensor, source: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        def work(start: int, stop: int) -> Tensor:
            (gradient,) = self._vjp([source], class_NB[start:stop])
            return reduce(gradient)

        return self.chunks.run(kind, len(class_NB), self._bytes[kind], source.device, work)

    def _vjp(self, sources: Sequence[Tensor], class_nB: Tensor) -> list[Tensor]:
        """Gradients of the logits of `class_nB` by each of `sources`, with the axis n in front."""
        logit_BK = self.logits
        row_nBK = F.one_hot(class_nB, logit_BK.shape[1]).to(logit_BK.dtype)
        if self._batched and len(class_nB) > 1:
            try:
                return _gradients(logit_BK, sources, row_nBK, batched=True)
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                # A network's own autograd function may not bear a batch of gradients, and vmap has many words for it:
                # then class by class, on the same graph. What is wrong for another reason fails there again.
                self._batched = False
        each = [_gradients(logit_BK, sources, row_BK, batched=False) for row_BK in row_nBK]
        return [torch.stack(parts) for parts in zip(*each, strict=True)]

    def _forward(self) -> Tensor:
        layer = getattr(self.model, "cam_layer", None) if self._graph else None
        handles = []

        def count(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                for kind in self._bytes:
                    self._bytes[kind] += output.numel() * output.element_size()

        def keep(module: nn.Module, inputs: object, output: object) -> Tensor | None:
            if not isinstance(output, Tensor) or not output.requires_grad:
                return None
            self._activation_BAhw = output
            self._bytes["activation"] = output.numel() * output.element_size()
            return output.clone()  # the network may go on in place

        try:
            if self._graph:
                leaves = [module for module in self.model.modules() if not list(module.children())]
                handles += [module.register_forward_hook(count) for module in leaves]
            if isinstance(layer, nn.Module):
                handles.append(layer.register_forward_hook(keep))
            with torch.set_grad_enabled(self._graph):
                logit_BK: Tensor = self.model(self.image_BCHW.clone())  # the network may begin in place
        finally:
            for handle in handles:
                handle.remove()
        return logit_BK


def _gradients(logit_BK: Tensor, sources: Sequence[Tensor], row: Tensor, batched: bool) -> list[Tensor]:
    """Vector-Jacobian products of one row_BK, or of row_nBK when batched; zeros where a source does not count."""

    def product(row_BK: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            logit_BK, sources, row_BK, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    # autograd.grad(is_grads_batched=True) is the same on an older vmap, which has no rules for GELU and GroupNorm.
    return list(torch.vmap(product)(row) if batched else product(row))


def each_class(explained: Pass, one: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Tensor:
    """map_NBMhw of a method that explains one class a call: `one(model, image_BCHW, class_B)` -> map_BMhw."""
    return torch.stack([one(explained.model, explained.image_BCHW, class_B) for class_B in explained.classes])
