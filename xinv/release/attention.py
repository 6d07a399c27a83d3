"""Explanations that a transformer's attention gives.

Axes in tensor names: B batch, T tokens (the class token first, then the patches row by row), h and w patches along the
image's sides. A network that can be explained names `attention_layers`, modules in the order in which they run, each
giving attention of shape (B, heads, T, T) whose rows sum to 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xinv.release.passes import Pass
from xinv.release.structure import place

Shape = tuple[int, int, int]
"""Of one image: channels, height, width."""


def attention_rollout(explained: Pass) -> Tensor:
    """Abnar and Zuidema, ACL 2020: how much of each patch reaches the class token through all layers.

    Heads are averaged and the residual connection counts as half (section 3). No class enters: (1, B, 1, h, w).
    """
    layers: Sequence[nn.Module] = explained.model.attention_layers  # type: ignore[assignment]
    with torch.no_grad():
        attention = _attention(explained.model, layers, explained.image_BCHW.detach())
        tokens = attention[0].shape[-1]
        row_BT = torch.zeros(len(explained.image_BCHW), tokens, device=explained.image_BCHW.device)
        row_BT[:, 0] = 1.0
        for weight_BhTT in reversed(attention):
            row_BT = (row_BT + torch.einsum("bt,btu->bu", row_BT, weight_BhTT.mean(dim=1))) / 2
    side = _side(tokens)
    assert side is not None, "check the network before explaining it"
    return row_BT[:, 1:].unflatten(1, (side, side))[None, :, None]


def _attention(model: nn.Module, layers: Sequence[nn.Module], image_BCHW: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda module, inputs, output: seen.append(output)) for layer in layers]
    try:
        model(image_BCHW)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _side(tokens: int) -> int | None:
    """Patches along a side, or None where the tokens are no class token and a square of patches."""
    side = round((tokens - 1) ** 0.5)
    return side if side and side * side == tokens - 1 else None


def rollout_problem(model: nn.Module, image_shape: Shape) -> str | None:
    """The network must name attention layers that run once each and see a class token and a square of patches."""
    layers = getattr(model, "attention_layers", ())
    if not layers:
        return "it names no attention_layers, the modules whose outputs are attention weights; a transformer has them"
    parameter = next(model.parameters())
    with torch.no_grad():
        blank_BCHW = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
        attention = _attention(model, layers, blank_BCHW)
    if len(attention) != len(layers):
        return (
            f"its {len(layers)} attention_layers run {len(attention)} times in one forward pass, and must run once each"
        )
    for layer, weight in zip(layers, attention, strict=True):
        if weight.dim() != 4 or weight.shape[2] != weight.shape[3] or _side(weight.shape[2]) is None:
            return (
                f"its attention layer {place(model, layer)} gives {tuple(weight.shape[1:])}: heads, tokens, tokens of "
                "a class token and a square of patches expected"
            )
    return None
