"""Intervals of means by the bootstrap, resampled by image or, where images of one identity go together, by identity.

Axes: N images, G clusters, R resamples.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xinv.errors import InputError, WorkError

CHUNK_ELEMENTS = 1 << 21  # indices drawn at a time: 16 MiB, whatever the number of images and resamples


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval. `_asdict()` is its form in scores.json."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval; an end that is exactly zero counts as inside."""
        return self.low > 0.0 or self.high < 0.0


def bootstrap_mean(
    values_N: Sequence[float] | np.ndarray,
    clusters_N: Sequence[Any] | np.ndarray | None,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """The mean of `values_N` with its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Whole clusters are drawn with replacement, as many as there are: with `clusters_N` the identities, images of one
    person, which are alike, do not pass for independent evidence. None makes every image its own cluster. The mean of a
    resample weighs images equally, hence large clusters by their size. Deterministic in `seed`; memory is bounded.

    The percentile bootstrap is too narrow for few clusters (under about 20). Where every value equals one of the
    `bounds` (the range of the metric) it would collapse to a point and claim certainty; then the far end is the exact
    binomial one of Clopper and Pearson (1934) for G of G successes, conservative for values that are not 0 or 1.

    InputError for fewer than two clusters, of which no interval can be made; WorkError for NaN or infinite values.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    assert values_N.ndim == 1 and resamples > 0 and 0.0 < level < 1.0, (values_N.shape, resamples, level)
    if not np.isfinite(values_N).all():
        raise WorkError(f"{int((~np.isfinite(values_N)).sum())} of {values_N.size} scores are NaN or infinite.")
    sum_G, count_G = _per_cluster(values_N, clusters_N)
    if len(sum_G) < 2:
        what = "images" if clusters_N is None else "identities"
        raise InputError(
            f"A confidence interval needs at least 2 {what}, there are {len(sum_G)}: enlarge the victim partition."
        )
    mean = float(values_N.mean())
    tail = (1.0 - level) / 2.0
    if bounds is not None and (values_N == values_N[0]).all() and values_N[0] in bounds:
        bottom, top = bounds
        slack = (top - bottom) * (1.0 - tail ** (1.0 / len(sum_G)))
        return Interval(mean, top - slack, top) if mean == top else Interval(mean, bottom, bottom + slack)
    mean_R = _resampled_means(sum_G, count_G, np.random.default_rng(seed), resamples)
    low, high = np.quantile(mean_R, [tail, 1.0 - tail])
    return Interval(mean, float(low), float(high))


def paired_difference(
    a_N: Sequence[float] | np.ndarray,
    b_N: Sequence[float] | np.ndarray,
    clusters_N: Sequence[Any] | np.ndarray | None,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Mean of a - b, image by image, with its interval as in `bootstrap_mean`.

    Both hold the scores of the same images in the same order. Pairing removes what makes an image hard for both
    attacks, so the interval is narrower than two separate ones would suggest.
    """
    a_N, b_N = np.asarray(a_N, dtype=np.float64), np.asarray(b_N, dtype=np.float64)
    assert a_N.shape == b_N.shape, (a_N.shape, b_N.shape)
    return bootstrap_mean(a_N - b_N, clusters_N, seed, resamples, level)


def _per_cluster(values_N: np.ndarray, clusters_N: Sequence[Any] | np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each cluster."""
    if clusters_N is None:
        return values_N, np.ones_like(values_N)
    assert len(clusters_N) == len(values_N), (len(clusters_N), len(values_N))
    _, cluster_N = np.unique(np.asarray(clusters_N), return_inverse=True)
    return np.bincount(cluster_N, weights=values_N), np.bincount(cluster_N).astype(np.float64)


def _resampled_means(sum_G: np.ndarray, count_G: np.ndarray, random: np.random.Generator, resamples: int) -> np.ndarray:
    """The mean over images of each of `resamples` draws of G clusters."""
    clusters = len(sum_G)
    equal = bool((count_G == count_G[0]).all())
    rows = max(1, CHUNK_ELEMENTS // clusters)
    mean_R = np.empty(resamples)
    for start in range(0, resamples, rows):
        part = slice(start, min(start + rows, resamples))
        drawn_RG = random.integers(clusters, size=(part.stop - part.start, clusters))
        total_R = sum_G[drawn_RG].sum(axis=1)
        mean_R[part] = total_R / (clusters * count_G[0] if equal else count_G[drawn_RG].sum(axis=1))
    return mean_R
