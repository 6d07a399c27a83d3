"""Training on a group of processes placed by Ray Train, one group for all the trainings of an audit.

Starting a group costs 10 to 45 seconds (processes, imports, process group, DeepSpeed's first engine). So the group asks
a desk, a small actor, for one job after another, and runs each with the plain `loop.validations`, which keeps its own
checkpoints. When a process or machine is lost, Ray Train starts the group again and the job at hand continues from its
checkpoint.

A job may be paced: after every validation its ranks wait for word whether to go on, all at the same one.
"""

import asyncio
import contextlib
import secrets
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from xinv.errors import InputError, WorkError
from xinv.files import read_json
from xinv.parallel import WorkerSettings, connect, map_tasks, redirect
from xinv.progress import Progress, silent
from xinv.train.loop import SUMMARY, Events, Records, Summary, TrainJob, validations

Task = TypeVar("Task")
Result = TypeVar("Result")

AGREE = 5.0
"""Seconds within which the ranks of a failed job must have told the same error to stay together."""


class StartError(WorkError):
    """The group could not start."""


class LostError(WorkError):
    """The group was there, and is gone; another one could continue."""


class BugError(WorkError):
    """What nobody foresaw ended a job."""


class _Desk:
    """An actor between the audit and the ranks: jobs in one direction, progress and results in the other."""

    def __init__(self) -> None:
        self._jobs: list[tuple[str, bool]] = []
        self._closed = False
        self._outcomes: dict[int, dict[str, Any]] = {}
        self._progress: tuple[float, float, str] = (0, 0, "")
        self._events: dict[int, list[dict[str, Any]]] = {}
        self._begun: set[int] = set()
        self._handed: dict[str, list[tuple[int, str, bool] | None]] = {}  # by start of the group
        self._allowed: dict[int, int] = {}
        self._stopped: set[int] = set()
        self._failed: dict[tuple[str, int], dict[int, str]] = {}

    async def post(self, job: str, paced: bool) -> int:
        self._progress = (0, 0, "waiting for the training processes")
        self._jobs.append((job, paced))
        return len(self._jobs) - 1

    async def close(self) -> None:
        self._closed = True

    async def next_job(self, start: str, turn: int, rank: int) -> tuple[int, str, bool] | None:
        """The first job without an outcome, waiting for one; None once the desk is closed.

        What the first rank to ask gets as the `turn`-th job of a start of the group, all its ranks get.
        """
        self._begun.add(rank)
        handed = self._handed.setdefault(start, [])
        while len(handed) <= turn:
            number = len(self._outcomes)
            if self._closed:
                handed.append(None)
            elif number in self._stopped:  # while the group was started again
                self._outcomes[number] = {"stopped": True}
            elif number < len(self._jobs) and not (handed and handed[-1] and handed[-1][0] == number):
                handed.append((number, *self._jobs[number]))
            else:
                await asyncio.sleep(0.05)
        return handed[turn]

    async def tell(self, done: float, total: float, note: str) -> None:
        self._progress = (done, total, note)

    async def record(self, number: int, event: dict[str, Any]) -> None:
        self._events.setdefault(number, []).append(event)

    async def settle(self, number: int, outcome: dict[str, Any]) -> None:
        self._outcomes.setdefault(number, outcome)

    async def fail(self, start: str, number: int, rank: int, world: int, outcome: dict[str, Any]) -> bool:
        """As `settle`; whether all ranks have failed alike, so that none waits for another within the job."""
        self._outcomes.setdefault(number, outcome)
        told = self._failed.setdefault((start, number), {})
        told[rank] = outcome["message"]
        deadline = time.monotonic() + AGREE
        while len(told) < world and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return len(told) == world and len(set(told.values())) == 1

    async def allow(self, number: int, step: int) -> None:
        """Ranks of a paced job may go on from their validation at `step`."""
        self._allowed[number] = step

    async def stop(self, number: int) -> None:
        """They go no further than that."""
        self._stopped.add(number)

    async def may_pass(self, number: int, step: int) -> bool:
        """Asked by every rank at a validation. What was allowed comes first: no rank stops where another went on."""
        while self._allowed.get(number, -1) < step:
            if self._closed or number in self._stopped:
                return False
            await asyncio.sleep(0.02)
        return True

    async def look(self, number: int, events_seen: int) -> dict[str, Any]:
        jobs = [job for handed in self._handed.values() for job in handed if job]
        return {
            "progress": self._progress,
            "events": self._events.get(number, [])[events_seen:],
            "outcome": self._outcomes.get(number),
            "ranks": len(self._begun),
            "starts": sum(job[0] == number for job in jobs),
        }


def _serve(config: dict[str, Any]) -> None:
    """What each rank runs: job after job until the desk closes. Ray Train has made the process group."""
    import ray
    import ray.train
    import torch

    redirect(Path(config["log"]))
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    desk, start = config["desk"], _common_name()
    turn = 0
    while (found := ray.get(desk.next_job.remote(start, turn, rank))) is not None:
        turn += 1
        number, text, paced = found
        job = TrainJob.model_validate_json(text)
        try:
            outcome = _train(desk, number, job, paced, rank)
        except (InputError, WorkError, OSError) as error:
            outcome = {"error": type(error).__name__, "message": str(error), "errno": getattr(error, "errno", None)}
            if not ray.get(desk.fail.remote(start, number, rank, world, outcome)):
                raise
        except torch.OutOfMemoryError as error:
            ray.get(desk.settle.remote(number, {"error": "WorkError", "message": str(error).splitlines()[0]}))
            raise
        except Exception as error:
            traceback.print_exc()
            # A broken connection means that another rank is gone: Ray Train starts the group again, which continues.
            if not _is_lost_peer(error):
                message = f"{type(error).__name__} in training {job.folder.name}: {error}"
                ray.get(desk.settle.remote(number, {"error": "BugError", "message": message}))
            raise
        else:
            if rank == 0:
                ray.get(desk.settle.remote(number, outcome))


def _common_name() -> str:
    """A name for this start of the group, the same on all ranks."""
    import torch.distributed as dist

    name = [secrets.token_hex(4)]
    dist.broadcast_object_list(name, src=0)
    return name[0]


def _train(desk: Any, number: int, job: TrainJob, paced: bool, rank: int) -> dict[str, Any]:
    """One job to its end, or as far as its reader lets it go."""
    import ray

    told = 0.0

    def progress(done: float, total: float, note: str) -> None:
        nonlocal told
        if time.monotonic() - told > 0.3 or done == total:
            told = time.monotonic()
            desk.tell.remote(done, total, note)

    with contextlib.closing(validations(job, progress)) as records:
        for record in records:
            if rank == 0:
                ray.get(desk.record.remote(number, record))
            if paced and not ray.get(desk.may_pass.remote(number, record["step"])):
                return {"stopped": True}
    return {"summary": read_json(job.folder / SUMMARY)} if rank == 0 else {}


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
                # A job that loses its processes too often is ended by who waits for it: a group outlives many jobs.
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=3),
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
        number = self._post(job, paced=False)
        for record in self._follow(number, progress):
            events(record)
        return Summary.model_validate(self._look(number, 0)["outcome"]["summary"])

    def validations(self, job: TrainJob) -> Records:
        """As `loop.validations`: a training that its reader may stop, after which the group is there for another.

        Raises:
            InputError, WorkError, OSError: as `train`, and of WorkErrors BugError, StartError and LostError.
        """
        number, last, over = self._post(job, paced=True), -1, False
        try:
            for record in self._follow(number, silent):
                if record["step"] > last:  # else told again by a group that was started again
                    last = record["step"]
                    yield record
                self._ask(self._desk.allow.remote(number, record["step"]))
            over = True
        finally:
            if not over and self._desk is not None:
                self._stop(number)

    def _post(self, job: TrainJob, paced: bool) -> int:
        self._start()
        number: int = self._ask(self._desk.post.remote(job.model_dump_json(), paced))
        return number

    def _look(self, number: int, seen: int) -> dict[str, Any]:
        state: dict[str, Any] = self._ask(self._desk.look.remote(number, seen))
        return state

    def _ask(self, reference: Any) -> Any:
        """The desk's answer. LostError where its machine is gone."""
        import ray
        import ray.exceptions

        try:
            return ray.get(reference)
        except ray.exceptions.RayError as error:
            self.close(patience=0)
            raise LostError(f"The training processes are gone ({type(error).__name__}).") from error

    def _follow(self, number: int, progress: Progress) -> Records:
        """The records of a job as they come, up to its end."""
        import ray

        seen, begun, allowed = 0, time.monotonic(), self._settings.max_failures
        while True:
            state = self._look(number, seen)
            yield from state["events"]
            seen += len(state["events"])
            if state["progress"][1] or state["progress"][2]:
                progress(*state["progress"])
            if state["outcome"] is not None:
                self._check(state["outcome"])
                return
            if state["starts"] > allowed + 1:
                self.close()
                raise WorkError(f"The training lost its processes {allowed + 1} times. The log {self._log} says how.")
            ended, _ = ray.wait([self._fit], timeout=0.1)
            if ended:
                reason = self._end()
                self.close()
                raise LostError(f"The training processes ended: {reason} The log {self._log} has the whole story.")
            if state["ranks"] < self._settings.count and time.monotonic() - begun > self._settings.start_limit:
                self.close(patience=0)
                raise StartError(
                    f"{state['ranks']} of {self._settings.count} training processes started within "
                    f"{self._settings.start_limit} s. Is the cluster busy? Raise start_limit."
                )

    def _stop(self, number: int, patience: float = 60) -> None:
        """Have the ranks leave a paced job at its validation; a group that does not is closed."""
        self._ask(self._desk.stop.remote(number))
        deadline = time.monotonic() + patience
        while self._look(number, 0)["outcome"] is None:
            if time.monotonic() > deadline:
                self.close(patience=0)
                return
            time.sleep(0.05)

    def run_tasks(
        self, factory: Callable[[], Callable[[Task], Result]], tasks: Sequence[Task], progress: Progress = silent
    ) -> list[Result]:
        """`parallel.map_tasks` on the same workers."""
        if self._settings.gpus:
            self.close()  # it holds the GPUs that the tasks need
        return map_tasks(factory, tasks, settings=self._settings, log=self._log, progress=progress)

    def _check(self, outcome: dict[str, Any]) -> None:
        """Raise what the training raised."""
        if "error" not in outcome:
            return
        if outcome["error"] == "InputError":
            raise InputError(outcome["message"])
        if outcome.get("errno"):
            raise OSError(outcome["errno"], outcome["message"])
        kind = BugError if outcome["error"] == "BugError" else WorkError
        raise kind(f"{outcome['message']} The log {self._log} has the whole story.")

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
