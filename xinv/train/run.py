"""Training on a group of processes placed by Ray Train, one group for all the trainings of an audit.

Starting a group costs 10 to 45 seconds (processes, imports, process group, DeepSpeed's first engine). So the group asks
a desk, a small actor, for one job after another, and runs each with the plain `loop.train`, which keeps its own
checkpoints. When a process or machine is lost, Ray Train starts the group again and the job at hand continues from its
checkpoint.
"""

import asyncio
import contextlib
import functools
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from xinv.errors import InputError, WorkError
from xinv.parallel import WorkerSettings, connect, map_tasks, redirect
from xinv.progress import Progress, silent
from xinv.train.loop import Events, Summary, TrainJob

Task = TypeVar("Task")
Result = TypeVar("Result")


class _Desk:
    """An actor between the audit and the ranks: jobs in one direction, progress and results in the other."""

    def __init__(self) -> None:
        self._jobs: list[str] = []
        self._closed = False
        self._outcomes: dict[int, dict[str, Any]] = {}
        self._progress: tuple[float, float, str] = (0, 0, "")
        self._events: dict[int, list[dict[str, Any]]] = {}
        self._begun: set[int] = set()

    async def post(self, job: str) -> int:
        self._progress = (0, 0, "waiting for the training processes")
        self._jobs.append(job)
        return len(self._jobs) - 1

    async def close(self) -> None:
        self._closed = True

    async def next_job(self, rank: int) -> tuple[int, str] | None:
        """The first job without an outcome, waiting for one; None once the desk is closed. All ranks get the same:
        a rank asks again only after the outcome of its last job is known (`settled`)."""
        self._begun.add(rank)
        while not self._closed:
            number = len(self._outcomes)
            if number < len(self._jobs):
                return number, self._jobs[number]
            await asyncio.sleep(0.05)
        return None

    async def settled(self, number: int) -> None:
        while number not in self._outcomes and not self._closed:
            await asyncio.sleep(0.02)

    async def tell(self, done: float, total: float, note: str) -> None:
        self._progress = (done, total, note)

    async def record(self, number: int, event: dict[str, Any]) -> None:
        self._events.setdefault(number, []).append(event)

    async def settle(self, number: int, outcome: dict[str, Any]) -> None:
        self._outcomes.setdefault(number, outcome)

    async def look(self, number: int, events_seen: int) -> dict[str, Any]:
        return {
            "progress": self._progress,
            "events": self._events.get(number, [])[events_seen:],
            "outcome": self._outcomes.get(number),
            "ranks": len(self._begun),
        }


def _serve(config: dict[str, Any]) -> None:
    """What each rank runs: job after job until the desk closes. Ray Train has made the process group."""
    import ray
    import ray.train
    import torch

    from xinv.train.loop import train

    redirect(Path(config["log"]))
    torch.set_num_threads(config["threads"])
    desk, rank = config["desk"], ray.train.get_context().get_world_rank()
    told = 0.0

    def progress(done: float, total: float, note: str) -> None:
        nonlocal told
        if time.monotonic() - told > 0.3 or done == total:
            told = time.monotonic()
            desk.tell.remote(done, total, note)

    while (found := ray.get(desk.next_job.remote(rank))) is not None:
        number, text = found
        job = TrainJob.model_validate_json(text)
        try:
            summary = train(job, progress, functools.partial(_record, desk, number))
        except (InputError, WorkError, OSError) as error:
            outcome = {"error": type(error).__name__, "message": str(error), "errno": getattr(error, "errno", None)}
            ray.get(desk.settle.remote(number, outcome))
            raise
        except Exception as error:
            traceback.print_exc()
            # A broken connection means that another rank is gone: Ray Train starts the group again, which continues.
            if not _is_lost_peer(error):
                message = f"{type(error).__name__} in training {job.folder.name}: {error}"
                ray.get(desk.settle.remote(number, {"error": "WorkError", "message": message}))
            raise
        if rank == 0:
            ray.get(desk.settle.remote(number, {"summary": summary.model_dump(mode="json")}))
        ray.get(desk.settled.remote(number))


def _record(desk: Any, number: int, event: dict[str, Any]) -> None:
    import ray

    ray.get(desk.record.remote(number, event))


def _is_lost_peer(error: Exception) -> bool:
    text = str(error)
    return any(
        sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
    )


class _Fitter:
    """An actor that makes Ray Train's blocking call. Not a thread of the audit: Ray ends a process in which some thread
    still waits for it after `ray.shutdown`, and a blocked thread cannot be stopped. An actor can be killed."""

    def fit(self, desk: Any, settings: WorkerSettings, folder: str, log: str) -> None:
        """Start the group and return when its ranks have ended."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        redirect(Path(log))
        TorchTrainer(
            _serve,
            train_loop_config={"desk": desk, "log": log, "threads": settings.cpus},
            torch_config=TorchConfig(backend="nccl" if settings.gpus else "gloo", timeout_s=600),
            scaling_config=ScalingConfig(
                num_workers=settings.count,
                use_gpu=bool(settings.gpus),
                resources_per_worker={"CPU": settings.cpus, **({"GPU": settings.gpus} if settings.gpus else {})},
            ),
            run_config=RunConfig(
                name=f"group-{time.time_ns()}",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=settings.max_failures, controller_failure_limit=3),
            ),
        ).fit()


class TrainingGroup:
    """`workers.count` ranks under Ray Train, started at the first job. Use as a context manager."""

    def __init__(self, settings: WorkerSettings, folder: Path, log: Path) -> None:
        self._settings, self._folder, self._log = settings, folder, log
        self._desk: Any = None
        self._fitter: Any = None
        self._fit: Any = None

    def __enter__(self) -> "TrainingGroup":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # After an error or Ctrl-C the ranks may be in mid-training: nobody waits for them.
        self.close(patience=30 if kind is None else 0)

    def train(self, job: TrainJob, progress: Progress = silent, events: Events = lambda record: None) -> Summary:
        """Run one job on the group and wait for its end.

        Raises:
            InputError, WorkError, OSError: as the training raised them, or WorkError when the group could not start or
                died more often than `max_failures`.
        """
        self._start()
        import ray

        number = ray.get(self._desk.post.remote(job.model_dump_json()))
        seen, begun = 0, time.monotonic()
        while True:
            state = ray.get(self._desk.look.remote(number, seen))
            for record in state["events"]:
                events(record)
            seen += len(state["events"])
            if state["progress"][1] or state["progress"][2]:
                progress(*state["progress"])
            if state["outcome"] is not None:
                return self._result(state["outcome"])
            ended, _ = ray.wait([self._fit], timeout=0.1)
            if ended:
                raise WorkError(f"The training processes ended: {self._end()} The log {self._log} has the whole story.")
            if state["ranks"] < self._settings.count and time.monotonic() - begun > self._settings.start_limit:
                raise WorkError(
                    f"{state['ranks']} of {self._settings.count} training processes started within "
                    f"{self._settings.start_limit} s. Is the cluster busy? Raise workers.start_limit."
                )

    def run_tasks(
        self, factory: Callable[[], Callable[[Task], Result]], tasks: Sequence[Task], progress: Progress = silent
    ) -> list[Result]:
        """`parallel.map_tasks` on the same workers."""
        if self._settings.gpus:
            self.close()  # it holds the GPUs that the tasks need
        return map_tasks(factory, tasks, settings=self._settings, log=self._log, progress=progress)

    def _result(self, outcome: dict[str, Any]) -> Summary:
        if "summary" in outcome:
            return Summary.model_validate(outcome["summary"])
        if outcome["error"] == "InputError":
            raise InputError(outcome["message"])
        if outcome.get("errno"):
            raise OSError(outcome["errno"], outcome["message"])
        raise WorkError(f"{outcome['message']} The log {self._log} has the whole story.")

    def _start(self) -> None:
        if self._fitter is not None:
            return
        connect(self._settings)
        import ray

        self._desk = ray.remote(num_cpus=0, max_concurrency=64)(_Desk).remote()
        self._fitter = ray.remote(num_cpus=0)(_Fitter).remote()
        folder, log = str(self._folder.resolve()), str(self._log.resolve())
        self._fit = self._fitter.fit.remote(self._desk, self._settings, folder, log)

    def _end(self) -> str:
        """Why the group ended, in a line."""
        import ray
        import ray.exceptions

        try:
            ray.get(self._fit)
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            return lines[-1] if lines else type(error).__name__
        return "the group was closed."

    def close(self, patience: float = 30) -> None:
        """Let the ranks end by themselves, so that Ray frees their places; what has not ended after `patience` seconds
        is killed."""
        if self._fitter is None:
            return
        import ray
        import ray.exceptions

        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._desk.close.remote(), timeout=10)
            ray.wait([self._fit], timeout=patience)
        for actor in (self._fitter, self._desk):
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)
        self._fitter = self._desk = self._fit = None
