"""What a network is made of, as far as explanation methods must know it: which layers, used how, and what lies between.

captum hangs its rules on modules. What a forward pass computes between modules, or in a module that captum has no rule
for, gets plain gradients without a word; so networks are followed here layer by layer before they are explained.
"""

import copy
from collections import Counter

from torch import fx, nn

RESHAPES = ("flatten", "reshape", "view", "unflatten", "squeeze", "unsqueeze", "contiguous")
"""Functions that only rearrange values."""

SUMS = ("add", "iadd", "cat")
"""Functions through which a difference passes as it is."""


def place(model: nn.Module, wanted: nn.Module) -> str:
    """The name and the type of a part of `model`, for messages."""
    names = [name for name, module in model.named_modules() if module is wanted]
    return f"{names[0] if names else '(not a part of the network)'} ({type(wanted).__name__})"


def foreign_layer(model: nn.Module, known: tuple[type, ...]) -> str | None:
    """The first layer of a type that is not in `known`, or None. Subclasses do not count: they may compute anything."""
    for module in model.modules():
        if not list(module.children()) and type(module) not in known:
            return place(model, module)
    return None


def unseen_step(model: nn.Module, functions: tuple[str, ...], once: bool, seer: str) -> str | None:
    """Why hooks on modules do not see all that `model` computes, or None.

    `functions`: those that may run between modules. `once`: each layer may run once only. `seer`: the method's name.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # a network of the user's own may fail in any way on what is no tensor
        return (
            f"its forward pass cannot be followed layer by layer ({error}), so nobody could tell what {seer} leaves out"
        )
    uses = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        called = getattr(node.target, "__name__", str(node.target))
        if node.op == "call_module" and once and uses[str(node.target)] > 1:
            layer = place(model, model.get_submodule(str(node.target)))
            return f"{layer} is used {uses[str(node.target)]} times in one forward pass; each use needs its own module"
        if node.op == "get_attr" or (node.op in ("call_function", "call_method") and called not in functions):
            inside = list((node.meta.get("nn_module_stack") or {"": None}).keys())[-1]
            where = f"the forward pass of {inside}" if inside else "the network's own forward pass"
            return f"{where} calls {called}, which {seer} cannot see because it is no module"
    return None


def layers_in_order(model: nn.Module) -> list[nn.Module]:
    """The layers of a network that `unseen_step` passes, in the order in which they run."""
    graph = fx.Tracer().trace(model)
    return [model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"]


def private_copy(model: nn.Module) -> nn.Module:
    """A copy for captum to hang things on, with no activation in place. It puts back what it thinks of, not all."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
    return copied
