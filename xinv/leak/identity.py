"""Who is in a reconstruction: re-identification and verification against a gallery of known people.

An identity scores as its best photograph does: the score of a probe with a person is the largest cosine similarity of
the probe's embedding with that person's embeddings in the gallery. Re-identification (closed-set identification) ranks
the people of the gallery by it; verification asks whether the score with the true person exceeds a threshold that few
strangers exceed. Who is recognised whatever was released is told by the same functions on the baseline's
reconstructions: the prior-only control.

Axes: P probes, G gallery images, I identities of the gallery, D embedding dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xinv.errors import InputError

BLOCK_ELEMENTS = 1 << 24  # similarities held at a time: 64 MiB, whatever the number of probes and gallery images
FALSE_ACCEPTS = 10  # strangers' scores above the threshold: fewer, and the false accept rate is known to no digit
MAX_FAR = 0.1  # a verification that lets more strangers pass is none


@dataclass(frozen=True)
class Gallery:
    """Embeddings of known people, L2-normalised and sorted by identity; `gallery` makes it."""

    embedding_GD: np.ndarray  # float32
    people: tuple[str, ...]  # I, sorted
    start_I: np.ndarray  # where each identity's embeddings begin


@dataclass(frozen=True)
class Identification:
    """What a search of the gallery and a comparison with each of its people give for every probe."""

    rank_P: np.ndarray  # int64, from 1: the place of the true person; people who score equally come before
    accepted_P: np.ndarray | None  # whether verification accepts the probe as the true person; None: no figure
    identities: int
    impostor_pairs: int  # (probe, other person) pairs
    false_accept_rate: float | None  # at most this share of the impostor pairs is accepted; None where none resolves
    threshold: float | None  # a score above it is accepted


def gallery(embedding_GD: np.ndarray, identity_G: Sequence[str]) -> Gallery:
    """A gallery of at least two people, from embeddings of any length and their identities."""
    assert len(embedding_GD) == len(identity_G), (len(embedding_GD), len(identity_G))
    people, start_I, person_G = _grouped(identity_G)
    if len(people) < 2:
        raise InputError(
            f"Re-identification needs a gallery of at least 2 people, this one shows {len(people)}: enlarge "
            "data.split.victim and data.split.gallery."
        )
    return Gallery(_normalised(embedding_GD)[np.argsort(person_G, kind="stable")], people, start_I)


def identify(
    probe_PD: np.ndarray, identity_P: Sequence[str], known: Gallery, false_accept_rate: float = 1e-3
) -> Identification:
    """Search the gallery for every probe, and verify every probe against the true person.

    Ranks: 1 plus the number of other people who score at least as high, so that an embedding which cannot tell people
    apart gets the last place and not the first.

    Verification: the threshold is the score that at most a share `false_accept_rate` of the impostor pairs (each probe
    with every other person) exceeds, taken from these very probes. Where the pairs are too few for ten false accepts
    at that rate, the smallest rate with ten is taken; above 0.1 there is no figure. The impostor scores of one probe
    are related, so the rate is known less well than the number of pairs suggests.

    Memory: a block of similarities, the scores above the threshold, and what is passed in. InputError for a probe whose
    identity the gallery lacks.
    """
    assert len(probe_PD) == len(identity_P) > 0, (len(probe_PD), len(identity_P))
    place = {identity: number for number, identity in enumerate(known.people)}
    strangers = [identity for identity in identity_P if identity not in place]
    if strangers:
        raise InputError(
            f"{len(strangers)} probes, the first one of {strangers[0]!r}, show nobody of the gallery's "
            f"{len(known.people)} people; re-identification needs another image of every victim in the gallery."
        )
    true_P = np.array([place[identity] for identity in identity_P])
    pairs = len(true_P) * (len(known.people) - 1)
    rate = resolved_rate(pairs, false_accept_rate)
    accepts = int((rate or 0.0) * pairs + 1e-9)  # 0.1 * 30 is 3, and 3.0000000000000004 in floating point
    rank_P, genuine_P = np.empty(len(true_P), dtype=np.int64), np.empty(len(true_P), dtype=np.float32)
    highest = np.empty(0, dtype=np.float32)  # impostor scores: the one that is the threshold, and those above
    probe_PD = _normalised(probe_PD)
    rows = max(1, BLOCK_ELEMENTS // len(known.embedding_GD))
    for start in range(0, len(true_P), rows):
        block = slice(start, start + rows)
        score_PI = np.maximum.reduceat(probe_PD[block] @ known.embedding_GD.T, known.start_I, axis=1)
        own = np.arange(len(score_PI)), true_P[block]
        genuine_P[block] = score_PI[own]
        score_PI[own] = -np.inf
        rank_P[block] = 1 + (score_PI >= genuine_P[block, None]).sum(axis=1)
        if rate is not None:
            highest = _largest(np.concatenate([highest, score_PI[np.isfinite(score_PI)]]), accepts + 1)
    threshold = None if rate is None else float(highest.min())
    return Identification(
        rank_P=rank_P,
        accepted_P=None if threshold is None else genuine_P > threshold,
        identities=len(known.people),
        impostor_pairs=pairs,
        false_accept_rate=rate,
        threshold=threshold,
    )


def resolved_rate(pairs: int, wanted: float) -> float | None:
    """The false accept rate to use with so many impostor pairs: `wanted`, or the smallest with ten false accepts, or
    None where that one is above 0.1.
    """
    rate = max(wanted, FALSE_ACCEPTS / pairs) if pairs else 1.0
    return rate if rate <= MAX_FAR else None


def match_curve(rank_P: np.ndarray, identities: int) -> np.ndarray:
    """The cumulative match characteristic, float64 (I,): the share of probes whose person is among the first k, at
    k - 1. Chance is k / I.
    """
    assert rank_P.min() >= 1 and rank_P.max() <= identities, (rank_P.min(), rank_P.max(), identities)
    found: np.ndarray = np.cumsum(np.bincount(rank_P - 1, minlength=identities)) / len(rank_P)
    return found


def _normalised(embedding: np.ndarray) -> np.ndarray:
    """Rows of length one, float32. A row of zeros stays: it is equally unlike everybody."""
    embedding = np.asarray(embedding, dtype=np.float32)
    assert embedding.ndim == 2 and np.isfinite(embedding).all(), embedding.shape
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    found: np.ndarray = embedding / np.maximum(length, 1e-12)
    return found


def _grouped(identity_G: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """The identities sorted, where each begins once images are sorted by identity, and the place of each image's."""
    people, person_G, count_I = np.unique(np.asarray(identity_G), return_inverse=True, return_counts=True)
    return tuple(str(one) for one in people), np.concatenate([[0], np.cumsum(count_I)[:-1]]), person_G


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest of `values`, or all of fewer, in no particular order."""
    return values if len(values) <= count else np.partition(values, len(values) - count)[-count:]
