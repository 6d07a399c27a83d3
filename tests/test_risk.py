"""Risk by identity and by image, by hand."""

import numpy as np
import pytest

from xinv.leak import risk as risks
from xinv.leak.risk import by_identity, removed_error, risk, worst_decile


def test_identities_count_once_enough_of_them_repeat() -> None:
    names = [f"person {number // 2}" for number in range(20)]
    assert by_identity(names)
    assert not by_identity(names[:-1])  # nine with two images, one with one
    assert by_identity([*names, "somebody with one"])
    assert not by_identity(np.arange(500))


def test_removed_error_by_hand() -> None:
    baseline_N = np.array([0.4, 0.2, 0.1, 0.1, 0.0])
    attack_N = np.array([0.1, 0.2, 0.0, 0.9, 0.0])
    by_image_U = removed_error(attack_N, baseline_N, None)
    np.testing.assert_allclose(by_image_U, [0.75, 0.0, 1.0, -1.0, 0.0], atol=1e-8)  # nothing to gain is no gain
    # a: 0.4 + 0.2 down to 0.1 + 0.2; b: 0.1 + 0.1 up to 0.9
    names = np.array(["a", "a", "b", "b", "c"])
    np.testing.assert_allclose(removed_error(attack_N, baseline_N, names), [0.5, -1.0, 0.0], atol=1e-8)


def test_several_trainings_are_averaged_first() -> None:
    baseline_SN = np.array([[0.4, 0.4], [0.2, 0.2]])
    attack_SN = np.array([[0.2, 0.0], [0.1, 0.3]])
    np.testing.assert_allclose(removed_error(attack_SN, baseline_SN, None), [0.5, 0.5])
    np.testing.assert_allclose(removed_error(np.array([0.15, 0.6]), baseline_SN, None), [0.5, -1.0])


def test_worst_decile_by_hand() -> None:
    gain_U = np.r_[np.zeros(18), 0.5, 0.9]
    assert worst_decile(gain_U, 0, 500, 0.95).mean == pytest.approx(0.7)  # two of twenty
    assert worst_decile(gain_U[1:], 0, 500, 0.95).mean == pytest.approx(0.7)  # a tenth of 19, rounded up
    found = worst_decile(gain_U, 0, 500, 0.95)
    assert found.low == 0.0 and found.high == pytest.approx(0.9)  # both can be missing from a resample, or only one
    assert worst_decile(np.full(30, 0.3), 0, 100, 0.95) == pytest.approx((0.3, 0.3, 0.3))


def test_the_worst_decile_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    gain_U = np.random.default_rng(0).random(83)
    whole = worst_decile(gain_U, 1, 200, 0.95)
    monkeypatch.setattr(risks, "CHUNK_ELEMENTS", 500)
    assert worst_decile(gain_U, 1, 200, 0.95) == whole


def test_risk_says_how_many_are_above() -> None:
    gain_U = np.linspace(0.0, 1.0, 101)
    found = risk(gain_U, 0.75, 0, 1000, 0.95)
    np.testing.assert_allclose(found["percentiles"], gain_U, atol=1e-4)
    assert found["above"]["mean"] == pytest.approx(25 / 101)
    assert found["above"]["low"] < 25 / 101 < found["above"]["high"]
    assert risk(np.zeros(50), 0.5, 0, 200, 0.95)["above"]["high"] > 0.03  # none of 50 is not none at all
