"""What the supervisors of all nodes of a Slurm job have in common: what Slurm asks for, a folder, and a clean end.

A supervisor ends only what carries its own mark: other jobs on the same machine, this user's too, are never touched, as
they would be by `ray stop`.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from launch import processes, ray_node
from launch.execute import AGAIN
from launch.job import Request
from launch.meeting import Meeting
from launch.ports import Ports
from launch.ray_node import Seat
from xinv.errors import WorkError

CANCELLED = 130
POLL = 0.2

FAREWELL = 10.0
"""Seconds that a node whose Ray has ended waits for word that the whole job has."""

STALE = 600.0
"""Age in seconds of a folder that a killed supervisor has left, before another job of the user removes it."""


class OverError(Exception):
    """Slurm wants the job to end, with this exit code, before the work has begun."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Wishes:
    """What Slurm, or the job's batch script, has asked for so far."""

    def __init__(self, meeting: Meeting) -> None:
        self._meeting, self._save = meeting, False
        self.end = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_end)
        signal.signal(signal.SIGUSR1, self._on_save)

    @property
    def save(self) -> bool:
        return self._save or self._meeting.save_wanted

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        self.end = True

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True


class Supervisor:
    """One node of one start of a job.

    Args:
        request: of the job.
        seat: this node's place in it.
        parent: where the node's temporary folder is made; local to the machine.
        limit: seconds from here until all nodes must be there.
    """

    def __init__(self, request: Request, seat: Seat, parent: Path, limit: float) -> None:
        self.request, self.seat, self.limit = request, seat, limit
        self.begun = time.monotonic()
        self.meeting = Meeting(request.folder / f"start-{seat.start}").open()
        self.wishes = Wishes(self.meeting)
        self.temporary = seat.temporary(parent)
        self.output = self.temporary / "ray.txt"
        self.ray: subprocess.Popen[bytes] | None = None
        self.reason = ""  # why it failed

    def run(self) -> int:
        """Supervise to the end; returns the exit code of this task."""
        with _own_folder(self.temporary):
            try:
                code = self._outcome()
                # Before the cleaning: all nodes then clean at the same time, in the half minute that Slurm leaves them.
                self.conclude(code)
            finally:
                processes.end(self.seat.mark)
            if code not in (0, AGAIN, CANCELLED):
                ray_node.keep_logs(self.temporary, self.request.folder / f"ray-{self.seat.start}-{self.seat.name}")
        return code

    def _outcome(self) -> int:
        try:
            if problem := ray_node.room_for_sockets(self.temporary):
                raise WorkError(f"{problem} (slurm.tmp of the site file)")
            return self.work()
        except OverError as over:
            return over.code
        except WorkError as error:
            self.reason = str(error)
            self.say(f"error: {error}")
            return 1

    def work(self) -> int:
        """What this node does in the job; returns its exit code."""
        raise NotImplementedError

    def conclude(self, code: int) -> None:
        """Tell the others how it has ended here."""
        raise NotImplementedError

    def say(self, text: str) -> None:
        print(f"{self.seat.name}: {text}", flush=True)

    def start_ray(self, ports: Ports | None, head: str) -> None:
        """Start Ray here: the head with its ports, or a node that joins the head at host:port."""
        memory = ray_node.memory_of(self.request, os.environ)
        line = ray_node.command(self.request, self.seat, self.temporary, memory, ports, head)
        self.ray = ray_node.start(line, self.environment(head), self.output)

    def environment(self, head: str) -> dict[str, str]:
        host = head.rsplit(":", 1)[0]
        return ray_node.environment(self.request, self.seat, self.meeting.token, self.temporary, host)

    @property
    def ray_ended(self) -> bool:
        return self.ray is not None and self.ray.poll() is not None

    def last_words(self) -> str:
        """What Ray said last, for a message; more of it goes to the log."""
        said = ray_node.last_lines(self.output)
        if len(said) > 1:
            self.say("\n".join(["Ray said:", *said]))
        return f"It said: {said[-1]}" if said else "It said nothing."

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """While the job starts: until `condition` holds (True), or the limit is over (False).

        Raises:
            OverError: Slurm wants the job to end (130), or its machines back (AGAIN).
        """
        while not condition():
            if self.wishes.end or self.wishes.save:
                raise OverError(CANCELLED if self.wishes.end else AGAIN)
            if self.spent() > self.limit:
                return False
            time.sleep(POLL)
        return True

    def linger(self, condition: Callable[[], bool]) -> bool:
        """After Ray has ended: whether `condition` comes to hold soon, or Slurm ends everything anyway."""
        deadline = time.monotonic() + FAREWELL
        while not (condition() or self.wishes.end):
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL)
        return True

    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.begun


@contextlib.contextmanager
def _own_folder(folder: Path) -> Iterator[None]:
    """Make a temporary folder, and remove it at the end.

    It is locked for as long as its supervisor lives: what a killed one has left is known by that, and removed by the
    next of the same user.
    """
    for stale in folder.parent.glob(f"xr-{os.getuid()}-*"):
        _remove_stale(stale)
    folder.mkdir(mode=0o700)
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(folder: Path) -> None:
    with contextlib.suppress(OSError):  # locked, another's, or gone by now
        if time.time() - folder.stat().st_mtime > STALE:
            with (folder / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
