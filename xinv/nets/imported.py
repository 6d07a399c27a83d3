"""Networks that the user's own function builds: found by name, called, and checked before anything relies on them.

Axes in tensor names: B batch, C image channels, H height, W width, K classes.
"""

import difflib
import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from xinv.errors import InputError

FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
NAMED = 3  # how many names a message shows


@contextmanager
def importable(directory: Path) -> Iterator[None]:
    """Look for modules in `directory` first, as `python -m` does there. The `xinv` command does not by itself."""
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if str(directory) in sys.path:
            sys.path.remove(str(directory))


def find_function(name: str, directory: Path) -> Callable[..., object]:
    """The function called `package.module:function`; modules in `directory` come before installed ones.

    InputError: malformed, a module that cannot be imported, no such function.
    """
    if not FUNCTION.fullmatch(name):
        raise InputError(f"target.import: expected package.module:function, got {name!r}.")
    place, attribute = name.split(":")
    try:
        with importable(directory):
            module = importlib.import_module(place)
    except ImportError as error:
        raise InputError(
            f"target.import: the module {place} cannot be imported ({_told(error)}). Install what is missing into "
            f"xinv's environment, or run xinv from the folder that holds the module (now {directory}), or put that "
            "folder on PYTHONPATH."
        ) from error
    except (Exception, SystemExit) as error:  # it runs the user's code, which may fail in any way
        raise InputError(f"target.import: the module {place} failed as it was imported: {_told(error)}.") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(attribute, known, n=NAMED) or known[:NAMED]
        wrong = "has no function" if found is None else f"holds {type(found).__name__} and no function as"
        hint = f"; it has {', '.join(near)}" if near else ""
        raise InputError(f"target.import: {place} {wrong} {attribute}{hint}.")
    function: Callable[..., object] = found
    return function


def build_imported(name: str, arguments: Mapping[str, object], layer: str | None, directory: Path) -> nn.Module:
    """What the function gives for the arguments: a network on the CPU in evaluation mode, with the function's weights.

    Args:
        name, directory: see `find_function`.
        arguments: passed by name.
        layer: dotted name of the module that becomes its `cam_layer`, which is all that explanations ask of a network
            beyond nn.Module. None leaves it as it is.

    Raises:
        InputError: besides those of `find_function`, a function that fails or gives no nn.Module, a network without
            weights or with some that hold no values, a layer that is not there.
    """
    function = find_function(name, directory)
    try:
        with importable(directory):
            network = function(**arguments)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise InputError(f"target.import: {name}({given}) failed: {_told(error)}. See target.arguments.") from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"target.import: {name} gave {type(network).__name__}; expected a torch.nn.Module that maps images "
            "(B, C, H, W) in [0, 1] to logits (B, K)."
        )
    held = [*network.named_parameters(), *network.named_buffers()]
    if not any(True for _ in network.parameters()):
        raise InputError(f"target.import: the network of {name} has no parameters, so nothing in it was trained.")
    empty = [key for key, value in held if value.is_meta or nn.parameter.is_lazy(value)]
    if empty:
        raise InputError(
            f"target.import: {len(empty)} tensors of the network hold no values ({_few(empty)}): they are on the meta "
            f"device, or lazy and not yet initialised. Have {name} make them on the CPU, at their final shape."
        )
    network = network.cpu().eval()
    if layer is not None:
        name_cam_layer(network, layer)
    return network


def name_cam_layer(network: nn.Module, layer: str) -> None:
    """Make the part of `network` called `layer` its `cam_layer`. InputError: no such part, or it has a cam_layer."""
    names = [name for name, _ in network.named_modules() if name]
    if layer not in names:
        near = difflib.get_close_matches(layer, names, n=NAMED) or names[-NAMED:]
        raise InputError(
            f"target.layer: the network has no part called {layer!r}; near are {', '.join(near)}. Name a module as "
            "named_modules() does, or leave it out."
        )
    found, own = network.get_submodule(layer), getattr(network, "cam_layer", None)
    if own is found:
        return
    if hasattr(network, "cam_layer"):
        raise InputError("target.layer: the network names its cam_layer itself; leave target.layer out.")
    # Past nn.Module.__setattr__, which would make it a child too: its weights would have two names.
    vars(network)["cam_layer"] = found


def check_answers(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """How many classes K the network tells apart, from what it makes of random images of `image_shape` (C, H, W).

    InputError: it fails on them; its output is no (B, K), holds NaN or infinity, is a probability, is another one the
    second time, or depends on the other images of the batch.
    """
    source = torch.Generator().manual_seed(0)
    image_BCHW = torch.rand(2, *image_shape, generator=source)
    image_BCHW[1] /= 4  # another image, to any statistic of the batch
    given = f"images {tuple(image_BCHW.shape)} (data.channels, data.size)"
    first_BK, again_BK, alone_BK = (
        _answer(network, batch, given) for batch in (image_BCHW, image_BCHW, image_BCHW[:1])
    )
    if not first_BK.isfinite().all():
        raise InputError(
            f"The target's output for {given} holds NaN or infinity; are these the weights of its training?"
        )
    if not torch.equal(first_BK, again_BK):
        raise InputError(
            "The target gives two answers to the same images, in evaluation mode: something in it draws random "
            "numbers, such as F.dropout without training=self.training. An explanation needs one answer."
        )
    if not torch.allclose(first_BK[:1], alone_BK, rtol=1e-2, atol=1e-3 * (1 + float(first_BK.abs().max()))):
        raise InputError(
            "The target's answer to an image depends on the other images of the batch, in evaluation mode: something "
            "in it takes statistics of the batch, such as BatchNorm with track_running_stats=False."
        )
    if bool((first_BK >= 0).all()) and torch.allclose(first_BK.sum(dim=1), torch.ones(2), atol=1e-4):
        raise InputError(
            "The target's outputs are at least 0 and sum to 1, so they are probabilities; expected logits. Leave out "
            "the softmax at its end."
        )
    return first_BK.shape[1]


def _answer(network: nn.Module, image_BCHW: Tensor, given: str) -> Tensor:
    rows = len(image_BCHW)
    try:
        with torch.no_grad():
            logit_BK = network(image_BCHW.clone())
    except Exception as error:  # the user's code may fail in any way
        raise InputError(
            f"The target fails on {given}, {rows} at once, float32: {_told(error)}. Expected logits ({rows}, K); does "
            "it take images of another size, number of channels or precision?"
        ) from error
    if not isinstance(logit_BK, Tensor):
        raise InputError(f"The target gives {type(logit_BK).__name__} for {given}; expected a tensor of logits (2, K).")
    if logit_BK.dim() != 2 or len(logit_BK) != rows or logit_BK.shape[1] < 2 or not logit_BK.is_floating_point():
        raise InputError(
            f"The target gives {tuple(logit_BK.shape)} {str(logit_BK.dtype).removeprefix('torch.')} for {rows} of "
            f"{given}; expected logits ({rows}, K), floating point, one column a label."
        )
    return logit_BK


def _told(error: BaseException) -> str:
    """`TypeError: ... (file.py, line 3)`: what failed, and the user's line at which it did."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def _is_machinery(file: str) -> bool:
    """Whether a line of a traceback is not the user's: this file, Python's import, torch's modules."""
    return file == __file__ or file.startswith("<") or "importlib" in file or str(Path(torch.__file__).parent) in file


def _few(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
