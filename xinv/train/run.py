"""Training on a group of processes placed by Ray Train, one group for all the trainings of an audit.

Starting a group costs 10 to 45 seconds (processes, imports, process group, DeepSpeed's first engine). So the group asks
a desk, a small actor, for one job after another, and runs each with the plain `loop.validations`, which keeps its own
checkpoints. When a process or machine is lost, Ray Train starts the group again and the job at hand continues from its
checkpoint.

A job may be paced: after every validation its ranks wait for word whether to go on, all at the same one. Where the
machine is wanted back (`Preempted`), the ranks save what they have at their next step.
"""

import contextlib
import secrets
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from xinv.errors import InputError, Preempted, WorkError
from xinv.files import read_json
from xinv.parallel import WorkerSettings, connect, here, redirect
from xinv.pool import map_tasks
from xinv.progress import Progress, silent
from xinv.train.desk import Desk
from xinv.train.loop import SUMMARY, Events, HaltedError, Records, Summary, TrainJob, validations

Task = TypeVar("Task")
Result = TypeVar("Result")

LOOK_EVERY = 0.5
"""Seconds after which progress is asked for again, where nothing else has happened."""

SAVE_WITHIN = 90.0
"""Seconds that a training has for its checkpoint when the machine is wanted back."""


class StartError(WorkError):
    """The group could not start."""


class LostError(WorkError):
    """The group was there, and is gone; another one could continue."""


class BugError(WorkError):
    """What nobody foresaw ended a job."""


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

    told, answer = 0.0, None

    def progress(done: float, total: float, note: str) -> None:
        nonlocal told, answer
        if time.monotonic() - told > 0.3 or done == total:
            told = time.monotonic()
            answer = desk.tell.remote(done, total, note)

    def halt() -> bool:
        nonlocal answer
        if answer is None or not ray.wait([answer], timeout=0)[0]:
            return False
        wanted, answer = bool(ray.get(answer)), None
        return wanted

    try:
        with contextlib.closing(validations(job, progress, halt)) as records:
            for record in records:
                if rank == 0:
                    ray.get(desk.record.remote(number, record))
                if paced and not ray.get(desk.may_pass.remote(number, record["step"])):
                    return {"stopped": True}
    except HaltedError:
        return {"stopped": True}
    return {"summary": read_json(job.folder / SUMMARY)} if rank == 0 else {}


def _is_lost_peer(error: Exception) -> bool:
    text = str(error)
    return any(
        sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
    )


def reason_of(error: Exception) -> str:
    """Why Ray ended the training processes, in a line."""
    text = str(error).strip()
    if "out of memory" in text.lower() or "OutOfMemory" in type(error).__name__:
        return (
            "a machine's memory was full, and Ray ended one of them. Lower micro_batch or workers.count, or leave the "
            "machine to this work alone; `xinv plan` says what each training takes."
        )
    lines = text.splitlines()
    return lines[-1] if lines else type(error).__name__


class _Fitter:
    """An actor that makes Ray Train's blocking call. Not a thread of the audit: Ray ends a process in which some thread
    still waits for it after `ray.shutdown`, and a blocked thread cannot be stopped. An actor can be killed."""

    def fit(self, desk: Any, settings: WorkerSettings, folder: str, log: str) -> None:
        """Start the group and return when its ranks have ended."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from xinv.train.links import Links

        redirect(Path(log))
        TorchTrainer(
            _serve,
            train_loop_config={"desk": desk, "log": log, "threads": settings.cpus},
            torch_config=Links(backend="nccl" if settings.gpus else "gloo", timeout_s=600),
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


def desk_for(ranks: int) -> Any:
    """A desk, on this machine, at which so many ranks may wait and the audit still be heard."""
    import ray

    return ray.remote(num_cpus=0, max_concurrency=ranks + 64, scheduling_strategy=here())(Desk).remote()


class TrainingGroup:
    """`workers.count` ranks under Ray Train, started at the first job. Use as a context manager."""

    def __init__(self, settings: WorkerSettings, folder: Path, log: Path) -> None:
        self._settings, self._folder, self._log = settings, folder, log
        self._desk: Any = None
        self._fitter: Any = None
        self._fit: Any = None
        self._posted = 0

    def __enter__(self) -> "TrainingGroup":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and issubclass(kind, Preempted):
            self._halt()
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
        return Summary.model_validate(self._look(number, 0, patience=0)["outcome"]["summary"])

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
        self._posted = self._ask(self._desk.post.remote(job.model_dump_json(), paced))
        return self._posted

    def _look(self, number: int, seen: int, patience: float) -> dict[str, Any]:
        state: dict[str, Any] = self._ask(self._desk.look.remote(number, seen, patience))
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
            state = self._look(number, seen, LOOK_EVERY)
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
            ended, _ = ray.wait([self._fit], timeout=0)
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
        if not self._ask(self._desk.ended.remote(number, patience)):
            self.close(patience=0)

    def _halt(self) -> None:
        """Have the ranks save the training under way, if there is one."""
        import ray

        if self._fit is None:
            return
        with contextlib.suppress(LostError):
            self._ask(self._desk.halt.remote())
            # Ranks that have no job end at once.
            ray.wait([self._desk.ended.remote(self._posted, SAVE_WITHIN), self._fit], timeout=SAVE_WITHIN)

    def run_tasks(
        self,
        factory: Callable[[], Callable[[Task], Result]],
        tasks: Sequence[Task],
        progress: Progress = silent,
        light: bool = False,
    ) -> list[Result]:
        """`pool.map_tasks` on the same workers."""
        settings = self._settings
        connect(settings)
        if light:
            settings = settings.model_copy(update={"cpus": 1, "gpus": 0})
        elif settings.gpus:
            self.close()  # it holds the GPUs that the tasks need
        return map_tasks(factory, tasks, settings=settings, log=self._log, progress=progress)

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

        # Ray Train's own actors follow the fitter: of all of the group, only ranks are on other machines.
        self._desk = desk_for(self._settings.count)
        self._fitter = ray.remote(num_cpus=0, scheduling_strategy=here())(_Fitter).remote()
        folder, log = str(self._folder.resolve()), str(self._log.resolve())
        self._fit = self._fitter.fit.remote(self._desk, self._settings, folder, log)

    def _end(self) -> str:
        """Why the group ended, in a line."""
        import ray
        import ray.exceptions

        try:
            ray.get(self._fit)
        except ray.exceptions.RayError as error:
            return reason_of(error)
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
