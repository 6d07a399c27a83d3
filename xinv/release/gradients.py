"""Explanations by gradients of the logit with respect to the image.

Axes in tensor names: N explained classes, B batch, C image channels, H height, W width. Maps are (N, B, C, H, W).
The baseline, where a method compares with one, is the black image.
"""

import hashlib
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from xinv.release.passes import Pass, each_class
from xinv.release.structure import RESHAPES, SUMS, foreign_layer, private_copy, unseen_step

Shape = tuple[int, int, int]
"""Of one image: channels, height, width."""

INTEGRATION_STEPS = 50  # points of the Gauss-Legendre rule
IMAGES_AT_ONCE = 64  # rows of one forward pass, where a method may choose
NOISY_COPIES = 32
NOISE_SHARE = 0.15  # standard deviation of SmoothGrad's noise, in units of the image's own range

LINEAR = (nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm2d, nn.Dropout, nn.Flatten, nn.Identity)
# A group or layer normalisation divides by a statistic of its input: captum's DeepLIFT would take its plain gradient.
NON_LINEAR = (nn.MaxPool2d, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.Softplus)
DEEPLIFT_LAYERS = (*LINEAR, *NON_LINEAR)
# Guided backpropagation changes the gradient of ReLUs and of nothing else.
GUIDED_LAYERS = (*LINEAR, nn.MaxPool2d, nn.GroupNorm, nn.LayerNorm, nn.ReLU)


def gradient(explained: Pass) -> Tensor:
    """Simonyan et al., ICLR 2014 workshop: d logit / d pixel, with its sign."""
    return explained.image_gradient()


def abs_gradient(explained: Pass) -> Tensor:
    """Its magnitude: a channel of map for a channel of image; Simonyan et al. keep the largest of them only."""
    return gradient(explained).abs()


def gradient_input(explained: Pass) -> Tensor:
    """Shrikumar et al. 2016: what the logit would lose with the pixel if the network were linear."""
    return gradient(explained) * explained.image_BCHW.detach()


def integrated_gradients(explained: Pass) -> Tensor:
    """Sundararajan et al., ICML 2017: gradients averaged on the way from black to the image, times the image."""
    from captum.attr import IntegratedGradients

    explainer = IntegratedGradients(explained.model)
    rows = max(len(explained.image_BCHW), IMAGES_AT_ONCE)

    def one(model: nn.Module, image_BCHW: Tensor, class_B: Tensor) -> Tensor:
        map_BCHW: Tensor = explainer.attribute(
            image_BCHW, target=class_B, n_steps=INTEGRATION_STEPS, internal_batch_size=rows
        )
        return map_BCHW

    return each_class(explained, one)


def smoothgrad(explained: Pass) -> Tensor:
    """Smilkov et al. 2017: the mean gradient of noisy copies of the image.

    The noise of an image comes from a generator seeded by the image's own 8-bit pixels. So the map is a function of the
    image alone, whatever batch, worker or device it is computed on; captum's NoiseTunnel draws for the batch.
    """
    image_BCHW = explained.image_BCHW.detach()
    class_NB = explained.classes
    sources = [torch.Generator().manual_seed(content_seed(image_CHW)) for image_CHW in image_BCHW]
    range_B111 = (image_BCHW.amax((1, 2, 3)) - image_BCHW.amin((1, 2, 3)))[:, None, None, None]
    total_NBCHW = torch.zeros(len(class_NB), *image_BCHW.shape, device=image_BCHW.device)
    for _ in range(NOISY_COPIES):
        noise_BCHW = torch.stack([torch.randn(image_BCHW.shape[1:], generator=source) for source in sources])
        noisy_BCHW = image_BCHW + NOISE_SHARE * range_B111 * noise_BCHW.to(image_BCHW.device)
        copy = Pass(explained.model, noisy_BCHW.requires_grad_(), class_NB, chunks=explained.chunks)
        total_NBCHW += copy.image_gradient()
    return total_NBCHW / NOISY_COPIES


def content_seed(image_CHW: Tensor) -> int:
    """A seed that is a function of the image's pixels, rounded to 8 bits so that devices agree on it."""
    pixel_CHW = (image_CHW.detach().float() * 255).round().clamp(0, 255).cpu().numpy().astype(np.uint8)
    content = hashlib.sha256(repr(pixel_CHW.shape).encode() + pixel_CHW.tobytes()).digest()
    return int.from_bytes(content[:8], "little") >> 1


def guided_backprop(explained: Pass) -> Tensor:
    """Springenberg et al., ICLR 2015 workshop: a gradient that no ReLU lets through with a negative sign."""
    from captum.attr import GuidedBackprop

    return _with_hooks(explained, GuidedBackprop)


def deeplift(explained: Pass) -> Tensor:
    """Shrikumar et al., ICML 2017, the rescale rule: differences from black in place of gradients."""
    from captum.attr import DeepLift

    class OwnDeepLift(DeepLift):
        """captum's, but for pooled values equal to the baseline's.

        There captum takes the gradient of the first image of the batch (captum issue 1276). Here it is the image's own,
        for the image and for its baseline: rules further down need the same multiplier for both.
        """

        def _backward_hook(self, module: nn.Module, grad_input: Tensor, grad_output: Tensor) -> Tensor:
            equal = None
            if isinstance(module, nn.MaxPool2d):
                image_BCHW, base_BCHW = module.input.chunk(2)  # type: ignore[operator]
                equal = ((image_BCHW - base_BCHW).abs() < self.eps).repeat(2, 1, 1, 1)
            found: Tensor = super()._backward_hook(module, grad_input, grad_output)
            return found if equal is None else torch.where(equal, grad_input.chunk(2)[0].repeat(2, 1, 1, 1), found)

    return _with_hooks(explained, OwnDeepLift)


class Apart(nn.Module):
    """Keeps the tensors of two neighbouring layers apart.

    captum hangs one hook on a layer's output and one on the next layer's input. Where both are one tensor, as between a
    ReLU and a pooling, they run in the wrong order: DeepLIFT's multipliers are lost, and its maps are not complete.
    """

    def forward(self, value: Tensor) -> Tensor:
        """A copy."""
        return value.clone()


def _with_hooks(explained: Pass, kind: type) -> Tensor:
    model = private_copy(explained.model)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, NON_LINEAR):
                setattr(parent, name, nn.Sequential(layer, Apart()))

    def one(_: nn.Module, image_BCHW: Tensor, class_B: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\s*Setting .*hooks", UserWarning)
            map_BCHW: Tensor = kind(model).attribute(image_BCHW, target=class_B)
        return map_BCHW.detach()

    return each_class(explained, one)


def no_problem(model: nn.Module, image_shape: Shape) -> str | None:
    """Every network will do, differentiable where the method goes backward."""
    return None


def detached_problem(model: nn.Module, image_shape: Shape) -> str | None:
    """Gradients must reach the image: a forward pass under torch.no_grad, or through numpy, cuts them off."""
    parameter = next(model.parameters())
    blank_BCHW = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype, requires_grad=True)
    with torch.inference_mode(False), torch.enable_grad():
        logit_BK: Tensor = model(blank_BCHW.clone())
        found = (
            torch.autograd.grad(logit_BK.sum(), blank_BCHW, allow_unused=True) if logit_BK.requires_grad else (None,)
        )
    if found[0] is None:
        return "its logits have no gradient by the image (does its forward pass run under torch.no_grad, or detach?)"
    return None


def guided_problem(model: nn.Module, image_shape: Shape) -> str | None:
    """Every non-linearity must be an nn.ReLU module: on any other, captum silently returns the plain gradient."""
    layer = foreign_layer(model, GUIDED_LAYERS)
    if layer is not None:
        return f"{layer} is no nn.ReLU, and captum would silently take the plain gradient there"
    if not any(isinstance(module, nn.ReLU) for module in model.modules()):
        return "it has no nn.ReLU module, so that captum would silently return the plain gradient"
    return unseen_step(model, RESHAPES + SUMS, False, "guided backpropagation")


def deeplift_problem(model: nn.Module, image_shape: Shape) -> str | None:
    """Layers must be linear or have a rule in captum; on any other it silently takes the plain gradient."""
    layer = foreign_layer(model, DEEPLIFT_LAYERS)
    if layer is not None:
        return f"{layer} has no rule in DeepLIFT, and captum would silently take the plain gradient there"
    for name, module in model.named_modules():
        if isinstance(module, nn.MaxPool2d):
            # captum spreads what a pooling passes back by un-pooling, which overwrites where windows overlap.
            stride = module.kernel_size if module.stride is None else module.stride
            if stride != module.kernel_size or module.padding or module.dilation != 1:
                return f"{name} (MaxPool2d) has windows that overlap or are padded, where captum's rule is wrong"
    return unseen_step(model, RESHAPES + SUMS, True, "DeepLIFT")
