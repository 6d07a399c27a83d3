"""Ridge regression against a reference solution, and on releases that hold the image itself."""

import shutil
from pathlib import Path

import numpy as np
import torch
from conftest import write_set

from xinv.data.index import Index
from xinv.data.loader import Reader
from xinv.data.shards import read_shard
from xinv.leak.closed_form import _solve, fit_ridge
from xinv.nets.ridge import RidgeDecoder


def test_the_solution_is_that_of_least_squares_with_a_penalty() -> None:
    """Against numpy's least squares of the augmented system, the textbook form of ridge regression."""
    random = np.random.default_rng(0)
    feature_ND = np.concatenate([np.ones((50, 1)), random.normal(2, 3, (50, 4))], axis=1)
    answer_NP = random.normal(size=(50, 3))
    spread_D = np.array([1.0, *feature_ND[:, 1:].std(0)])
    scaled_ND = feature_ND / spread_D
    penalty = 7.0
    root = np.diag([0.0, *[np.sqrt(penalty)] * 4])
    expected, *_ = np.linalg.lstsq(np.vstack([scaled_ND, root]), np.vstack([answer_NP, np.zeros((5, 3))]), rcond=None)
    gram, cross = torch.from_numpy(feature_ND.T @ feature_ND), torch.from_numpy(feature_ND.T @ answer_NP)
    found = _solve(gram, cross, torch.from_numpy(spread_D), penalty)
    np.testing.assert_allclose(found.numpy(), expected / spread_D[:, None], rtol=1e-4, atol=1e-6)


def test_a_release_that_is_the_image_is_inverted_exactly(tiny_images: Path, tmp_path: Path) -> None:
    """Maps = half of the image's pixels, averaged 2 x 2: the decoder finds the linear relation and what it predicts."""
    index = Index.load(tiny_images)
    samples = {}
    for partition, entries in index.partitions.items():
        samples[partition] = [
            {
                "__key__": sample["__key__"],
                "prediction.npy": np.zeros(4, np.float32),
                "leaky.npy": (3 - sample["png"].reshape(1, 8, 2, 8, 2).mean((2, 4)) / 50).astype(np.float32),
            }
            for number in range(len(entries))
            for sample in read_shard(tiny_images, index, partition, number)
        ]
    write_set(tmp_path / "releases", "releases", samples, ())
    network = RidgeDecoder(4, ((1, 8, 8),), 1, 16)
    found = fit_ridge(network, tiny_images, tmp_path / "releases", ("leaky",), 8)
    constant = RidgeDecoder(4, (), 1, 16)
    nothing = fit_ridge(constant, tiny_images, tmp_path / "releases", (), 8)
    assert found["mse"] < 0.75 * nothing["mse"]
    mean_CHW = torch.stack([batch.image_BCHW.sum(0) for batch in Reader(tiny_images, "attack").once(8)]).sum(0) / 23
    torch.testing.assert_close(constant(torch.zeros(1, 4), [])[0], mean_CHW, rtol=1e-3, atol=1e-3)
    shutil.rmtree(tmp_path / "releases")


def test_large_maps_and_images_are_pooled_to_a_bounded_system() -> None:
    network = RidgeDecoder(10, ((3, 256, 256), (1, 8, 8)), 3, 256)
    inputs, outputs = network.weight_DP.shape
    assert inputs <= 1 + 10 + 4096 and outputs <= 4096
    assert network(torch.zeros(2, 10), [torch.zeros(2, 3, 256, 256), torch.zeros(2, 1, 8, 8)]).shape == (2, 3, 256, 256)
