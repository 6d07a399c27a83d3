"""What tests ask of any inverter."""

import torch
from torch import Tensor, nn

from xinv.nets.inverter import Inverter


def inputs(model: Inverter, batch: int = 2) -> tuple[Tensor, list[Tensor]]:
    """Random logits and maps of the shapes that `model` reads."""
    return torch.randn(batch, model.release.classes), [torch.randn(batch, *shape) for shape in model.release.maps]


def parameters(model: nn.Module) -> int:
    """How many numbers it learns."""
    return sum(parameter.numel() for parameter in model.parameters())
