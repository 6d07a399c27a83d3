"""Intervals: hand-computed cases, coverage of a known mean, clusters, seeds, tests of differences, memory."""

import tracemalloc

import numpy as np
import pytest

from xinv.errors import InputError, WorkError
from xinv.leak import statistics
from xinv.leak.statistics import (
    Difference,
    Interval,
    Ratio,
    bootstrap_mean,
    detectable_effect,
    holm,
    paired_difference,
    paired_ratio,
)


def excludes_zero(found: Interval | Difference) -> bool:
    """Whether zero lies outside; an end that is exactly zero counts as inside."""
    return found.low > 0.0 or found.high < 0.0


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
    assert excludes_zero(found) and found.high - found.low < 0.01
    assert paired_difference(b_N, a_N, None, seed=0).high < 0
    assert paired_difference(a_N, a_N, None, seed=0) == Difference(0.0, 0.0, 0.0, p=1.0, standard_error=0.0)
    assert not excludes_zero(paired_difference(a_N, a_N, None, seed=0))


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


def test_two_seeds_by_hand() -> None:
    # Images do not differ, seeds do: 0, 1/2, 1/2, 1 with equal weight.
    values_SN = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert bootstrap_mean(values_SN, None, seed=0) == Interval(0.5, 0.0, 1.0)
    assert bootstrap_mean(values_SN, None, seed=0, level=0.4) == Interval(0.5, 0.5, 0.5)


def test_the_same_training_thrice_is_one_training() -> None:
    values_N = np.random.default_rng(2).normal(size=50)
    names_N = np.arange(50) // 2
    once, thrice = (bootstrap_mean(values, names_N, seed=3) for values in (values_N, np.stack([values_N] * 3)))
    assert thrice == pytest.approx(once, abs=1e-12)
    assert bootstrap_mean(values_N[None], names_N, seed=3) == once


def test_seeds_and_identities_both_widen_the_interval_as_theory_says() -> None:
    random = np.random.default_rng(5)
    by_seed_S, by_person_G = random.normal(size=6), 2.0 * random.normal(size=50)
    values_SN = by_seed_S[:, None] + np.repeat(by_person_G, 4)
    found = paired_difference(values_SN, np.zeros(200), np.repeat(np.arange(50), 4), seed=0, resamples=20_000)
    expected = np.sqrt(by_seed_S.var() / 6 + by_person_G.var() / 50)
    assert found.standard_error == pytest.approx(expected, rel=0.03)
    assert found.high - found.low == pytest.approx(2 * 1.96 * expected, rel=0.05)
    without_seeds = paired_difference(values_SN.mean(axis=0), np.zeros(200), np.repeat(np.arange(50), 4), seed=0)
    assert without_seeds.standard_error < 0.85 * found.standard_error


def test_seeds_are_paired_and_what_is_not_trained_pairs_with_every_one() -> None:
    random = np.random.default_rng(3)
    a_SN = random.normal(size=(3, 40)) + np.array([[0.0], [5.0], [-5.0]])
    assert paired_difference(a_SN, a_SN - 0.25, None, seed=0).standard_error == pytest.approx(0.0, abs=1e-12)
    assert paired_difference(a_SN, np.zeros(40), None, seed=0).mean == pytest.approx(a_SN.mean())
    with pytest.raises(AssertionError):
        paired_difference(a_SN, a_SN[:2], None, seed=0)


def test_seeds_are_deterministic_and_blind_to_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values_SN = np.random.default_rng(2).normal(size=(4, 97))
    first = bootstrap_mean(values_SN, None, seed=3)
    assert bootstrap_mean(values_SN, None, seed=4) != first
    monkeypatch.setattr(statistics, "CHUNK_ELEMENTS", 1000)
    assert bootstrap_mean(values_SN, None, seed=3) == pytest.approx(first, abs=1e-12)


def test_p_values_by_hand_and_their_floor() -> None:
    # Resampled means of {-1, 3}: -1, 1, 1, 3. A quarter is not above zero: p is twice that.
    assert paired_difference([-1.0, 3.0], [0.0, 0.0], None, seed=0, resamples=20_000).p == pytest.approx(0.5, abs=0.02)
    assert paired_difference([3.0, -1.0], [0.0, 0.0], None, seed=0, resamples=99).p > 0.2
    assert paired_difference([1.0, 2.0], [0.0, 0.0], None, seed=0, resamples=99).p == 0.01
    assert paired_difference([0.0, 0.0], [1.0, 2.0], None, seed=0, resamples=1999).p == 1 / 2000


def test_p_values_of_no_difference_are_uniform() -> None:
    random = np.random.default_rng(11)
    found = [paired_difference(random.normal(size=100), np.zeros(100), None, seed, 400).p for seed in range(600)]
    for share in (0.05, 0.2, 0.5):  # three binomial standard errors, and 0.01 for what the bootstrap is too narrow
        assert abs(np.mean(np.array(found) <= share) - share) < 3 * np.sqrt(share * (1 - share) / 600) + 0.01


def test_the_p_value_agrees_with_the_interval() -> None:
    random = np.random.default_rng(12)
    for seed in range(200):
        found = paired_difference(0.2 + random.normal(size=100), np.zeros(100), None, seed, resamples=1000)
        assert abs(found.p - 0.05) < 0.004 or excludes_zero(found) == (found.p < 0.05)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.4]) == [0.8, 0.8]  # (2 * 0.4, and no less for the larger one)
    assert holm([0.9, 0.8, 0.7]) == [1.0, 1.0, 1.0]
    assert holm([0.03]) == [0.03] and holm([]) == []


def test_the_detectable_effect_is_found_four_times_in_five() -> None:
    assert detectable_effect(1.0) == pytest.approx(1.95996 + 0.84162, abs=1e-4)
    assert detectable_effect(2.0, tests=5) == pytest.approx(2 * (2.57583 + 0.84162), abs=1e-4)  # alpha 0.01
    random = np.random.default_rng(6)
    effect = detectable_effect(1 / np.sqrt(100))
    found = [
        excludes_zero(paired_difference(effect + random.normal(size=100), np.zeros(100), None, seed, 400))
        for seed in range(400)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


def test_ratios_by_hand() -> None:
    # Means of resamples of {1, 3} over those of {1, 1}: 1/1, 2/1, 2/1, 3/1.
    assert paired_ratio([1.0, 3.0], [1.0, 1.0], None, seed=0) == Ratio(2.0, 1.0, 3.0)
    # Of {1, 3} over {4, 1}: 1/4, 2/2.5, 2/2.5, 3/1. The ratio of the means is 0.8; the mean of the ratios would be 1.6.
    assert paired_ratio([1.0, 3.0], [4.0, 1.0], None, seed=0) == pytest.approx((0.8, 0.25, 3.0))


def test_a_constant_ratio_is_certain_however_images_and_trainings_vary() -> None:
    other_SN = np.random.default_rng(3).uniform(0.1, 9.0, size=(3, 40))
    assert paired_ratio(0.25 * other_SN, other_SN, None, seed=5) == pytest.approx((0.25, 0.25, 0.25))
    apart = paired_ratio(0.25 * other_SN[::-1], other_SN, None, seed=5)
    assert apart.low < 0.25 < apart.high, "training s goes with training s"


def test_the_interval_of_a_ratio_knows_seeds_and_people() -> None:
    own_SN = np.array([[1.0] * 40, [2.0] * 40, [3.0] * 40])
    ratio = paired_ratio(own_SN, np.ones((3, 40)), None, seed=1, resamples=4000)
    assert ratio.value == pytest.approx(2.0) and (ratio.low, ratio.high) == pytest.approx((1.0, 3.0))
    people_N = np.repeat(["a", "b"], 20)
    assert paired_ratio([1.0] * 20 + [3.0] * 20, np.ones(40), people_N, seed=0)[1:] == (1.0, 3.0)


def test_a_ratio_to_nothing_is_refused() -> None:
    with pytest.raises(WorkError, match="above 0"):
        paired_ratio([1.0, 2.0], [0.0, 1.0], None, seed=0)
