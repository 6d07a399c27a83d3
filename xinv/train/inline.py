"""Trainings and tasks in the process that asks for them: one rank, no Ray, no start-up.

A group under Ray Train takes 10 to 45 seconds to start. Where many short audits run side by side, each one in a worker
process that is kept for the next, `InProcess` stands in for `TrainingGroup`.
"""

import contextlib
import ctypes
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch

from xinv.progress import Progress, silent
from xinv.train.loop import Events, Records, Summary, TrainJob, train, validations

Task = TypeVar("Task")
Result = TypeVar("Result")


class Group(Protocol):
    """Who does the work of an audit: `train.run.TrainingGroup` or `InProcess`."""

    def train(self, job: TrainJob, progress: Progress = silent, events: Events = ...) -> Summary:
        """Run one training to its end, continuing from its newest checkpoint."""
        ...

    def run_tasks(
        self,
        factory: Callable[[], Callable[[Task], Result]],
        tasks: Sequence[Task],
        progress: Progress = silent,
        light: bool = False,
    ) -> list[Result]:
        """Apply the function that `factory` builds to every task; the results in their order. `light`: one core is
        enough for each, and no GPU."""
        ...

    def close(self) -> None:
        """Give back what it holds (processes, GPUs, memory). The next call takes it again."""
        ...


class InProcess:
    """A group of one rank: this process.

    Whatever it ran before, a job or a task finds the process as a fresh one would be, so that a result does not depend
    on which of several processes came to make it. The process group, made at the first training, stays: DeepSpeed keeps
    handles to it (`engine.process_group`).

    Args:
        threads: CPU threads to compute with.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        # cuBLAS reads this once, at its first use, which may be an explanation before any training sets it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def train(self, job: TrainJob, progress: Progress = silent, events: Events = lambda record: None) -> Summary:
        """As `Group.train`. InputError, WorkError, OSError: as the training raised them."""
        with self._fresh():
            return train(job, progress, events)

    def validations(self, job: TrainJob) -> Records:
        """As `loop.validations`: a training that its reader may stop. Close it before another job."""
        with self._fresh(), contextlib.closing(validations(job)) as records:
            yield from records

    def run_tasks(
        self,
        factory: Callable[[], Callable[[Task], Result]],
        tasks: Sequence[Task],
        progress: Progress = silent,
        light: bool = False,
    ) -> list[Result]:
        """As `Group.run_tasks`, one task after another. Errors: as the function raised them."""
        with self._fresh():
            progress(0, len(tasks), "")
            run, results = factory(), []
            for task in tasks:
                results.append(run(task))
                progress(len(results), len(tasks), "")
            return results

    def close(self) -> None:
        """Free the memory that the last job left to Python's, the C library's and CUDA's allocators."""
        gc.collect()
        # Networks of unlike sizes, one after another, leave glibc's heap in pieces that it keeps: 200 MiB after 20.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def _fresh(self) -> Iterator[None]:
        """Undo what the body changes of torch's settings: explaining turns TF32 off, training picks kernels."""
        flags: list[tuple[Any, str]] = [
            (torch.backends.cudnn, "allow_tf32"),
            (torch.backends.cudnn, "deterministic"),
            (torch.backends.cudnn, "benchmark"),
            (torch.backends.cuda.matmul, "allow_tf32"),
        ]
        before = [getattr(owner, name) for owner, name in flags]
        torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(self._threads)
            for (owner, name), value in zip(flags, before, strict=True):
                setattr(owner, name, value)
