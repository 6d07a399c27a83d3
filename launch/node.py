"""What Slurm starts once on every node of a job: `python -m launch.node FOLDER`.

The first one starts the head of a Ray cluster, waits for the nodes of the others, runs the work (`launch.execute`) and
ends with its exit code. The others join, and end when the first has.
"""

import argparse
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from launch import processes, ray_node
from launch.execute import AGAIN
from launch.job import REQUEST, RESULT, read_request, write_result
from launch.ports import Ports, free_ports, listens
from launch.ray_node import seat_of
from launch.supervisor import CANCELLED, POLL, Supervisor
from xinv.errors import InputError, WorkError
from xinv.files import write_atomic

GRACE = 15.0
"""Seconds that the work has to end when the job is cancelled: Slurm kills everything 30 s after it has asked."""

STARTS = 3
"""How often Ray is started on a node: its ports may be taken between the look at them and the start; or it ends."""

REPEAT = 5.0
"""Seconds after which the work is told again to save: it may not have listened yet."""


class Head(Supervisor):
    """The node that has the cluster's head and the work."""

    def work(self) -> int:
        (self.request.folder / RESULT).unlink(missing_ok=True)
        write_atomic(self.meeting.token, secrets.token_hex(32))
        self.meeting.token.chmod(0o600)
        address = self._cluster()
        self.say(f"Ray at {address} has its {len(self.seat.addresses)} nodes after {self.spent():.0f} s")
        line = [sys.executable, "-u", "-m", "launch.execute", str(self.request.folder), "--address", address]
        return self._follow(ray_node.start(line, self.environment(address)))

    def _cluster(self) -> str:
        """Start Ray and wait for all nodes; returns the address of the cluster."""
        for start in range(1, STARTS + 1):
            ports = self._start_head()
            if self._await_nodes(ports):
                return f"{self.seat.address}:{ports.gcs}"
            processes.end(self.seat.mark)
            if start < STARTS:
                self.say(f"Ray ended again, and is started once more. {self.last_words()}")
        raise WorkError(f"Ray ended {STARTS} times before all nodes were there. {self.last_words()}")

    def _start_head(self) -> Ports:
        """Ray's head, on ports that nobody else has. Should another take one just then, on the next ones."""
        passed = 0
        for _ in range(STARTS):
            ports = free_ports(self.seat.job, self.seat.address, after=passed)
            if self._listens_at(ports):
                return ports
            if not self.ray_ended:
                raise WorkError(f"Ray did not start within {self.limit:.0f} s. {self.last_words()}")
            if free_ports(self.seat.job, self.seat.address, after=passed) == ports:
                break  # it was not for the ports
            passed = ports.slot + 1 - self.seat.job
        raise WorkError(f"Ray did not start. {self.last_words()}")

    def _listens_at(self, ports: Ports) -> bool:
        """Start Ray's head; whether it is there, which the other nodes are told."""
        address = f"{self.seat.address}:{ports.gcs}"
        self.start_ray(ports, address)
        self.wait_for(lambda: self.ray_ended or listens(self.seat.address, ports.gcs))
        there = not self.ray_ended and listens(self.seat.address, ports.gcs)
        if there:
            self.meeting.tell_head(address)
        return there

    def _await_nodes(self, ports: Ports) -> bool:
        """Wait for all nodes; False where Ray has ended meanwhile.

        Raises:
            WorkError: not all nodes are there in time; with their names and what they said.
        """
        token = self.meeting.token.read_text()
        wanted, seen = Counter(self.seat.addresses.values()), Counter[str]()

        def settled() -> bool:
            nonlocal seen
            seen = ray_node.alive(self.seat.address, ports.dashboard, token)
            return seen >= wanted or bool(self.meeting.failed()) or self.ray_ended

        self.wait_for(settled)
        if seen >= wanted or self.ray_ended:
            return not self.ray_ended
        if failed := self.meeting.failed():
            raise WorkError("; ".join(f"{name} could not join: {reason}" for name, reason in failed.items()))
        late = [f"{name} ({address})" for name, address in self.seat.addresses.items() if not seen[address]]
        raise WorkError(
            f"{', '.join(late)} did not join the Ray cluster within {self.limit:.0f} s (slurm.start_limit of the site "
            f"file); {sum(seen.values())} of {sum(wanted.values())} nodes are there. Is the machine up (`sinfo -N`), "
            f"and does it reach {self.seat.address} at any port?"
        )

    def _follow(self, work: subprocess.Popen[bytes]) -> int:
        """Wait for the work, handing on to it what Slurm asks for; returns its exit code."""
        asked: float | None = None
        saved = 0.0
        while work.poll() is None:
            now = time.monotonic()
            if self.wishes.end and asked is None:
                asked = now
                work.terminate()
            elif asked is not None and now - asked > GRACE:
                work.kill()
            elif asked is None and self.wishes.save and now - saved > REPEAT:
                saved = now
                work.send_signal(signal.SIGUSR1)
            elif asked is None and self.ray_ended and not self.linger(lambda: work.poll() is not None):
                raise WorkError(f"Ray ended under the work. {self.last_words()}")
            time.sleep(POLL)
        if work.returncode >= 0:
            return work.returncode
        if asked is not None:
            return CANCELLED
        self.reason = f"the work was ended by {signal.Signals(-work.returncode).name}; out of memory?"
        self.say(f"error: {self.reason}")
        return 128 - work.returncode

    def conclude(self, code: int) -> None:
        """Also to whoever asks later, where the work has not said so itself."""
        try:
            if code != AGAIN and not (self.request.folder / RESULT).exists():
                write_result(self.request.folder, code, self.reason, cancelled=code == CANCELLED)
        finally:
            self.meeting.tell_ended(code)


class Member(Supervisor):
    """Any other node."""

    def work(self) -> int:
        if not self.wait_for(lambda: self.meeting.head() is not None or self._over()):
            raise WorkError(f"No head of a Ray cluster showed itself within {self.limit:.0f} s.")
        if not self._over():
            self._serve()
        self.say("leaves: the job is over")
        return 0

    def _serve(self) -> None:
        """Be in the head's cluster until the job is over. Ray that ends before is started again: it gives up where it
        has not registered within half a minute, and a busy machine may take longer; or the system has killed it. Also
        where the head has started another cluster.

        Raises:
            WorkError: it has ended `STARTS` times.
        """
        for start in range(1, STARTS + 1):
            head = self.meeting.head()
            assert head is not None, "waited for before"
            self.start_ray(None, head)
            while not (self._over() or self.wishes.end or self.ray_ended or self.meeting.head() != head):
                time.sleep(POLL)
            if self.meeting.head() == head and (not self.ray_ended or self.linger(self._over)):
                return
            processes.end(self.seat.mark)
            if start < STARTS:
                self.say(f"Ray ended here, and is started again. {self.last_words()}")
        raise WorkError(f"Ray ended here {STARTS} times. {self.last_words()}")

    def _over(self) -> bool:
        return self.meeting.ended() is not None

    def conclude(self, code: int) -> None:
        if self.reason:
            self.meeting.tell_failed(self.seat.name, self.reason)


def main(arguments: list[str] | None = None) -> int:
    """Supervise this node of the job; returns the exit code of the task."""
    parser = argparse.ArgumentParser(prog="python -m launch.node", description="Supervise one node of a Slurm job.")
    parser.add_argument("folder", type=Path, help=f"the job's folder, which holds {REQUEST}")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds within which all nodes must be there")
    parser.add_argument("--tmp", type=Path, default=Path("/tmp"), help="local folder for Ray's sockets and logs")
    asked = parser.parse_args(arguments)
    try:
        seat = seat_of(os.environ)
        request = read_request(asked.folder / REQUEST)
        kind = Head if seat.rank == 0 else Member
        return kind(request, seat, asked.tmp, asked.limit).run()
    except (InputError, WorkError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, InputError) else 1


if __name__ == "__main__":
    sys.exit(main())
