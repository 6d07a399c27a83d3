"""Class activation maps: the last convolution's activation, weighted by what the logit thinks of it.

Axes in tensor names: N explained classes, B batch, A channels of the activation, h and w its height and width.
Each map is a function of gradient_NBAhw and activation_BAhw, both taken at the network's `cam_layer`.
"""

import torch
from torch import Tensor, nn

from xinv.nets.cam_layer import cam_candidates
from xinv.release.passes import Pass
from xinv.release.structure import place

Shape = tuple[int, int, int]
"""Of one image: channels, height, width."""


def _weighted(gradient_NBAhw: Tensor, activation_BAhw: Tensor) -> Tensor:
    return gradient_NBAhw.mean(dim=(3, 4), keepdim=True) * activation_BAhw


def _relu_cam(gradient_NBAhw: Tensor, activation_BAhw: Tensor) -> Tensor:
    return _weighted(gradient_NBAhw, activation_BAhw).sum(dim=2, keepdim=True).relu()


def grad_cam(explained: Pass) -> Tensor:
    """Selvaraju et al., ICCV 2017, with its ReLU: the positive part of the activations weighted by mean gradients."""
    return explained.over_activation(_relu_cam)


def sigma_cam(explained: Pass) -> Tensor:
    """Zhao et al., ICCV 2021 (Sigma-CAM): Grad-CAM of every class of the network, in the order of its logits."""
    classes = explained.logits.shape[1]
    every_KB = torch.arange(classes, device=explained.image_BCHW.device)[:, None].expand(-1, len(explained.image_BCHW))
    map_KB1hw = explained.over_activation(_relu_cam, every_KB)
    return map_KB1hw.transpose(0, 2)


def partial_cam(explained: Pass) -> Tensor:
    """Zhao et al., ICCV 2021 (partial CAM): each channel's weighted activation, before Grad-CAM sums and clips them."""
    return explained.over_activation(_weighted)


def grad_cam_pp(explained: Pass) -> Tensor:
    """Grad-CAM++ (Chattopadhyay et al., WACV 2018, eq. 19): pixel-wise weights of the positive gradients.

    Deviations: the factor exp(logit), the same for a whole map, is left out, because it overflows; and negative
    activations, which the derivation rules out by a ReLU, do not count in a weight's denominator.
    """

    def reduce(gradient_NBAhw: Tensor, activation_BAhw: Tensor) -> Tensor:
        square = gradient_NBAhw.square()
        total_BA11 = activation_BAhw.relu().sum(dim=(2, 3), keepdim=True)
        denominator = 2 * square + square * gradient_NBAhw * total_BA11
        # Where the gradient is not positive the weight is not needed: the ReLU takes it away.
        share = torch.where(gradient_NBAhw > 0, square / denominator, 0.0).nan_to_num(0.0)
        weight = (share * gradient_NBAhw.relu()).sum(dim=(3, 4), keepdim=True)
        return (weight * activation_BAhw).sum(dim=2, keepdim=True).relu()

    return explained.over_activation(reduce)


def hires_cam(explained: Pass) -> Tensor:
    """HiResCAM (Draelos and Carin 2020): gradient times activation, place by place; no average, no ReLU.

    Where one linear layer follows the activation, a map sums to the logit without that layer's bias.
    """
    return explained.over_activation(lambda gradient, activation: (gradient * activation).sum(dim=2, keepdim=True))


def layer_cam(explained: Pass) -> Tensor:
    """LayerCAM (Jiang et al., TIP 2021, eq. 6 and 7): activations weighted by their own positive gradients."""
    return explained.over_activation(
        lambda gradient, activation: (gradient.relu() * activation).sum(dim=2, keepdim=True).relu()
    )


def cam_problem(model: nn.Module, image_shape: Shape) -> str | None:
    """The network must name a `cam_layer` that runs once and gives a map of two places at least."""
    layer = getattr(model, "cam_layer", None)
    parameter = next(model.parameters())
    blank_BCHW = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
    if not isinstance(layer, nn.Module):
        names = cam_candidates(model, blank_BCHW)
        some = f"name one under target.layer: {', '.join(names)} give maps" if names else "no part of it gives a map"
        return f"it names no cam_layer, the module whose output is the last convolutional activation map ({some})"
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            model(blank_BCHW)
    finally:
        handle.remove()
    name = place(model, layer)
    if len(seen) != 1:
        return f"its cam_layer {name} runs {len(seen)} times in one forward pass, and must run once"
    if seen[0].dim() != 4 or seen[0].shape[2:].numel() < 2:
        return (
            f"its cam_layer {name} gives {tuple(seen[0].shape[1:])}, which is no map: channels, height, width expected"
        )
    return None
