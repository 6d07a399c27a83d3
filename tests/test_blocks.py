"""The blocks of networks, by hand and against what they stand for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xinv.errors import InputError
from xinv.nets.blocks import PixelShuffleUp, TransposedStart, make_norm, transposed_up


def test_normalisation_groups_divide_the_channels() -> None:
    assert isinstance(make_norm("none", 7), nn.Identity)
    norm = make_norm("group", 12)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == 6  # the most, up to 8, that divide 12


def test_transposed_start_is_the_transposed_convolution_it_stands_for() -> None:
    torch.manual_seed(0)
    start = TransposedStart(6, 5, 4, exact=True)
    vector_BD = torch.randn(3, 6)
    expected_BCHW = F.conv_transpose2d(vector_BD[:, :, None, None], start.weight, start.bias)
    torch.testing.assert_close(start(vector_BD), expected_BCHW)


@pytest.mark.parametrize(("from_size", "to_size"), [(4, 8), (7, 14), (3, 7)])
def test_up_sampling_reaches_the_size_asked_for(from_size: int, to_size: int) -> None:
    feature_BCHW = torch.randn(2, 3, from_size, from_size)
    for up in (transposed_up(3, 5, from_size, to_size), PixelShuffleUp(3, 5, from_size, to_size)):
        assert up(feature_BCHW).shape == (2, 5, to_size, to_size)


def test_place_norm_by_hand() -> None:
    norm = make_norm("layer", 2)
    feature_BCHW = torch.tensor([1.0, 3.0, 7.0, 5.0]).reshape(1, 2, 1, 2)  # places (1, 7) and (3, 5)
    expected_BCHW = torch.tensor([-1.0, -1.0, 1.0, 1.0]).reshape(1, 2, 1, 2)
    torch.testing.assert_close(norm(feature_BCHW), expected_BCHW, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="1 channel; widen it"):
        make_norm("layer", 1)
