"""Two release sets read side by side: the target's predictions, and the maps that another network gave."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from xinv.data.loader import Batch, Reader


class Lessons:
    """Reads like a Reader: each batch has the target's predictions and another network's maps of the same images.

    Args:
        images, partition: as for Reader.
        releases: release set of the target, read for predictions.
        lessons: release set of the other network, the attacker's surrogate or an untrained target, read for the maps
            of `methods`.
        options: further arguments of Reader, the same for both, so that both read in the same order.

    Raises:
        InputError: the sets do not fit the images.
    """

    def __init__(
        self, images: Path, partition: str, releases: Path, lessons: Path, methods: tuple[str, ...], **options: Any
    ) -> None:
        self._told = Reader(images, partition, releases, (), **options)
        self._shown = Reader(images, partition, lessons, methods, **options)
        # The window follows from the size of a sample and decides the order, which must be one for both.
        self._told.window = self._shown.window = min(self._told.window, self._shown.window)
        self.samples = self._told.samples
        self.image_shape, self.map_shapes = self._told.image_shape, self._shown.map_shapes

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
