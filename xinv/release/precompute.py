"""Release shards (signatures; the bodies are being written)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from xinv.nets.classifier import Classifier

Load = Callable[[Path], Classifier]
Task = tuple[str, int]


class ReleaseSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: tuple[str, ...] = Field(("gradient", "grad_cam", "lrp_zplus"), description="Explanations released.")
    batch_size: int = Field(64, ge=1, description="Images explained at once.")
    max_nonfinite: int = Field(0, ge=0, description="NaN or infinite map values tolerated in the whole set.")


class Explainer:
    def __init__(
        self, target_folder: Path, images: Path, out: Path, settings: ReleaseSettings, load: Load, threads: int = 1
    ) -> None: ...

    def __call__(self, task: Task) -> dict[str, Any]: ...  # type: ignore[empty-body]


def precompute(images, target_folder, out, settings, *, load: Load, run_tasks, progress=None, threads: int = 1):  # type: ignore
    """-> Index. run_tasks(factory, tasks, progress=progress) is parallel.map_tasks."""
