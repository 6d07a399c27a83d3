"""Cells, their tokens and mixtures of tokens, by hand."""

import pytest
import torch

from xinv.nets.patches import Cells, PatchTokens, TokenMixer


def test_mixtures_by_hand() -> None:
    mixer = TokenMixer(tokens=2, mixtures=1)
    with torch.no_grad():
        mixer.linear.weight.copy_(torch.tensor([[2.0, -1.0]]))
        mixer.linear.bias.zero_()
    token_BTE = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]]])
    torch.testing.assert_close(mixer(token_BTE), torch.tensor([[-2.0, 0.0, 2.0]]))


def test_cell_means_by_hand() -> None:
    map_BMHW = torch.arange(1.0, 7.0).reshape(1, 1, 2, 3)  # in cells of 2 px, of which the second lacks a column
    cells = Cells(height=2, width=3, grid=2)
    assert (cells.side, cells.rows, cells.columns) == (2, 1, 2)
    torch.testing.assert_close(cells.means(map_BMHW), torch.tensor([[(1 + 2 + 4 + 5) / 4, (3 + 6) / 4]]))
    small = Cells(height=2, width=3, grid=8)
    assert torch.equal(small.means(map_BMHW), map_BMHW.flatten(1))


@pytest.mark.parametrize(
    ("size", "averaged", "side", "rows"),
    [(7, 1, 1, 7), (28, 1, 2, 14), (512, 1, 32, 16), (513, 2, 34, 16), (1000, 2, 64, 16), (1024, 2, 64, 16)],
)
def test_large_cells_are_averaged_to_what_a_layer_can_read(size: int, averaged: int, side: int, rows: int) -> None:
    cells = Cells(size, size, 16)
    assert (cells.averaged, cells.side, cells.rows, cells.columns) == (averaged, side, rows, rows)
    assert cells.filled(torch.zeros(1, 1, size, size)).shape[2] == rows * side


def test_every_pixel_reaches_a_token() -> None:
    torch.manual_seed(0)
    embed = PatchTokens((1, 7, 5), 4, 8, "gelu")
    map_BMHW = torch.randn(1, 1, 7, 5, requires_grad=True)
    embed(map_BMHW).square().sum().backward()
    assert map_BMHW.grad is not None and (map_BMHW.grad != 0).all()
