"""Intervals of means by the bootstrap, resampled by image or, where images of one identity go together, by identity,
and over several trainings by seed too; tests of differences, corrected for their number.

Axes: N images, S training seeds, G clusters, R resamples.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from xinv.errors import InputError, WorkError

CHUNK_ELEMENTS = 1 << 21  # indices drawn at a time: 16 MiB, whatever the number of images and resamples


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval. `_asdict()` is its form in scores.json."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A mean difference with its confidence interval, and what the same resamples say about zero."""

    mean: float
    low: float
    high: float
    p: float
    standard_error: float


class Ratio(NamedTuple):
    """A ratio of two means with the ends of its confidence interval."""

    value: float
    low: float
    high: float


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    clusters_N: Sequence[Any] | np.ndarray | None,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """The mean of `values` with its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    `values` is (N,), or (S, N) where the same images were scored after S trainings that differ by their seed alone.
    Whole clusters are drawn with replacement, as many as there are: with `clusters_N` the identities, images of one
    person, which are alike, do not pass for independent evidence. None makes every image its own cluster. With several
    seeds, seeds are drawn with replacement too, independently of the clusters, because every seed scored every image
    (Owen, "The pigeonhole bootstrap", 2007). The mean of a resample weighs images equally, hence large clusters by
    their size. Deterministic in `seed`; memory is bounded.

    The percentile bootstrap is too narrow for few clusters (under about 20) and for few seeds: the variance between S
    seeds comes out (S - 1) / S of what it is, half of it for two. Where every value equals one of the `bounds` (the
    range of the metric) it would collapse to a point and claim certainty; then the far end is the exact binomial one of
    Clopper and Pearson (1934) for G of G successes, conservative for values that are not 0 or 1.

    InputError for fewer than two clusters, of which no interval can be made; WorkError for NaN or infinite values.
    """
    value_SN = _checked(values, resamples, level)
    mean_R, clusters = _resampled_means(value_SN, clusters_N, seed, resamples)
    mean, tail = float(value_SN.mean()), (1.0 - level) / 2.0
    if bounds is not None and (value_SN == value_SN[0, 0]).all() and value_SN[0, 0] in bounds:
        bottom, top = bounds
        slack = (top - bottom) * (1.0 - tail ** (1.0 / clusters))
        return Interval(mean, top - slack, top) if mean == top else Interval(mean, bottom, bottom + slack)
    return Interval(mean, *_ends(mean_R, level))


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    clusters_N: Sequence[Any] | np.ndarray | None,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Difference:
    """Mean of a - b, image by image, with its interval as in `bootstrap_mean`, its p-value and its standard error.

    Both hold the scores of the same images in the same order, (N,) or (S, N); training s of one is paired with
    training s of the other, and (N,), what needs no training, with every one. Pairing removes what makes an image hard
    for both attacks, so the interval is narrower than two separate ones would suggest.

    p: two-sided, of no difference, from the resamples behind the interval: twice the share of them on the rarer side of
    zero, and at least 1 / (resamples + 1), for R resamples cannot tell less apart. So it is below 1 - level where the
    interval excludes zero, up to rounding. standard_error: the standard deviation of the resampled means.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape[-1] == b.shape[-1] and (a.ndim == 1 or b.ndim == 1 or a.shape == b.shape), (a.shape, b.shape)
    value_SN = _checked(a - b, resamples, level)
    mean_R, _ = _resampled_means(value_SN, clusters_N, seed, resamples)
    rarer = min(int((mean_R <= 0.0).sum()), int((mean_R >= 0.0).sum()))
    p = min(1.0, max(1, 2 * rarer) / (resamples + 1))
    return Difference(float(value_SN.mean()), *_ends(mean_R, level), p, float(mean_R.std()))


def paired_ratio(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    clusters_N: Sequence[Any] | np.ndarray | None,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Ratio:
    """The mean of a over the mean of b, with its percentile interval: each resample draws clusters and seeds as in
    `bootstrap_mean`, the same ones for both, and takes the ratio of their means.

    Both hold scores above 0 of the same images in the same order, both (N,) or both (S, N); training s of one is paired
    with training s of the other. The ratio of means, not the mean of ratios: an image that b gets almost right would
    outweigh all others.

    InputError for fewer than two clusters; WorkError for NaN or infinite values, or where the mean of b is 0.
    """
    a_SN, b_SN = (_checked(values, resamples, level) for values in (a, b))
    assert a_SN.shape == b_SN.shape, (a_SN.shape, b_SN.shape)
    above_R, _ = _resampled_means(a_SN, clusters_N, seed, resamples)
    below_R, _ = _resampled_means(b_SN, clusters_N, seed, resamples)
    if not (below_R > 0.0).all():
        raise WorkError("A ratio of errors needs errors above 0, and one of the two has none on some resample.")
    return Ratio(float(a_SN.mean() / b_SN.mean()), *_ends(above_R / below_R, level))


def _ends(value_R: np.ndarray, level: float) -> tuple[float, float]:
    """The percentile interval of resampled values."""
    low, high = np.quantile(value_R, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number (Holm 1979), in the order given: at most alpha means rejected at alpha.

    Holds the chance of even one false rejection at alpha whatever the dependence, which matters here: the attacks
    share victims and baseline.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=lambda number: p_values[number])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[number]))
        adjusted[number] = largest
    return adjusted


def detectable_effect(standard_error: float, level: float = 0.95, power: float = 0.8, tests: int = 1) -> float:
    """The smallest true difference that would be found in a share `power` of repeated audits, in the metric's unit.

    (z(1 - alpha / 2) + z(power)) standard errors, alpha being (1 - level) / tests: the strictest step of Holm's
    correction over `tests` differences. It takes the resampled mean to be normal.
    """
    assert standard_error >= 0.0 and 0.0 < level < 1.0 and 0.0 < power < 1.0 and tests >= 1
    quantile = NormalDist().inv_cdf
    return (quantile(1.0 - (1.0 - level) / (2.0 * tests)) + quantile(power)) * standard_error


def _checked(values: Sequence[float] | np.ndarray, resamples: int, level: float) -> np.ndarray:
    """`values` as float64 (S, N)."""
    value_SN = np.atleast_2d(np.asarray(values, dtype=np.float64))
    assert value_SN.ndim == 2 and resamples > 0 and 0.0 < level < 1.0, (value_SN.shape, resamples, level)
    if not np.isfinite(value_SN).all():
        raise WorkError(f"{int((~np.isfinite(value_SN)).sum())} of {value_SN.size} scores are NaN or infinite.")
    return value_SN


def _resampled_means(
    value_SN: np.ndarray, clusters_N: Sequence[Any] | np.ndarray | None, seed: int, resamples: int
) -> tuple[np.ndarray, int]:
    """The mean over images and seeds of each of `resamples` draws of G clusters and S seeds; and G."""
    seeds, images = value_SN.shape
    cluster_N = np.arange(images)
    if clusters_N is not None:
        assert len(clusters_N) == images, (len(clusters_N), images)
        cluster_N = np.unique(np.asarray(clusters_N), return_inverse=True)[1]
    sum_SG = np.stack([np.bincount(cluster_N, weights=value_N) for value_N in value_SN])
    count_G = np.bincount(cluster_N).astype(np.float64)
    clusters = len(count_G)
    if clusters < 2:
        what = "images" if clusters_N is None else "identities"
        raise InputError(
            f"A confidence interval needs at least 2 {what}, there are {clusters}: enlarge the victim partition."
        )
    equal = bool((count_G == count_G[0]).all())
    of_clusters, of_seeds = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    rows = max(1, CHUNK_ELEMENTS // clusters)
    mean_R = np.empty(resamples)
    for start in range(0, resamples, rows):
        part = slice(start, min(start + rows, resamples))
        drawn_RG = of_clusters.integers(clusters, size=(part.stop - part.start, clusters))
        if seeds == 1:
            drawn_sum_RG = sum_SG[0][drawn_RG]
        else:
            share_RS = of_seeds.multinomial(seeds, [1.0 / seeds] * seeds, size=len(drawn_RG)) / seeds
            drawn_sum_RG = np.take_along_axis(share_RS @ sum_SG, drawn_RG, axis=1)
        images_R = clusters * count_G[0] if equal else count_G[drawn_RG].sum(axis=1)
        mean_R[part] = drawn_sum_RG.sum(axis=1) / images_R
    return mean_R, clusters
