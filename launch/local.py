"""This machine: the job is a process in the background, which goes on when the terminal is closed."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from launch.job import LOG, Job, Request, State, Status, result_of, write_request
from launch.log import tail
from launch.work import GIB
from xinv.errors import InputError, WorkError

GRACE = 60.0
"""Seconds that a cancelled job has to end by itself."""


class Local:
    """The backend."""

    def check(self, request: Request) -> list[str]:
        shape, cores = request.shape, os.cpu_count() or 1
        cards = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
        memory = psutil.virtual_memory().total / GIB
        if shape.nodes > 1:
            raise InputError(
                f"--nodes is {shape.nodes}, and this is one machine. Leave it out, or choose another place."
            )
        for option, value in (("--time", request.seconds), ("--partition", request.partition)):
            if value is not None:
                raise InputError(f"{option} means nothing on this machine, which has no queue. Leave it out.")
        if shape.gpus > cards:
            raise InputError(
                f"The job asks for {shape.gpus} GPUs, and this machine has {cards}. Lower --gpus-per-node or "
                "workers.count; workers.gpus=0 trains on CPUs."
            )
        if shape.cpus > cores:
            raise InputError(
                f"The job asks for {shape.cpus} CPUs, and this machine has {cores}. Lower workers.count, workers.cpus "
                "or --cpus-per-node."
            )
        asked = (shape.memory or 0) / GIB
        if asked > memory:
            raise InputError(f"The job asks for {asked:g} GiB of memory, and this machine has {memory:.1f}.")
        return [f"this machine has {cores} CPUs, {cards} GPUs, {memory:.1f} GiB"]

    def render(self, request: Request) -> str:
        """The command, and the environment that is set for it."""
        lines = [f"{name}={value} \\" for name, value in request.environment.items()]
        return "\n".join([*lines, " ".join(self._command(request))])

    def _command(self, request: Request) -> list[str]:
        return [request.python, "-m", "launch.execute", str(request.folder)]

    def send(self, request: Request) -> str:
        write_request(request)
        path = request.folder / LOG
        with path.open("ab") as log:
            path.chmod(0o600)
            process = subprocess.Popen(
                self._command(request),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=request.cwd,
                env={**os.environ, **request.environment},
                start_new_session=True,
            )
        return _name(psutil.Process(process.pid))

    def find(self, job: Job) -> str | None:
        for process in psutil.process_iter():
            try:
                line = [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
                if str(job.request.folder) in line and "launch.execute" in line:
                    return _name(process)
            except psutil.Error:
                continue
        # It may be over by now: its result then says so.
        return "gone" if result_of(job.request.folder) else None

    def status(self, job: Job) -> Status:
        running = _process(job) is not None  # looked at first: a result may come between the two
        ended = result_of(job.request.folder)
        if ended is not None:
            return ended
        if running:
            return Status(state=State.running)
        return Status(
            state=State.failed, detail="its process is gone and has left no result: killed, or the machine went down"
        )

    def logs(self, job: Job, follow: bool) -> Iterator[str]:
        return tail(job.request.folder / LOG, lambda: follow and not self.status(job).state.over)

    def cancel(self, job: Job) -> None:
        process = _process(job)
        if process is None:
            return
        process.terminate()
        deadline = time.monotonic() + GRACE
        while _process(job) is not None and time.monotonic() < deadline:
            time.sleep(0.1)
        if _process(job) is not None:
            raise WorkError(
                f"{job.handle} (process {process.pid}) does not end. `kill -9 {process.pid}` ends it; what it has "
                "finished is kept."
            )


def _name(process: psutil.Process) -> str:
    """A process's number, and when it began: numbers are given again."""
    return f"{process.pid}@{process.create_time():.2f}"


def _process(job: Job) -> psutil.Process | None:
    """The job's process while it lives."""
    number, _, begun = (job.ident or "").partition("@")
    if not begun:
        return None
    try:
        process = psutil.Process(int(number))
        alive = f"{process.create_time():.2f}" == begun and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None
    return process if alive else None
