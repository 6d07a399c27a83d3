"""The stage of a target that its owner has trained: everything that could be wrong with it, then its folder.

Axes in tensor names: B batch, C image channels, H height, W width.
"""

import inspect
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xinv.attacks import Stages
from xinv.config import AuditConfig
from xinv.errors import InputError
from xinv.files import aside, write_json
from xinv.nets.cam_layer import find_cam_layer
from xinv.nets.imported import check_answers, find_function, name_cam_layer
from xinv.progress import Progress
from xinv.release.methods import METHODS
from xinv.stage import Finished
from xinv.train.imported import ImportedSettings, ImportedSpec, file_digest, fill_exactly
from xinv.train.weights import NETWORK, WEIGHTS

IMPORTED_FORMAT = 1


@dataclass(frozen=True)
class ImportedTarget:
    """An imported target that has passed every check which needs no data."""

    spec: ImportedSpec
    weights: Path
    weights_sha256: str
    source_sha256: str | None  # of the file that defines the function; what that file imports is not followed
    parameters: int

    def check_labels(self, label_names: Sequence[str]) -> None:
        """InputError unless there is one logit a label."""
        if self.spec.classes != len(label_names):
            shown = ", ".join(label_names[:5]) + (", ..." if len(label_names) > 5 else "")
            raise InputError(
                f"The target {self.spec.function} gives (2, {self.spec.classes}) for two images; expected "
                f"(2, {len(label_names)}), one logit for each of the {len(label_names)} labels of the data, in their "
                f"order ({shown}). Check target.arguments and data.source."
            )


def checked_target(config: AuditConfig) -> ImportedTarget | None:
    """The imported target of `config`, or None where the target is trained by the audit.

    Builds it, fills it, runs it on random images and asks every explanation to be released whether it can explain it.
    InputError says what is wrong; nothing was done yet.
    """
    settings, data = config.target, config.data
    if not isinstance(settings, ImportedSettings):
        return None
    directory, shape = Path.cwd(), (data.channels, data.size, data.size)
    spec = ImportedSpec(
        function=settings.function,
        arguments=settings.arguments,
        layer=settings.layer,
        channels=data.channels,
        size=data.size,
        classes=0,
    )
    network = spec.build(directory)
    fill_exactly(network, settings.weights)
    spec = spec.model_copy(update={"classes": check_answers(network, shape)})
    if settings.layer is None and not hasattr(network, "cam_layer"):
        image_BCHW = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
        spec = spec.model_copy(update={"layer": find_cam_layer(network, image_BCHW)})
        if spec.layer is not None:
            name_cam_layer(network, spec.layer)
    for name in config.release.methods:
        METHODS[name].check(network, shape)
    source = _source_of(find_function(settings.function, directory))
    return ImportedTarget(
        spec=spec,
        weights=settings.weights,
        weights_sha256=file_digest(settings.weights),
        source_sha256=file_digest(source) if source else None,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )


def imported_stage(audit: Stages, target: ImportedTarget) -> Finished:
    """The folder of an imported target: network.json and a copy of the weights. Later stages read nothing else of it,
    and import its function."""
    identity = {
        "format": IMPORTED_FORMAT,
        "network": target.spec.model_dump(mode="json"),
        "weights": target.weights_sha256,
        "source": target.source_sha256,
    }

    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        with aside(folder / WEIGHTS) as draft:
            shutil.copyfile(target.weights, draft)
            if file_digest(draft) != target.weights_sha256:
                raise InputError(f"{target.weights} changed while it was read; run the same command again.")
        write_json(folder / NETWORK, target.spec.model_dump(mode="json"))
        return {"parameters": target.parameters, "weights": target.weights_sha256}

    return audit.stage("target", f"Target: {target.spec.function}", identity, work)


def _source_of(function: Callable[..., object]) -> Path | None:
    """The Python file that defines `function`; None where it has none (compiled code, a partial of something)."""
    try:
        found = inspect.getsourcefile(inspect.unwrap(function))
    except (TypeError, ValueError):
        return None
    return Path(found) if found and Path(found).is_file() else None
