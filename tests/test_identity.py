"""Re-identification and verification by hand, on embeddings that one can draw."""

import tracemalloc

import numpy as np
import pytest

from xinv.errors import InputError
from xinv.leak import identity
from xinv.leak.identity import gallery, identify, match_curve, resolved_rate


def at(*degrees: float) -> np.ndarray:
    """Embeddings on a circle, of different lengths: cosine similarity is the cosine of the angle between them."""
    angle = np.deg2rad(np.array(degrees))
    return (np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.linspace(0.5, 7.0, len(degrees))[:, None]).astype(
        np.float32
    )


KNOWN = gallery(at(90, 0, 40, 200), ["bea", "ann", "bea", "cid"])  # bea at 90 and at 40, ann at 0, cid at 200 degrees


def test_ranks_by_hand() -> None:
    assert KNOWN.people == ("ann", "bea", "cid")
    # 10 degrees: ann (10 away), bea (30 away, by her nearer picture), cid (170). 60: bea (20), ann (60), cid (140).
    probe_PD = at(10, 10, 10, 60, 60, 60)
    found = identify(probe_PD, ["ann", "bea", "cid"] * 2, KNOWN)
    assert found.rank_P.tolist() == [1, 2, 3, 2, 1, 3]
    assert found.identities == 3 and found.impostor_pairs == 12
    np.testing.assert_allclose(match_curve(found.rank_P, 3), [2 / 6, 4 / 6, 1.0])


def test_everybody_equally_likely_is_the_last_place() -> None:
    same = gallery(np.tile(at(30), (4, 1)), ["a", "b", "c", "d"])
    assert identify(at(30, 31), ["a", "d"], same).rank_P.tolist() == [4, 4]
    assert identify(np.zeros((1, 2)), ["a"], same).rank_P.tolist() == [4]


def test_the_same_answer_for_everybody_is_found_once_in_n() -> None:
    """The mean image: whoever it resembles most is found, nobody else; rank k is k / I."""
    random = np.random.default_rng(0)
    people = [f"person {number}" for number in range(50)]
    known = gallery(random.normal(size=(50, 8)), people)
    found = identify(np.tile(random.normal(size=(1, 8)), (50, 1)), people, known)
    np.testing.assert_allclose(match_curve(found.rank_P, 50), np.arange(1, 51) / 50)
    assert found.accepted_P is not None and found.accepted_P.mean() <= found.false_accept_rate


def test_the_verification_threshold_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "FALSE_ACCEPTS", 1)
    monkeypatch.setattr(identity, "MAX_FAR", 1.0)
    # Six impostor pairs. ann at 10: bea 30 away, cid 170. bea at 20: ann 20 away, cid 180. cid at 120: bea 30, ann 120.
    probe_PD, names = at(10, 20, 120), ["ann", "bea", "cid"]
    found = identify(probe_PD, names, KNOWN, false_accept_rate=0.01)
    assert found.false_accept_rate == 1 / 6  # the smallest that six pairs resolve: one may pass
    assert found.threshold == pytest.approx(np.cos(np.deg2rad(30)), abs=1e-6)  # 20 degrees passes, 30 does not
    assert found.accepted_P is not None and found.accepted_P.tolist() == [True, True, False]  # 10, 20 and 80 away
    half = identify(probe_PD, names, KNOWN, false_accept_rate=0.5)
    assert half.threshold == pytest.approx(np.cos(np.deg2rad(120)), abs=1e-6)  # three pass; cid, 80 away, does too
    assert half.accepted_P is not None and half.accepted_P.tolist() == [True, True, True]


def test_an_exact_tie_with_the_threshold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "FALSE_ACCEPTS", 1)
    monkeypatch.setattr(identity, "MAX_FAR", 1.0)
    same = gallery(np.eye(2), ["a", "b"])
    found = identify(np.ones((4, 2)), ["a", "b", "a", "b"], same, false_accept_rate=0.25)
    assert found.accepted_P is not None and not found.accepted_P.any()


def test_the_false_accept_rate_that_the_pairs_allow() -> None:
    assert resolved_rate(10_000, 1e-3) == 1e-3
    assert resolved_rate(1_000_000, 1e-3) == 1e-3
    assert resolved_rate(2_000, 1e-3) == 0.005
    assert resolved_rate(100, 1e-3) == 0.1
    assert resolved_rate(99, 1e-3) is None and resolved_rate(0, 1e-3) is None
    found = identify(at(10), ["ann"], KNOWN)
    assert found.accepted_P is None and found.threshold is None and found.false_accept_rate is None


def test_the_false_accept_rate_is_kept_and_a_known_true_accept_rate_is_found() -> None:
    """Strangers score N(0, 1 / D); at FAR 0.01 that is a threshold of 2.33 / sqrt(D)."""
    random = np.random.default_rng(3)
    people = [f"person {number:03d}" for number in range(200)]
    known_ID = random.normal(size=(200, 256))
    known = gallery(known_ID, people)
    probe_PD = random.normal(size=(200, 256)) + 0.2 * known_ID
    found = identify(probe_PD, people, known, false_accept_rate=0.01)
    assert found.false_accept_rate == 0.01 and found.impostor_pairs == 200 * 199
    assert found.threshold == pytest.approx(2.326 / 16, abs=0.006)
    score_PI = identity._normalised(probe_PD) @ identity._normalised(known_ID).T
    off_diagonal = score_PI[~np.eye(200, dtype=bool)]
    assert (off_diagonal > found.threshold).mean() <= 0.01 < (off_diagonal >= found.threshold).mean() + 1e-4
    assert found.accepted_P is not None
    assert found.accepted_P.mean() == pytest.approx((np.diag(score_PI) > found.threshold).mean(), abs=0.01)
    assert 0.5 < found.accepted_P.mean() < 1.0


def test_blocks_change_nothing_and_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    names_G = [f"person {number % 300}" for number in range(3000)]
    known = gallery(random.normal(size=(3000, 16)), names_G)
    probe_PD, names_P = random.normal(size=(2000, 16)), names_G[:2000]
    whole = identify(probe_PD, names_P, known)
    monkeypatch.setattr(identity, "BLOCK_ELEMENTS", 1 << 18)
    tracemalloc.start()
    parts = identify(probe_PD, names_P, known)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e6  # all similarities at once are 24 MB, and all scores with people 2.4 MB
    assert (parts.rank_P != whole.rank_P).mean() < 0.002  # blocks multiply in another order: ties within rounding
    assert parts.threshold == pytest.approx(whole.threshold, abs=1e-6)


def test_what_cannot_be_identified_is_refused() -> None:
    with pytest.raises(InputError, match="2 probes, the first one of 'dan', show nobody"):
        identify(at(1, 2, 3), ["ann", "dan", "eve"], KNOWN)
    with pytest.raises(InputError, match="at least 2 people, this one shows 1"):
        gallery(at(1, 2), ["ann", "ann"])
    with pytest.raises(AssertionError):
        identify(np.array([[np.nan, 1.0]]), ["ann"], KNOWN)
