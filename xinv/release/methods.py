"""Explanation methods: which pixels made the network give a class its score. This file is their table.

Axes in tensor names: N explained classes of each image, B batch, C image channels, M map channels, H height, W width
of the image, h and w of a map, K all classes.

Every map is a function of its own image alone: a batch explained together equals its images explained one by one.
The algorithms are captum's where it has them; gradients and class activation maps are read off one forward and backward
pass that they share, which captum cannot do, and tests hold them to captum's values. captum is imported where it is
used: it brings matplotlib along, and a config only asks for the names.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from xinv.errors import InputError
from xinv.release import attention, cams, gradients, perturbation, relevance
from xinv.release.passes import Chunks, Classes, Pass

Shape = tuple[int, int, int]
"""Of one image: channels, height, width."""

ANY = "every differentiable network"
ANY_BLACK_BOX = "every network, as a black box"
CAM = "networks with a cam_layer that gives maps"
LRP = "linear and convolution layers, poolings, ReLU, dropout and flatten modules, each used once, reshaping between"


@dataclass(frozen=True)
class Method:
    """One way to explain. `check` first, then `explain` batch after batch."""

    name: str
    title: str
    signed: bool  # whether one map can hold values of both signs
    shape: str  # of one map: C, H, W of the image; A, h, w of the cam_layer's output; K classes; G windows, P patches
    units: str  # of the map's values
    forward: int  # images that go through the network forward, for each image and class explained
    backward: int  # and backward
    networks: str  # that it can explain, in words; `why_not` decides
    problem: Callable[[nn.Module, Shape], str | None]  # of its own, with a differentiable network; see `why_not`
    attribute: Callable[[Pass], Tensor]  # map_NBMhw
    shared: bool = False  # it reads the forward and backward pass that all such methods of a batch have in common
    per_class: bool = True  # False: its map is the same whichever class is explained
    parameters: Mapping[str, float] = field(default_factory=dict)  # what else decides its values

    def check(self, model: nn.Module, image_shape: Shape) -> None:
        """InputError, naming the layer and the methods that would work, if `model` cannot be explained faithfully.

        captum raises for some layers and, for others, silently returns something else; both are refused here.
        """
        problem = self.why_not(model, image_shape)
        if problem is None:
            return
        works = [name for name, other in METHODS.items() if other.why_not(model, image_shape) is None]
        advice = f"these work on this network: {', '.join(works)}" if works else "no other method works on it either"
        raise InputError(f"{self.name} cannot explain this network: {problem}; {advice}.")

    def why_not(self, model: nn.Module, image_shape: Shape) -> str | None:
        """Why the method cannot explain `model`, or None."""
        detached = gradients.detached_problem(model, image_shape) if self.backward else None
        return detached or self.problem(model, image_shape)

    def explain(self, model: nn.Module, image_BCHW: Tensor, class_B: Tensor) -> Tensor:
        """Maps (B, M, h, w) of one class each; see `explain_all`. `class_B`: the class explained, for each image."""
        return _explained([self], model, image_BCHW, class_B[None], None)[1][self.name]


def method(name: str) -> Method:
    """The method called `name`. InputError, listing the known ones, for any other name."""
    if name not in METHODS:
        raise InputError(f"no explanation method is called '{name}'; known are {', '.join(METHODS)}.")
    return METHODS[name]


def explain_all(
    methods: Sequence[Method],
    model: nn.Module,
    image_BCHW: Tensor,
    classes: Classes = 1,
    chunks: Chunks | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of a batch and its maps by each of the methods, from as few passes as they need together.

    Args:
        model: maps (B, C, H, W) images in [0, 1] to (B, K) logits; left as it was: weights, hooks, gradients.
        classes: which classes to explain: the N with the highest logits, highest first; "all" in the order of the
            logits; or a tensor class_NB of the caller's choice.
        chunks: remembers, from batch to batch, how many classes fit in memory at once.

    Returns:
        Logits (B, K), float32; and by name maps (B, N * M, h, w), float32, at the method's native size: all channels of
        the first class, then of the second. Methods that explain no class in particular give (B, M, h, w).

    Raises:
        InputError: a part of the model is in training mode (dropout would make noise of the maps, batch statistics
            would couple the images), or more classes are asked for than there are. WorkError: out of memory.
    """
    explained, maps = _explained(methods, model, image_BCHW, classes, chunks)
    return explained.prediction(), maps


def _explained(
    methods: Sequence[Method], model: nn.Module, image_BCHW: Tensor, classes: Classes, chunks: Chunks | None
) -> tuple[Pass, dict[str, Tensor]]:
    if any(module.training for module in model.modules()):
        raise InputError("Explanations need the network in evaluation mode; call model.eval() first.")
    maps: dict[str, Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(image_BCHW.device.type, enabled=False):
        leaf_BCHW = image_BCHW.detach().clone().float().requires_grad_()
        classes = classes.clone() if isinstance(classes, Tensor) else classes  # the caller may be in inference mode
        explained = Pass(model, leaf_BCHW, classes, any(entry.shared for entry in methods), chunks)
        for entry in sorted(methods, key=lambda entry: not entry.shared):
            if not entry.shared:
                explained.free()  # the graph of the shared pass is no longer needed, and takes memory
            maps[entry.name] = entry.attribute(explained).detach().float().transpose(0, 1).flatten(1, 2)
    return explained, {entry.name: maps[entry.name] for entry in methods}


METHODS: dict[str, Method] = {
    entry.name: entry
    for entry in (
        Method(
            name="gradient",
            title="Gradient",
            signed=True,
            shape="C, H, W",
            units="logit per pixel value",
            forward=1,
            backward=1,
            networks=ANY,
            problem=gradients.no_problem,
            attribute=gradients.gradient,
            shared=True,
        ),
        Method(
            name="abs_gradient",
            title="|Gradient|",
            signed=False,
            shape="C, H, W",
            units="logit per pixel value",
            forward=1,
            backward=1,
            networks=ANY,
            problem=gradients.no_problem,
            attribute=gradients.abs_gradient,
            shared=True,
        ),
        Method(
            name="gradient_input",
            title="Gradient × input",
            signed=True,
            shape="C, H, W",
            units="logit",
            forward=1,
            backward=1,
            networks=ANY,
            problem=gradients.no_problem,
            attribute=gradients.gradient_input,
            shared=True,
        ),
        Method(
            name="integrated_gradients",
            title="Integrated gradients",
            signed=True,
            shape="C, H, W",
            units="logit",
            forward=gradients.INTEGRATION_STEPS,
            backward=gradients.INTEGRATION_STEPS,
            networks=ANY,
            problem=gradients.no_problem,
            attribute=gradients.integrated_gradients,
            parameters={"steps": gradients.INTEGRATION_STEPS},
        ),
        Method(
            name="smoothgrad",
            title="SmoothGrad",
            signed=True,
            shape="C, H, W",
            units="logit per pixel value",
            forward=gradients.NOISY_COPIES,
            backward=gradients.NOISY_COPIES,
            networks=ANY,
            problem=gradients.no_problem,
            attribute=gradients.smoothgrad,
            parameters={"copies": gradients.NOISY_COPIES, "noise": gradients.NOISE_SHARE},
        ),
        Method(
            name="guided_backprop",
            title="Guided backprop",
            signed=True,
            shape="C, H, W",
            units="logit per pixel value",
            forward=1,
            backward=1,
            networks="networks whose only non-linearities are nn.ReLU modules, max poolings and normalisations",
            problem=gradients.guided_problem,
            attribute=gradients.guided_backprop,
        ),
        Method(
            name="deeplift",
            title="DeepLIFT",
            signed=True,
            shape="C, H, W",
            units="logit",
            forward=2,
            backward=2,
            networks="linear layers, and activation and max pooling modules that captum has a rule for, each used once",
            problem=gradients.deeplift_problem,
            attribute=gradients.deeplift,
        ),
        Method(
            name="grad_cam",
            title="Grad-CAM",
            signed=False,
            shape="1, h, w",
            units="logit",
            forward=1,
            backward=1,
            networks=CAM,
            problem=cams.cam_problem,
            attribute=cams.grad_cam,
            shared=True,
        ),
        Method(
            name="grad_cam_pp",
            title="Grad-CAM++",
            signed=False,
            shape="1, h, w",
            units="logit, without the factor exp(logit)",
            forward=1,
            backward=1,
            networks=CAM,
            problem=cams.cam_problem,
            attribute=cams.grad_cam_pp,
            shared=True,
        ),
        Method(
            name="hires_cam",
            title="HiResCAM",
            signed=True,
            shape="1, h, w",
            units="logit",
            forward=1,
            backward=1,
            networks=CAM,
            problem=cams.cam_problem,
            attribute=cams.hires_cam,
            shared=True,
        ),
        Method(
            name="layer_cam",
            title="LayerCAM",
            signed=False,
            shape="1, h, w",
            units="logit",
            forward=1,
            backward=1,
            networks=CAM,
            problem=cams.cam_problem,
            attribute=cams.layer_cam,
            shared=True,
        ),
        Method(
            name="sigma_cam",
            title="Σ-CAM (all classes)",
            signed=False,
            shape="K, h, w",
            units="logit",
            forward=1,
            backward=1,
            networks=CAM,
            problem=cams.cam_problem,
            attribute=cams.sigma_cam,
            shared=True,
            per_class=False,
        ),
        Method(
            name="partial_cam",
            title="∂-CAM (per channel)",
            signed=True,
            shape="A, h, w",
            units="logit",
            forward=1,
            backward=1,
            networks=CAM,
            problem=cams.cam_problem,
            attribute=cams.partial_cam,
            shared=True,
        ),
        Method(
            name="lrp_0",
            title="LRP-0",
            signed=True,
            shape="C, H, W",
            units="logit",
            forward=2,
            backward=1,
            networks=f"{LRP}; batch normalisation and tanh modules",
            problem=relevance.epsilon_problem,
            attribute=relevance.lrp_0,
        ),
        Method(
            name="lrp_epsilon",
            title="LRP-ε",
            signed=True,
            shape="C, H, W",
            units="logit",
            forward=2,
            backward=1,
            networks=f"{LRP}; batch normalisation and tanh modules",
            problem=relevance.epsilon_problem,
            attribute=relevance.lrp_epsilon,
            parameters={"epsilon": relevance.LRP_EPSILON},
        ),
        Method(
            name="lrp_gamma",
            title="LRP-γ",
            signed=True,
            shape="C, H, W",
            units="logit",
            forward=2,
            backward=1,
            networks=LRP,
            problem=relevance.zplus_problem,
            attribute=relevance.lrp_gamma,
            parameters={"gamma": relevance.LRP_GAMMA},
        ),
        # Its sign is the explained logit's, all over the map; the predicted class's logit is hardly ever negative.
        Method(
            name="lrp_zplus",
            title="LRP-z+",
            signed=False,
            shape="C, H, W",
            units="logit",
            forward=2,
            backward=1,
            networks=LRP,
            problem=relevance.zplus_problem,
            attribute=relevance.lrp_zplus,
        ),
        Method(
            name="occlusion",
            title="Occlusion",
            signed=True,
            shape="1, G, G",
            units="logit",
            forward=perturbation.OCCLUSION_GRID**2 + 1,
            backward=0,
            networks=ANY_BLACK_BOX,
            problem=gradients.no_problem,
            attribute=perturbation.occlusion,
            parameters={"grid": perturbation.OCCLUSION_GRID},
        ),
        Method(
            name="rise",
            title="RISE",
            signed=False,
            shape="1, H, W",
            units="probability",
            forward=perturbation.RISE_MASKS,
            backward=0,
            networks=ANY_BLACK_BOX,
            problem=gradients.no_problem,
            attribute=perturbation.rise,
            parameters={
                "masks": perturbation.RISE_MASKS,
                "cells": perturbation.RISE_CELLS,
                "kept": perturbation.RISE_KEPT,
                "seed": perturbation.RISE_SEED,
            },
        ),
        Method(
            name="attention_rollout",
            title="Attention rollout",
            signed=False,
            shape="1, P, P",
            units="share of attention",
            forward=1,
            backward=0,
            networks="transformers that name attention_layers, with a class token and a square of patches",
            problem=attention.rollout_problem,
            attribute=attention.attention_rollout,
            per_class=False,
        ),
    )
}
