"""Explanation methods: which pixels made the network give the class its score. The algorithms are captum's.

Axes in tensor names: B batch, C image channels, M map channels, H height and W width of the image, h and w of a map.

Every map is a function of its own image alone: a batch explained together equals its images explained one by one.
captum is imported where it is used: it brings matplotlib along, and a config only asks for the names.
"""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from xinv.errors import InputError

Shape = tuple[int, int, int]
"""Of one image: channels, height, width."""

LRP_EPSILON = 0.25
"""In units of pre-activations. Towards 0, LRP of a ReLU network becomes gradient * input (Ancona et al., ICLR 2018)."""

EPSILON_LAYERS = (nn.Linear, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm2d)
EPSILON_PASSING = (nn.ReLU, nn.Dropout, nn.Tanh)
# The z+ rule divides by sums of positive weights times inputs, so inputs must not be negative (no tanh), and a batch
# normalisation has no positive part to keep.
ZPLUS_LAYERS = (nn.Linear, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
ZPLUS_PASSING = (nn.ReLU, nn.Dropout)
WEIGHTED = (nn.Linear, nn.Conv2d, nn.BatchNorm2d)

RESHAPES = ("flatten", "reshape", "view", "unflatten", "squeeze", "unsqueeze", "contiguous")
"""Functions that relevance passes through unchanged because they only rearrange."""


@dataclass(frozen=True)
class Method:
    """One way to explain. `check` first, then `explain` batch after batch."""

    name: str
    title: str
    signed: bool  # whether one map can hold values of both signs
    passes: str  # cost of one batch
    units: str  # of the map's values
    problem: Callable[[nn.Module, Shape], str | None]  # why the method cannot explain a network, or None
    attribute: Callable[[nn.Module, Tensor, Tensor], Tensor]

    def check(self, model: nn.Module, image_shape: Shape) -> None:
        """InputError, naming the layer and the methods that would work, if `model` cannot be explained faithfully.

        captum raises for some layers and, for others, silently returns something else; both are refused here.
        """
        problem = self.problem(model, image_shape)
        if problem is None:
            return
        works = [name for name, other in METHODS.items() if other.problem(model, image_shape) is None]
        advice = f"these work on this network: {', '.join(works)}" if works else "no other method works on it either"
        raise InputError(f"{self.name} cannot explain this network: {problem}; {advice}.")

    def explain(self, model: nn.Module, image_BCHW: Tensor, class_B: Tensor) -> Tensor:
        """Maps (B, M, h, w), float32, at the method's native size.

        `model` maps (B, C, H, W) images in [0, 1] to (B, K) logits and is left as it was: same weights, no hooks, no
        gradients. `class_B`: the class explained, for each image. InputError when a part of the model is in training
        mode (dropout would make noise of the maps, batch statistics would couple the images).
        """
        if any(module.training for module in model.modules()):
            raise InputError("Explanations need the network in evaluation mode; call model.eval() first.")
        device = image_BCHW.device.type
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            map_BMHW = self.attribute(model, image_BCHW.detach().clone().float().requires_grad_(), class_B.clone())
        return map_BMHW.detach().float()


def method(name: str) -> Method:
    """The method called `name`. InputError, listing the known ones, for any other name."""
    if name not in METHODS:
        raise InputError(f"no explanation method is called '{name}'; known are {', '.join(METHODS)}.")
    return METHODS[name]


def _gradient(model: nn.Module, image_BCHW: Tensor, class_B: Tensor) -> Tensor:
    from captum.attr import Saliency

    map_BMHW: Tensor = Saliency(model).attribute(image_BCHW, target=class_B, abs=False)
    return map_BMHW


def _abs_gradient(model: nn.Module, image_BCHW: Tensor, class_B: Tensor) -> Tensor:
    # A channel of map for a channel of image; Simonyan et al. (2014) keep the largest of them only.
    return _gradient(model, image_BCHW, class_B).abs()


def _gradient_input(model: nn.Module, image_BCHW: Tensor, class_B: Tensor) -> Tensor:
    from captum.attr import InputXGradient

    map_BMHW: Tensor = InputXGradient(model).attribute(image_BCHW, target=class_B)
    return map_BMHW


def _grad_cam(model: nn.Module, image_BCHW: Tensor, class_B: Tensor) -> Tensor:
    from captum.attr import LayerGradCam

    # With the ReLU of the paper (Selvaraju et al., ICCV 2017), which captum leaves out unless asked.
    explainer = LayerGradCam(model, model.cam_layer)
    map_BMHW: Tensor = explainer.attribute(image_BCHW, target=class_B, relu_attributions=True)
    return map_BMHW


def _lrp_epsilon(model: nn.Module, image_BCHW: Tensor, class_B: Tensor) -> Tensor:
    from captum.attr._utils.lrp_rules import EpsilonRule

    return _lrp(model, image_BCHW, class_B, lambda: EpsilonRule(epsilon=LRP_EPSILON))


def _lrp_zplus(model: nn.Module, image_BCHW: Tensor, class_B: Tensor) -> Tensor:
    from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule

    # Biases take no share of the relevance: what enters a layer leaves it, wherever a positive contribution exists.
    return _lrp(model, image_BCHW, class_B, lambda: Alpha1_Beta0_Rule(set_bias_to_zero=True))


def _lrp(model: nn.Module, image_BCHW: Tensor, class_B: Tensor, rule: Callable[[], object]) -> Tensor:
    from captum.attr import LRP

    # captum replaces weights, hangs rules and activations on modules, and puts back what it thinks of: give it a copy.
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, WEIGHTED):
            module.rule = rule()  # type: ignore[assignment]  # where captum looks for it
        if isinstance(module, nn.ReLU | nn.Dropout):
            module.inplace = False
    map_BMHW: Tensor = LRP(copied).attribute(image_BCHW, target=class_B)
    return map_BMHW


def _none(model: nn.Module, image_shape: Shape) -> str | None:
    return None


def _cam_problem(model: nn.Module, image_shape: Shape) -> str | None:
    layer = getattr(model, "cam_layer", None)
    if not isinstance(layer, nn.Module):
        return "it names no cam_layer, the module whose output is the last convolutional activation map"
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            model(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        handle.remove()
    name = _place(model, layer)
    if len(seen) != 1:
        return f"its cam_layer {name} runs {len(seen)} times in one forward pass, and must run once"
    if seen[0].dim() != 4 or seen[0].shape[2:].numel() < 2:
        return (
            f"its cam_layer {name} gives {tuple(seen[0].shape[1:])}, which is no map: channels, height, width expected"
        )
    return None


def _epsilon_problem(model: nn.Module, image_shape: Shape) -> str | None:
    return _lrp_problem(model, EPSILON_LAYERS, EPSILON_PASSING)


def _zplus_problem(model: nn.Module, image_shape: Shape) -> str | None:
    return _lrp_problem(model, ZPLUS_LAYERS, ZPLUS_PASSING)


def _lrp_problem(model: nn.Module, layers: tuple[type, ...], passing: tuple[type, ...]) -> str | None:
    known = layers + passing
    for module in model.modules():
        if not list(module.children()) and type(module) not in known:
            names = ", ".join(kind.__name__ for kind in known)
            return f"{_place(model, module)} has no rule for relevance (there are rules for {names})"
    try:
        graph = fx.Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError) as error:
        return f"its forward pass cannot be followed layer by layer ({error}), so nobody could tell what LRP leaves out"
    # captum sees modules alone: what a forward pass computes between them would get plain gradients, without a word.
    uses = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        called = getattr(node.target, "__name__", str(node.target))
        if node.op == "call_module" and uses[str(node.target)] > 1:
            layer = _place(model, model.get_submodule(str(node.target)))
            return f"{layer} is used {uses[str(node.target)]} times in one forward pass; each use needs its own module"
        if node.op == "get_attr" or (node.op in ("call_function", "call_method") and called not in RESHAPES):
            inside = list((node.meta.get("nn_module_stack") or {"": None}).keys())[-1]
            where = f"the forward pass of {inside}" if inside else "the network's own forward pass"
            return f"{where} calls {called}, which LRP cannot see because it is no module"
    return None


def _place(model: nn.Module, wanted: nn.Module) -> str:
    names = [name for name, module in model.named_modules() if module is wanted]
    return f"{names[0] if names else '(not a part of the network)'} ({type(wanted).__name__})"


METHODS: dict[str, Method] = {
    entry.name: entry
    for entry in (
        Method(
            name="gradient",
            title="Gradient",
            signed=True,
            passes="1 forward, 1 backward",
            units="logit per pixel value",
            problem=_none,
            attribute=_gradient,
        ),
        Method(
            name="abs_gradient",
            title="|Gradient|",
            signed=False,
            passes="1 forward, 1 backward",
            units="logit per pixel value",
            problem=_none,
            attribute=_abs_gradient,
        ),
        Method(
            name="gradient_input",
            title="Gradient × input",
            signed=True,
            passes="1 forward, 1 backward",
            units="logit",
            problem=_none,
            attribute=_gradient_input,
        ),
        Method(
            name="grad_cam",
            title="Grad-CAM",
            signed=False,
            passes="1 forward, 1 backward as far as the last convolution",
            units="logit",
            problem=_cam_problem,
            attribute=_grad_cam,
        ),
        Method(
            name="lrp_epsilon",
            title="LRP-ε",
            signed=True,
            passes="2 forward, 1 backward",
            units="logit",
            problem=_epsilon_problem,
            attribute=_lrp_epsilon,
        ),
        # Its sign is the explained logit's, all over the map; the predicted class's logit is hardly ever negative.
        Method(
            name="lrp_zplus",
            title="LRP-z+",
            signed=False,
            passes="2 forward, 1 backward",
            units="logit",
            problem=_zplus_problem,
            attribute=_lrp_zplus,
        ),
    )
}
