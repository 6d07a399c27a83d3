"""Control: the attacker's own image whose release is nearest to the victim's. Nothing is trained.

Axes: V victims searched for together, A attack images of a batch, D values of a release, C image channels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

Release = Sequence[Tensor]
"""The parts of the releases of some images: prediction_BK and maps (B, M, h, w)."""

BLOCK_BYTES = 256 << 20
"""Scoring batches of victims are searched for together while their releases, in float64, take no more than this."""

TIE = 1e-9
"""Distances that differ by less than this share are rounding errors apart: they tie."""


def nearest_images(
    victims: Iterable[Release], attack: Callable[[], Iterable[tuple[Release, Tensor]]], device: torch.device
) -> Iterator[Tensor]:
    """For each victim the image of the attack partition whose release is nearest; of equally near ones the first.

    The distance is Euclidean, by comparison with every attack image (nothing approximate, float64). Each part of the
    release counts alike: its values are divided by the standard deviation of their channel over the attack partition (a
    logit is a channel of its own) and its squared distance by the number of its values. A channel that never varies
    there favours nobody and is left out.

    Args:
        victims: releases, batch by batch. A victim's image is no argument.
        attack: called for each pass over the attack partition: (releases, image_ACHW in [0, 1]) in index order.

    Yields:
        image_VCHW for each batch of victims, float32 on `device`. Memory: a block of victims (one batch, and further
        ones while they take BLOCK_BYTES) and one batch of attack images, whatever the size of either partition. The
        attack partition is read once for the scales and once for each block.
    """
    scales = _scales(release for release, _ in attack())
    for block in _blocks(_weighted(release, scales).to(device) for release in victims):
        found_VCHW = _search(torch.cat(block), attack(), scales)
        yield from found_VCHW.split([len(part_VD) for part_VD in block])


def _scales(releases: Iterable[Release]) -> list[tuple[Tensor, Tensor]]:
    """(mean, factor) of each part, broadcastable to it: (value - mean) * factor is what distances are taken of."""
    sums: list[Tensor] = []
    count = 0
    shapes: list[torch.Size] = []
    for release in releases:
        count += len(release[0])
        shapes = [part.shape[1:] for part in release]
        # Per image first: a mean of means over pixels is the mean over all, and squares stay small.
        found = [_per_channel(part) for part in release]
        moments = [torch.stack([value.mean(2).sum(0), value.square().mean(2).sum(0)]) for value in found]
        sums = [total + more for total, more in zip(sums, moments, strict=True)] if sums else moments
    scales = []
    for (mean, square), shape in zip(sums, shapes, strict=True):
        mean, spread = mean / count, (square / count - (mean / count).square()).clamp_min(0).sqrt()
        varies = spread > 1e-7 * mean.abs().clamp_min(1e-5)  # below that it is the rounding of float32
        factor = torch.where(varies, 1.0 / spread, torch.zeros_like(spread)) / shape.numel() ** 0.5
        ones = [1] * (len(shape) - 1)
        scales.append((mean.view(-1, *ones), factor.view(-1, *ones)))
    return scales


def _per_channel(part: Tensor) -> Tensor:
    """(B, channels, values) in float64."""
    return part.double().reshape(len(part), part.shape[1], -1)


def _weighted(release: Release, scales: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """release_BD in float64, between which the plain Euclidean distance is the one searched by."""
    return torch.cat(
        [((part.double() - mean) * factor).flatten(1) for part, (mean, factor) in zip(release, scales, strict=True)],
        dim=1,
    )


def _blocks(batches: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    block: list[Tensor] = []
    for part_VD in batches:
        block.append(part_VD)
        if sum(part.nbytes for part in block) + part_VD.nbytes > BLOCK_BYTES:
            yield block
            block = []
    if block:
        yield block


def _search(
    victim_VD: Tensor, attack: Iterable[tuple[Release, Tensor]], scales: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """image_VCHW of the nearest attack images."""
    device = victim_VD.device
    own_V = victim_VD.square().sum(1)
    best_V = torch.full_like(own_V, torch.inf)
    image_VCHW: Tensor | None = None
    for release, image_ACHW in attack:
        known_AD = _weighted(release, scales).to(device)
        norm_A = known_AD.square().sum(1)
        # |v - a|^2 = |v|^2 - 2 v.a + |a|^2 rounds in proportion to the norms, so that ties are told by them too.
        distance_VA = own_V[:, None] - 2 * victim_VD @ known_AD.T + norm_A[None]
        slack_V = TIE * (own_V + norm_A.max())
        least_V = distance_VA.min(1).values
        place_V = (distance_VA <= (least_V + slack_V)[:, None]).int().argmax(1)  # the first of those that tie
        better_V = least_V < best_V - slack_V
        candidate_VCHW = image_ACHW.to(device)[place_V]
        image_VCHW = (
            candidate_VCHW
            if image_VCHW is None
            else torch.where(better_V[:, None, None, None], candidate_VCHW, image_VCHW)
        )
        best_V = torch.where(better_V, least_V, best_V)
    assert image_VCHW is not None, "an image set without attack images cannot be built"
    return image_VCHW
