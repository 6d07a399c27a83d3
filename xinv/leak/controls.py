"""Controls: attacks that ought to fail, so that what the real ones achieve can be told from what anybody would.

Axes: B images, C channels, H height, W width, N images of a partition.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from xinv.errors import InputError


def mean_image(images: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean image_CHW of the attacker's images, float32 in [0, 1]: a "reconstruction" that uses no release at all.

    `images` yields (image_BCHW, weight_B); an image of weight 0 (padding of a short batch) does not count. Summed in
    float64, so that the mean does not depend on how many images there are or how they were batched beyond rounding.
    InputError when no image has any weight.
    """
    total_CHW: Tensor | None = None
    weight = 0.0
    for image_BCHW, weight_B in images:
        assert image_BCHW.shape[0] == weight_B.shape[0], (image_BCHW.shape, weight_B.shape)
        part_CHW = torch.einsum("bchw,b->chw", image_BCHW.double(), weight_B.double())
        total_CHW = part_CHW if total_CHW is None else total_CHW + part_CHW
        weight += float(weight_B.double().sum())
    if total_CHW is None or weight <= 0.0:
        raise InputError("The mean image needs at least one image, and the attack partition gave none: enlarge it.")
    return (total_CHW / weight).float()


def other_image(n: int, seed: int) -> np.ndarray:
    """For each of `n` images the position of another one: an int64 permutation without fixed points, deterministic.

    Uniform over all such permutations (permutations are drawn until one has no fixed point: about e draws). Fed to an
    inverter, explanation i belonging to image other[i], it shows what an explanation gives away because it is *an*
    explanation, not because it is this image's. InputError for n < 2.
    """
    if n < 2:
        raise InputError(f"The control 'explanation of another image' needs at least 2 images, there are {n}.")
    return _derangement(n, np.random.default_rng(seed))


def other_image_of_class(label_N: Sequence[int] | np.ndarray, seed: int) -> np.ndarray:
    """For each image the position of another one *of the same label*, where there is one: int64 (N,), deterministic.

    The hardest fair form of `other_image`: prediction and label still agree with the explanation, so what remains of
    the leak is what explanations of a class have in common. Within a label every image serves exactly once; an image
    alone in its label gets any other image, drawn uniformly. InputError for fewer than 2 images.
    """
    label_N = np.asarray(label_N)
    if len(label_N) < 2:
        raise InputError(
            f"The control 'explanation of another image' needs at least 2 images, there are {len(label_N)}."
        )
    random = np.random.default_rng(seed)
    other_N = np.empty(len(label_N), dtype=np.int64)
    for label in np.unique(label_N):
        members = np.flatnonzero(label_N == label)
        if len(members) > 1:
            other_N[members] = members[_derangement(len(members), random)]
        else:
            shift = random.integers(1, len(label_N))
            other_N[members] = (members + shift) % len(label_N)
    return other_N


def partners(label_N: Sequence[int] | np.ndarray, batch_size: int, seed: int) -> tuple[np.ndarray, int]:
    """`other_image_of_class` for a partition that is scored in batches of consecutive images.

    Where a batch holds another image of the label, the partner is drawn from the batch, so that few shards are needed
    at a time. An image alone of its label in its batch gets the next of that label in the partition, after the last
    the first; one alone in the partition gets any other of its batch.

    Returns:
        Positions int64 (N,), deterministic, never an image's own; and how many images got one of another label.
    """
    label_N = np.asarray(label_N)
    starts = range(0, len(label_N), batch_size)
    other_N = np.concatenate(
        [start + other_image_of_class(label_N[start : start + batch_size], seed + start) for start in starts]
    )
    without = 0
    for place in np.flatnonzero(label_N[other_N] != label_N):
        members = np.flatnonzero(label_N == label_N[place])
        if len(members) > 1:
            other_N[place] = members[(np.searchsorted(members, place) + 1) % len(members)]
        else:
            without += 1
    return other_N, without


def _derangement(n: int, random: np.random.Generator) -> np.ndarray:
    """A uniform random permutation of 0..n-1 that leaves nothing in its place (n >= 2)."""
    while True:
        order_N = random.permutation(n)
        if (order_N != np.arange(n)).all():
            return order_N.astype(np.int64)
