"""Intervals: hand-computed cases, coverage of a known mean, clusters, determinism, memory."""

import tracemalloc

import numpy as np
import pytest

from xinv.errors import InputError, WorkError
from xinv.leak import statistics
from xinv.leak.statistics import Interval, bootstrap_mean, paired_difference


def test_two_values_by_hand() -> None:
    # Resampled means of {0, 1}: 0, 1/2, 1/2, 1 with equal weight.
    assert bootstrap_mean([0.0, 1.0], None, seed=0) == Interval(0.5, 0.0, 1.0)
    assert bootstrap_mean([0.0, 1.0], None, seed=0, level=0.4) == Interval(0.5, 0.5, 0.5)


def test_unequal_clusters_by_hand() -> None:
    # Draws of two clusters: aa -> 0/4, ab and ba -> 3/3, bb -> 6/2: the mean is over images, not over clusters.
    found = bootstrap_mean([0.0, 0.0, 3.0], ["a", "a", "b"], seed=0)
    assert found == Interval(1.0, 0.0, 3.0)
    assert bootstrap_mean([0.0, 0.0, 3.0], ["a", "a", "b"], seed=0, level=0.4) == Interval(1.0, 1.0, 1.0)


def test_the_standard_error_is_that_of_theory() -> None:
    values_N = np.random.default_rng(5).normal(size=400)
    found = bootstrap_mean(values_N, None, seed=0, resamples=20_000)
    half = 1.96 * values_N.std() / np.sqrt(400)
    assert found.high - found.mean == pytest.approx(half, rel=0.04)
    assert found.mean - found.low == pytest.approx(half, rel=0.04)


def covered(clustered: bool, use_clusters: bool, experiments: int = 400) -> float:
    """How often the 95% interval holds the true mean, 2, of 60 values or of 40 clusters of 5 that move together."""
    random = np.random.default_rng(7)
    hits = 0
    for experiment in range(experiments):
        if clustered:
            values_N = 2.0 + np.repeat(random.normal(size=40), 5) + 0.3 * random.normal(size=200)
            names_N = np.repeat(np.arange(40), 5)
        else:
            values_N, names_N = 2.0 + random.normal(size=60), np.arange(60)
        found = bootstrap_mean(values_N, names_N if use_clusters else None, seed=experiment, resamples=500)
        hits += found.low <= 2.0 <= found.high
    return hits / experiments


def test_coverage_is_near_the_level() -> None:
    # 400 experiments at 0.95 vary by a binomial standard error of 0.011: three of them, and 0.01 for what the bootstrap
    # is too narrow by itself at 60 values or 40 clusters.
    for clustered in (False, True):
        assert 0.95 - 0.033 - 0.01 <= covered(clustered, use_clusters=True) <= 0.95 + 0.033
    assert covered(clustered=True, use_clusters=False) < 0.75  # what ignoring identities would cost


def test_clusters_that_correlate_widen_the_interval() -> None:
    random = np.random.default_rng(1)
    values_N = np.repeat(random.normal(size=30), 10) + 0.1 * random.normal(size=300)
    names_N = [f"person {number // 10}" for number in range(300)]
    by_image, by_person = bootstrap_mean(values_N, None, seed=0), bootstrap_mean(values_N, names_N, seed=0)
    assert by_person.mean == by_image.mean
    assert by_person.high - by_person.low > 2.5 * (by_image.high - by_image.low)  # about sqrt(10) = 3.2


def test_clusters_of_one_are_no_clusters() -> None:
    values_N = np.random.default_rng(2).normal(size=50)
    assert bootstrap_mean(values_N, np.arange(50), seed=3) == bootstrap_mean(values_N, None, seed=3)


def test_deterministic_in_the_seed_and_blind_to_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values_N = np.random.default_rng(2).normal(size=97)
    first = bootstrap_mean(values_N, None, seed=3)
    assert bootstrap_mean(values_N, None, seed=3) == first
    assert bootstrap_mean(values_N, None, seed=4) != first
    monkeypatch.setattr(statistics, "CHUNK_ELEMENTS", 1000)
    assert bootstrap_mean(values_N, None, seed=3) == first


def test_memory_is_bounded() -> None:
    values_N = np.random.default_rng(2).normal(size=50_000)
    tracemalloc.start()
    bootstrap_mean(values_N, None, seed=0, resamples=300)  # 120 MB of indices if drawn at once
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6


def test_paired_difference_takes_out_what_images_have_in_common() -> None:
    random = np.random.default_rng(3)
    hard_N = random.normal(size=200)
    a_N, b_N = hard_N + 0.5, hard_N + 0.01 * random.normal(size=200)
    found = paired_difference(a_N, b_N, None, seed=0)
    assert found.mean == pytest.approx((a_N - b_N).mean())
    assert found.excludes_zero and found.high - found.low < 0.01
    assert paired_difference(b_N, a_N, None, seed=0).high < 0
    assert paired_difference(a_N, a_N, None, seed=0) == Interval(0.0, 0.0, 0.0)
    assert not paired_difference(a_N, a_N, None, seed=0).excludes_zero


def test_all_at_the_bound_is_no_certainty() -> None:
    found = bootstrap_mean(np.ones(500), None, seed=0, bounds=(0.0, 1.0))
    assert found.mean == found.high == 1.0
    assert found.low == pytest.approx(0.025 ** (1 / 500))  # Clopper and Pearson for 500 of 500: 0.9927
    assert bootstrap_mean(np.zeros(500), None, seed=0, bounds=(0.0, 1.0)).high == pytest.approx(1 - 0.025 ** (1 / 500))
    in_ten = bootstrap_mean(np.ones(500), np.repeat(np.arange(10), 50), seed=0, bounds=(0.0, 1.0))
    assert in_ten.low == pytest.approx(0.025 ** (1 / 10))
    mixed = np.r_[np.zeros(1), np.ones(499)]
    assert bootstrap_mean(mixed, None, seed=0, bounds=(0.0, 1.0)) == bootstrap_mean(mixed, None, seed=0)


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 images, there are 1"):
        bootstrap_mean([1.0], None, seed=0)
    with pytest.raises(InputError, match="at least 2 identities, there are 1"):
        bootstrap_mean([1.0, 2.0], ["a", "a"], seed=0)
    with pytest.raises(WorkError, match="1 of 2 scores are NaN"):
        bootstrap_mean([1.0, np.nan], None, seed=0)
    with pytest.raises(AssertionError):
        paired_difference([1.0, 2.0], [1.0], None, seed=0)
