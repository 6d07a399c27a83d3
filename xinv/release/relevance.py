"""Layer-wise relevance propagation (Bach et al., PLOS ONE 2015): the logit, handed back layer by layer to the pixels.

Axes in tensor names: N explained classes, B batch, C image channels, H height, W width. Maps are (N, B, C, H, W).
The propagation is captum's; rules differ by how a layer divides the relevance of an output among its inputs.
"""

from collections.abc import Callable

from torch import Tensor, nn

from xinv.release.passes import Pass, each_class
from xinv.release.structure import RESHAPES, foreign_layer, layers_in_order, private_copy, unseen_step

Shape = tuple[int, int, int]
"""Of one image: channels, height, width."""

LRP_EPSILON = 0.25
"""In units of pre-activations. Towards 0, LRP of a ReLU network becomes gradient * input (Ancona et al., ICLR 2018)."""
LRP_GAMMA = 0.25
STABILISER = 1e-9  # keeps 0 / 0 from being NaN in the rules that divide by the pre-activation itself

REARRANGING = (nn.Flatten, nn.Unflatten, nn.Identity)
"""Modules that hand relevance on as they hand on gradients: value for value."""
EPSILON_LAYERS = (nn.Linear, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm2d)
EPSILON_PASSING = (nn.ReLU, nn.Dropout, nn.Tanh, *REARRANGING)
# The z+ and gamma rules divide by sums that favour positive weights times inputs, so inputs must not be negative (no
# tanh), and a batch normalisation has no positive part to keep.
ZPLUS_LAYERS = (nn.Linear, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
ZPLUS_PASSING = (nn.ReLU, nn.Dropout, *REARRANGING)
WEIGHTED = (nn.Linear, nn.Conv2d, nn.BatchNorm2d)

Rule = Callable[[bool], object]
"""captum's rule for a layer with weights, given whether it is the last one."""


def lrp_0(explained: Pass) -> Tensor:
    """LRP-0: by the shares of the pre-activation. Without biases it conserves the logit."""
    from captum.attr._utils.lrp_rules import EpsilonRule

    return _lrp(explained, lambda last: EpsilonRule(epsilon=STABILISER))


def lrp_epsilon(explained: Pass) -> Tensor:
    """LRP-epsilon (Bach et al., eq. 58): a constant in the denominator absorbs the relevance of weak outputs."""
    from captum.attr._utils.lrp_rules import EpsilonRule

    return _lrp(explained, lambda last: EpsilonRule(epsilon=LRP_EPSILON))


def lrp_gamma(explained: Pass) -> Tensor:
    """LRP-gamma (Montavon et al. 2019, sections 10.2 and 10.3): positive weights count more, by a factor of 1 + gamma.

    The last layer has LRP-0, as they advise: its logits may be negative, and gamma would take their sums through zero.
    """
    from captum.attr._utils.lrp_rules import EpsilonRule, GammaRule

    return _lrp(explained, lambda last: EpsilonRule(epsilon=STABILISER) if last else GammaRule(gamma=LRP_GAMMA))


def lrp_zplus(explained: Pass) -> Tensor:
    """LRP-z+ (Montavon et al. 2017): positive contributions alone.

    Biases take no share: what enters a layer leaves it, wherever a positive contribution exists.
    """
    from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule

    return _lrp(explained, lambda last: Alpha1_Beta0_Rule(set_bias_to_zero=True))


def _lrp(explained: Pass, rule: Rule) -> Tensor:
    from captum.attr import LRP

    class OwnLRP(LRP):
        """captum's, which knows no layer that only rearranges values: those need no rule, so it shall not see them."""

        layers: list[nn.Module]

        def _get_layers(self, model: nn.Module) -> None:
            super()._get_layers(model)
            self.layers = [layer for layer in self.layers if type(layer) not in REARRANGING]

    # captum replaces weights, hangs rules and activations on modules, and puts back what it thinks of: give it a copy.
    model = private_copy(explained.model)
    weighted = [layer for layer in layers_in_order(model) if isinstance(layer, WEIGHTED)]

    def one(_: nn.Module, image_BCHW: Tensor, class_B: Tensor) -> Tensor:
        for layer in weighted:
            layer.rule = rule(layer is weighted[-1])  # type: ignore[assignment]  # where captum looks for it
        map_BCHW: Tensor = OwnLRP(model).attribute(image_BCHW, target=class_B)
        return map_BCHW.detach()

    return each_class(explained, one)


def epsilon_problem(model: nn.Module, image_shape: Shape) -> str | None:
    """For LRP-0 and LRP-epsilon."""
    return _problem(model, EPSILON_LAYERS + EPSILON_PASSING)


def zplus_problem(model: nn.Module, image_shape: Shape) -> str | None:
    """For LRP-gamma and LRP-z+."""
    return _problem(model, ZPLUS_LAYERS + ZPLUS_PASSING)


def _problem(model: nn.Module, known: tuple[type, ...]) -> str | None:
    layer = foreign_layer(model, known)
    if layer is not None:
        names = ", ".join(kind.__name__ for kind in known)
        return f"{layer} has no rule for relevance (there are rules for {names})"
    return unseen_step(model, RESHAPES, True, "LRP")
