"""Who is at risk: a mean hides the few from whom an explanation takes most.

Axes: N images, U units (identities, or images where identities do not repeat), R resamples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xinv.leak.metrics import MSE_FLOOR
from xinv.leak.statistics import CHUNK_ELEMENTS, Interval, bootstrap_mean

REPEATED = 10  # identities with several images, from which on risk is told by identity


def by_identity(identity_N: Sequence[str] | np.ndarray) -> bool:
    """Whether there are at least ten identities with several images each; else risk is told by image."""
    return int((np.unique(np.asarray(identity_N), return_counts=True)[1] > 1).sum()) >= REPEATED


def removed_error(attack: np.ndarray, baseline: np.ndarray, unit_N: np.ndarray | None) -> np.ndarray:
    """The share of the baseline's error that the attack removes for each unit, float64 (U,), in [-1, 1].

    `attack` and `baseline` are the squared errors of the same images, (N,) or (S, N) over training seeds, which are
    averaged; `unit_N` names each image's identity, None makes every image its own. 0: nothing gained; 1: an exact copy;
    -1: the error doubled, or worse. Relative, so that an image with little error to begin with counts like any other.
    """
    attack_N, baseline_N = (np.atleast_2d(errors).mean(axis=0) for errors in (attack, baseline))
    assert attack_N.shape == baseline_N.shape, (attack_N.shape, baseline_N.shape)
    if unit_N is not None:
        unit_N = np.unique(np.asarray(unit_N), return_inverse=True)[1]
        count_U = np.bincount(unit_N)
        attack_N, baseline_N = (np.bincount(unit_N, weights=errors) / count_U for errors in (attack_N, baseline_N))
    left_U = np.maximum(attack_N, MSE_FLOOR) / np.maximum(baseline_N, MSE_FLOOR)
    found: np.ndarray = np.clip(1.0 - left_U, -1.0, 1.0)
    return found


def worst_decile(gain_U: np.ndarray, seed: int, resamples: int, level: float) -> Interval:
    """The mean gain of the tenth of the units that gain most, with its percentile bootstrap interval over units.

    Units are chosen by the gain itself, so this describes these units under this attack. It is no forecast for those
    who will be worst off in another audit, whose gain would come out a little lower.
    """
    worst = -(-len(gain_U) // 10)
    random = np.random.default_rng(seed)
    rows = max(1, CHUNK_ELEMENTS // len(gain_U))
    mean_R = np.empty(resamples)
    for start in range(0, resamples, rows):
        part = slice(start, min(start + rows, resamples))
        drawn_RU = gain_U[random.integers(len(gain_U), size=(part.stop - part.start, len(gain_U)))]
        mean_R[part] = np.partition(drawn_RU, len(gain_U) - worst, axis=1)[:, -worst:].mean(axis=1)
    low, high = np.quantile(mean_R, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(np.sort(gain_U)[-worst:].mean()), float(low), float(high))


def risk(gain_U: np.ndarray, threshold: float, seed: int, resamples: int, level: float) -> dict[str, Any]:
    """The distribution of gains over units, for scores.json.

    Returns:
        "percentiles": the 0th to the 100th, 101 numbers; "worst_decile" and "above", the share of units that gain more
        than `threshold`: intervals.
    """
    above = bootstrap_mean((gain_U > threshold).astype(np.float64), None, seed, resamples, level, (0.0, 1.0))
    return {
        "percentiles": np.quantile(gain_U, np.linspace(0.0, 1.0, 101)).round(4).tolist(),
        "worst_decile": worst_decile(gain_U, seed, resamples, level)._asdict(),
        "above": above._asdict(),
    }
