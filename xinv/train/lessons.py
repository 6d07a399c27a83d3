"""Two release sets read side by side: the target's predictions, and the maps of the attacker's surrogate."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from xinv.data.loader import Batch, Reader
from xinv.errors import InputError


class Lessons:
    """Reads like a Reader: each batch has the target's predictions and the surrogate's maps of the same images.

    Args:
        images, partition: as for Reader.
        releases: release set of the target, read for predictions.
        surrogate: release set of the surrogate, read for the maps of `methods`.
        options: further arguments of Reader, the same for both, so that both read in the same order.

    Raises:
        InputError: the sets do not fit the images, or too little memory to read both in one order.
    """

    def __init__(
        self, images: Path, partition: str, releases: Path, surrogate: Path, methods: tuple[str, ...], **options: Any
    ) -> None:
        self._told = Reader(images, partition, releases, (), **options)
        self._shown = Reader(images, partition, surrogate, methods, **options)
        if self._told.window != self._shown.window:
            raise InputError(
                f"{partition}: the target's predictions fit memory_mib and the surrogate's maps do not, so they would "
                "come in two orders; raise memory_mib or lower shuffle_window."
            )
        self.samples = self._told.samples
        self.map_shapes = self._shown.map_shapes

    def epoch(self, epoch: int, batch_size: int, cursor: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        plan = (epoch, batch_size, cursor, rank, world)
        return self._joined(self._told.epoch(*plan), self._shown.epoch(*plan))

    def once(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        plan = (batch_size, rank, world)
        return self._joined(self._told.once(*plan), self._shown.once(*plan))

    def _joined(self, told: Iterator[Batch], shown: Iterator[Batch]) -> Iterator[Batch]:
        for left, right in zip(told, shown, strict=True):
            assert left.key == right.key, (left.key[:3], right.key[:3])
            yield replace(left, maps=right.maps)
