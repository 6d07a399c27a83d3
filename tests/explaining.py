"""Release sets of a target of a few weights, made in this process."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from xinv.files import sha256_of
from xinv.nets.classifier import Classifier, ClassifierSettings, build_classifier
from xinv.release.precompute import ReleaseSettings, precompute

SETTINGS = ReleaseSettings(methods=("gradient", "grad_cam"), batch_size=3)


def load(folder: Path) -> Classifier:
    """A target whose weights follow from the number in its weights file."""
    facts = json.loads((folder / "network.json").read_text())
    torch.manual_seed(int((folder / "weights.safetensors").read_text()))
    return build_classifier(ClassifierSettings(network=facts["network"], width=4), 1, 16, 4)


def make_target(folder: Path, seed: int = 0, network: str = "cnn") -> Path:
    folder.mkdir()
    (folder / "network.json").write_text(json.dumps({"network": network}))
    (folder / "weights.safetensors").write_text(str(seed))
    (folder / "events.jsonl").write_text("not a part of the target")
    return folder


class Tasks:
    """A run_tasks that remembers what it ran, and that dies after `limit` tasks."""

    def __init__(self, limit: int | None = None) -> None:
        self.ran: list[tuple[str, int]] = []
        self.limit = limit

    def __call__(self, factory: Callable[[], Any], tasks: list[Any], progress: Callable[..., None]) -> list[Any]:
        run = pickle.loads(pickle.dumps(factory))()  # as a task runner sends it to its workers
        results = []
        for task in tasks:
            if self.limit is not None and len(self.ran) == self.limit:
                raise KeyboardInterrupt
            results.append(run(task))
            self.ran.append(task)
            progress(len(results), len(tasks), "")
        return results


def make(images: Path, target: Path, out: Path, settings: ReleaseSettings = SETTINGS, **options: Any) -> Tasks:
    """The releases of `target` for `images`, in `out`; returns who ran the tasks."""
    tasks = options.pop("tasks", Tasks())
    precompute(images, target, out, settings, load=load, run_tasks=tasks, **options)
    return tasks


def content(folder: Path) -> dict[str, str]:
    """A hash of every file."""
    return {str(path.relative_to(folder)): sha256_of(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
