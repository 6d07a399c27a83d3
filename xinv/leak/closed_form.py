"""Ridge regression of images on releases: solved on the attack partition, its strength chosen on the validation part.

Axes: B images, D features, P pixels.
"""

from pathlib import Path

import torch
from torch import Tensor

from xinv.data.loader import Reader
from xinv.nets.ridge import RidgeDecoder

STRENGTHS = tuple(10.0**power for power in range(-6, 3))
"""Penalties tried, in units of the mean squared feature."""


def fit_ridge(
    network: RidgeDecoder,
    images: Path,
    releases: Path,
    methods: tuple[str, ...],
    batch_size: int,
    limit: int | None = None,
) -> dict[str, float]:
    """Fill `network` with the best ridge solution; {"strength", "mse" on the validation part, "images"}.

    `limit`: solve on so many of the attacker's images; null: on all.

    Features are standardised for the penalty (a weight's size should not depend on its feature's unit); the constant is
    not penalised. Memory: one D x D and one D x P matrix in float64, whatever the number of images.
    """
    inputs, outputs = network.weight_DP.shape
    gram_DD = torch.zeros(inputs, inputs, dtype=torch.float64)
    cross_DP = torch.zeros(inputs, outputs, dtype=torch.float64)
    data = Reader(images, "attack", releases, methods, limit=limit)
    for batch in data.once(batch_size):
        assert batch.prediction_BK is not None
        feature_BD = network.features(batch.prediction_BK, list(batch.maps.values())).double()
        gram_DD += feature_BD.T @ feature_BD
        cross_DP += feature_BD.T @ network.answers(batch.image_BCHW).double()
    centre_D = gram_DD[0] / data.samples  # the first feature is the constant one
    spread_D = (gram_DD.diagonal() / data.samples - centre_D.square()).clamp_min(0).sqrt()
    spread_D = torch.where(spread_D > 1e-12, spread_D, torch.ones_like(spread_D))
    spread_D[0] = 1.0
    best: tuple[float, float, Tensor] | None = None
    for strength in STRENGTHS:
        weight_DP = _solve(gram_DD, cross_DP, spread_D, strength * data.samples)
        network.weight_DP.copy_(weight_DP)
        error = _error(network, images, releases, methods, batch_size)
        if best is None or error < best[0]:
            best = (error, strength, weight_DP)
    assert best is not None
    network.weight_DP.copy_(best[2])
    return {"strength": best[1], "mse": best[0], "images": float(data.samples)}


def _solve(gram_DD: Tensor, cross_DP: Tensor, spread_D: Tensor, penalty: float) -> Tensor:
    """weight_DP of the penalised least squares in float32; the constant (feature 0) goes free."""
    scaled_DD = gram_DD / spread_D[:, None] / spread_D[None, :]
    ridge_D = torch.full_like(spread_D, penalty)
    ridge_D[0] = 0.0
    # Features that never vary have zero rows: the penalty alone keeps the system regular.
    factor = torch.linalg.cholesky(scaled_DD + torch.diag(ridge_D))
    return (torch.cholesky_solve(cross_DP / spread_D[:, None], factor) / spread_D[:, None]).float()


def _error(network: RidgeDecoder, images: Path, releases: Path, methods: tuple[str, ...], batch_size: int) -> float:
    """Mean squared error over the validation part, reconstructions clamped as scoring does."""
    reader = Reader(images, "attack_validation", releases, methods)
    total = 0.0
    for batch in reader.once(batch_size):
        assert batch.prediction_BK is not None
        found_BCHW = network(batch.prediction_BK, list(batch.maps.values())).clamp(0, 1)
        total += float((found_BCHW - batch.image_BCHW).square().flatten(1).mean(1).double().sum())
    return total / reader.samples
