"""Attention inside inverters (nets/attention.py), by hand and against torch's own."""

import torch
import torch.nn.functional as F

from xinv.nets.attention import Attention, FeatureAttention, Position, head_count


def test_heads_divide_the_width() -> None:
    assert [head_count(width) for width in (1, 16, 31, 32, 48, 64, 96, 512)] == [1, 1, 1, 2, 3, 4, 6, 8]


def test_attention_by_hand() -> None:
    """Of a query that matches the first of two keys by ln 3: weights 3/4 and 1/4."""
    attention = Attention(1, 1, silent=False)
    with torch.no_grad():
        for layer, weight in ((attention.query, [[1.0]]), (attention.token, [[1.0], [4.0]]), (attention.out, [[1.0]])):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.zero_()
    token_BTE = torch.tensor([[[1.0], [0.0]]])
    query_BND = torch.tensor([[[3.0]]]).log()
    torch.testing.assert_close(attention(query_BND, token_BTE), torch.tensor([[[3.0]]]))  # 3/4 x 4 + 1/4 x 0


def test_attention_is_what_torch_computes() -> None:
    torch.manual_seed(0)
    attention = Attention(32, 8, silent=False)
    query_BND, token_BTE = torch.randn(2, 5, 32), torch.randn(2, 7, 8)
    query, (key, value) = attention.query(query_BND), attention.token(token_BTE).chunk(2, dim=2)
    parts = [one.unflatten(2, (2, 16)).transpose(1, 2) for one in (query, key, value)]
    expected = attention.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(query_BND, token_BTE), expected)


def test_untrained_attention_changes_nothing() -> None:
    feature_BCHW = torch.randn(2, 6, 5, 5)
    assert torch.equal(FeatureAttention(6, 5)(feature_BCHW), feature_BCHW)
    assert torch.equal(FeatureAttention(6, 5, 4)(feature_BCHW, torch.randn(2, 3, 4)), feature_BCHW)


def test_positions_of_two_grids_agree_where_their_centres_do() -> None:
    fine, coarse = Position(9, 9, 4).code_NF.reshape(9, 9, -1), Position(3, 3, 4).code_NF.reshape(3, 3, -1)
    torch.testing.assert_close(fine[1::3, 1::3], coarse, rtol=1e-4, atol=1e-5)
    assert len(torch.unique(Position(32, 32, 4).code_NF, dim=0)) == 32 * 32
