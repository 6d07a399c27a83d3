"""Training in the asking process: what ran there before changes nothing."""

import threading
from pathlib import Path

import pytest
import torch
from ranks import run_on_ranks
from test_train import job_for

from xinv.errors import InputError
from xinv.train.inline import InProcess


def alone(images: Path, folder: Path) -> dict[str, bytes]:
    InProcess(1).train(job_for(images, folder / "alone"))
    return {"weights": (folder / "alone" / "weights.safetensors").read_bytes()}


def after_others(images: Path, folder: Path) -> dict[str, object]:
    """The same job after another training, at another ZeRO stage, and a task that leaves torch's settings changed."""
    group = InProcess(1)
    group.train(job_for(images, folder / "other", zero_stage=2, learning_rate=3e-3))

    def disturb() -> object:
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.set_num_threads(2)
        torch.manual_seed(99)
        return lambda task: task * 2

    seen: list[tuple[float, float]] = []
    doubled = group.run_tasks(disturb, [1, 2, 3], lambda done, total, note: seen.append((done, total)))  # type: ignore[arg-type]
    settings = (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic, torch.get_num_threads())
    steps: list[int] = []
    summary = group.train(job_for(images, folder / "after"), events=lambda record: steps.append(record["epoch"]))
    again = group.train(job_for(images, folder / "after"))
    group.close()
    return {
        "weights": (folder / "after" / "weights.safetensors").read_bytes(),
        "doubled": doubled,
        "seen": seen,
        "settings": settings,
        "epochs": steps,
        "kept": again == summary,
        "threads": threading.active_count(),
    }


def test_a_result_does_not_depend_on_what_the_process_did_before(tiny_images: Path, tmp_path: Path) -> None:
    (fresh,) = run_on_ranks(alone, 1, tmp_path, tiny_images, tmp_path / "one")
    (later,) = run_on_ranks(after_others, 1, tmp_path, tiny_images, tmp_path / "two")
    assert later["weights"] == fresh["weights"]
    assert later["doubled"] == [2, 4, 6] and later["seen"] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert later["settings"] == (True, False, 1)
    assert later["epochs"] == [1, 2, 3, 4] and later["kept"]


def test_errors_of_a_task_come_as_they_are() -> None:
    def factory() -> object:
        def fail(task: str) -> None:
            raise InputError(task)

        return fail

    with pytest.raises(InputError, match=r"^shard 3$"):
        InProcess(1).run_tasks(factory, ["shard 3"])  # type: ignore[arg-type]
