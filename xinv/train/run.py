"""Training on a group of processes placed by Ray Train, one group for all the trainings of an audit.

Starting a group costs 10 to 45 seconds (processes, imports, process group, DeepSpeed's first engine). So the group asks
a desk, a small actor, for one job after another, and runs each with the plain `loop.train`, which keeps its own
checkpoints. When a process or machine is lost, Ray Train starts the group again and the job at hand continues from its
checkpoint.
"""

import asyncio
import contextlib
import functools
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from xinv.errors import InputError, WorkError
from xinv.parallel import WorkerSettings, connect, redirect
from xinv.progress import Progress, silent
from xinv.train.loop import Events, Summary, TrainJob


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


class TrainingGroup:
    """`workers.count` ranks under Ray Train, started at the first job. Use as a context manager."""

    def __init__(self, settings: WorkerSettings, folder: Path, log: Path) -> None:
        self._settings, self._folder, self._log = settings, folder, log
        self._desk: Any = None
        self._thread: threading.Thread | None = None
        self._failure: list[str] = []

    def __enter__(self) -> "TrainingGroup":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        # After an error or Ctrl-C the ranks may be in mid-training: leaving the cluster ends them, see audit.run.

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
            if self._failure:
                raise WorkError(
                    f"The training processes ended: {self._failure[0]} The log {self._log} has the whole story."
                )
            if state["ranks"] < self._settings.count and time.monotonic() - begun > self._settings.start_limit:
                raise WorkError(
                    f"{state['ranks']} of {self._settings.count} training processes started within "
                    f"{self._settings.start_limit} s. Is the cluster busy? Raise workers.start_limit."
                )
            time.sleep(0.1)

    def _result(self, outcome: dict[str, Any]) -> Summary:
        if "summary" in outcome:
            return Summary.model_validate(outcome["summary"])
        if outcome["error"] == "InputError":
            raise InputError(outcome["message"])
        if outcome.get("errno"):
            raise OSError(outcome["errno"], outcome["message"])
        raise WorkError(f"{outcome['message']} The log {self._log} has the whole story.")

    def _start(self) -> None:
        if self._thread is not None:
            return
        connect(self._settings)
        import ray

        self._desk = ray.remote(num_cpus=0, max_concurrency=64)(_Desk).remote()
        self._thread = threading.Thread(target=self._fit, daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        """Ray Train's blocking call, in a thread of its own: the audit goes on beside it."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        settings = self._settings
        config = {"desk": self._desk, "log": str(self._log.resolve()), "threads": settings.cpus}
        trainer = TorchTrainer(
            _serve,
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if settings.gpus else "gloo", timeout_s=600),
            scaling_config=ScalingConfig(
                num_workers=settings.count,
                use_gpu=bool(settings.gpus),
                resources_per_worker={"CPU": settings.cpus, **({"GPU": settings.gpus} if settings.gpus else {})},
            ),
            run_config=RunConfig(
                name=f"group-{time.time_ns()}",
                storage_path=str(self._folder.resolve()),
                failure_config=FailureConfig(max_failures=settings.max_failures, controller_failure_limit=3),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # whatever ends the group ends the audit, which waits in another thread
            self._failure.append(str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__)
        else:
            self._failure.append("the group was closed.")

    def close(self) -> None:
        """Let the ranks end by themselves, so that Ray frees their placement group."""
        if self._thread is None:
            return
        import ray
        import ray.exceptions

        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._desk.close.remote(), timeout=10)
        self._thread.join(timeout=30)
        self._thread = None
        self._failure.clear()
