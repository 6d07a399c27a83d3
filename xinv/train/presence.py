"""Explanation dropout: which explanations of an image an inverter is shown while it learns.

Like modality dropout in multimodal learning (Neverova et al., ModDrop, TPAMI 2016): one network learns to do with any
subset of its inputs. Unlike dropout of activations nothing is rescaled, because the network is told what is missing.

Axes: B images, G explanations.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xinv.data.loader import Batch, Reader

MOST = 16  # explanations: a hash of 64 bytes holds 4 for each


def present(keys: Sequence[str], count: int, dropout: float, seed: int, epoch: int | None) -> torch.Tensor:
    """present_BG, float32: 1 where an explanation is shown, 0 where it is withheld, with probability `dropout` each.

    A pure function of (seed, epoch, key), whoever asks for it and in whatever company: ranks, batches and resumes do
    not matter. `epoch` None: the same in every epoch, for validation. All of an image's explanations may be withheld.
    About a microsecond an image.

    Args:
        keys: of the images.
        count: G, at most 16.
    """
    assert 1 <= count <= MOST, count
    prefix = f"{seed}:{'' if epoch is None else epoch}:"
    found = b"".join(blake2b(f"{prefix}{key}".encode(), digest_size=4 * count).digest() for key in keys)
    draw_BG = np.frombuffer(found, dtype="<u4").reshape(len(keys), count)
    return torch.from_numpy((draw_BG >= dropout * 2.0**32).astype(np.float32))


class WithholdingReader(Reader):
    """A Reader whose batches say which explanations are withheld (`Batch.present_BG`); it reads all of them.

    `epoch` draws anew for every image and epoch. `once` draws the same for an image each time, so that validation means
    are over the subsets too, and comparable from epoch to epoch.

    Args:
        dropout: probability with which each explanation is withheld, between 0 and 1.
        options: further arguments of Reader.
    """

    def __init__(
        self,
        images: Path,
        partition: str,
        releases: Path | None,
        methods: tuple[str, ...],
        *,
        dropout: float,
        **options: Any,
    ) -> None:
        super().__init__(images, partition, releases, methods, **options)
        self.dropout = dropout

    def epoch(self, epoch: int, batch_size: int, cursor: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        plan = super().epoch(epoch, batch_size, cursor, rank, world)
        return map(functools.partial(self._withheld, epoch), plan)

    def once(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        return map(functools.partial(self._withheld, None), super().once(batch_size, rank, world))

    def _withheld(self, epoch: int | None, batch: Batch) -> Batch:
        return replace(batch, present_BG=present(batch.key, len(self.methods), self.dropout, self.seed, epoch))
