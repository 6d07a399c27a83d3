"""Controls: the mean image against numpy, the other image against its definition."""

from collections import Counter

import numpy as np
import pytest
import torch

from xinv.errors import InputError
from xinv.leak.controls import mean_image, other_image, other_image_of_class, partners

torch.set_num_threads(1)


def test_mean_image_ignores_padding_and_batching() -> None:
    image_BCHW = torch.rand(7, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    weight_B = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    expected_CHW = image_BCHW.double()[weight_B > 0].mean(dim=0).float()
    for size in (1, 3, 7):
        found_CHW = mean_image(zip(image_BCHW.split(size), weight_B.split(size), strict=True))
        assert found_CHW.dtype == torch.float32
        torch.testing.assert_close(found_CHW, expected_CHW)


def test_mean_image_sums_in_double_precision() -> None:
    # Summed in float32, thousands of 0.1 drift by more than a unit in the last place.
    batches = ((torch.full((50, 1, 1, 1), 0.1), torch.ones(50)) for _ in range(1000))
    assert mean_image(batches).item() == torch.tensor(0.1).item()


@pytest.mark.parametrize("images", [[], [(torch.ones(2, 1, 2, 2), torch.zeros(2))]])
def test_mean_of_nothing_is_refused(images: list) -> None:
    with pytest.raises(InputError, match="at least one image"):
        mean_image(images)


@pytest.mark.parametrize("n", [2, 3, 10, 1000])
def test_other_image_is_a_permutation_without_fixed_points(n: int) -> None:
    for seed in range(20):
        other_N = other_image(n, seed)
        assert other_N.dtype == np.int64
        assert sorted(other_N) == list(range(n))
        assert (other_N != np.arange(n)).all()


def test_other_image_follows_the_seed_and_is_uniform() -> None:
    assert (other_image(100, 1) == other_image(100, 1)).all()
    assert (other_image(100, 1) != other_image(100, 2)).any()
    seen = Counter(tuple(other_image(4, seed).tolist()) for seed in range(1800))
    assert len(seen) == 9  # all derangements of 4
    assert all(abs(count - 200) < 5 * 14 for count in seen.values())  # five binomial standard errors


@pytest.mark.parametrize("n", [0, 1])
def test_one_image_has_no_other(n: int) -> None:
    with pytest.raises(InputError, match=f"at least 2 images, there are {n}"):
        other_image(n, 0)
    with pytest.raises(InputError, match=f"at least 2 images, there are {n}"):
        other_image_of_class([0] * n, 0)


def test_other_image_of_the_same_class() -> None:
    label_N = np.random.default_rng(0).integers(0, 5, size=60)
    other_N = other_image_of_class(label_N, seed=0)
    assert other_N.dtype == np.int64
    assert (label_N[other_N] == label_N).all()
    assert (other_N != np.arange(60)).all()
    assert sorted(other_N) == list(range(60))
    assert (other_N == other_image_of_class(label_N, seed=0)).all()
    assert (other_N != other_image_of_class(label_N, seed=1)).any()


def test_an_image_alone_in_its_class_gets_any_other() -> None:
    seen = Counter(int(other_image_of_class([0, 0, 7, 1, 1], seed)[2]) for seed in range(400))
    assert set(seen) == {0, 1, 3, 4}
    assert all(other_image_of_class(range(5), seed).tolist() != list(range(5)) for seed in range(20))
    for seed in range(20):
        assert (other_image_of_class([3, 4], seed) == [1, 0]).all()


def test_partners_come_from_the_batch_where_it_has_one() -> None:
    label_N = np.random.default_rng(0).integers(0, 3, size=60)
    other_N, without = partners(label_N, batch_size=20, seed=0)
    assert without == 0 and (label_N[other_N] == label_N).all()
    assert (other_N // 20 == np.arange(60) // 20).all()
    assert sorted(other_N) == list(range(60)) and (other_N != np.arange(60)).all()
    again, _ = partners(label_N, batch_size=20, seed=0)
    assert (other_N == again).all() and (other_N != partners(label_N, 20, seed=1)[0]).any()
    assert (other_N[:20] != other_N[20:40] - 20).any(), "each batch has its own draw"


def test_partners_come_from_other_batches_where_the_batch_has_none() -> None:
    """Batches of three: label 5 is alone in each of three, label 9 alone in the partition, label 0 has company."""
    label_N = [5, 0, 0, 0, 5, 0, 0, 9, 5]
    other_N, without = partners(label_N, batch_size=3, seed=0)
    assert other_N[[0, 4, 8]].tolist() == [4, 8, 0]
    assert other_N[[1, 2, 3, 5]].tolist() == [2, 1, 5, 3]
    assert other_N[6] == 1, "the next of its label after the last is the first"
    assert other_N[7] in (6, 8) and without == 1


def test_partners_of_no_company_are_counted() -> None:
    other_N, without = partners(range(6), batch_size=3, seed=0)
    assert without == 6 and (other_N != np.arange(6)).all() and (other_N // 3 == np.arange(6) // 3).all()
