"""The supervisor of a Slurm node in a process of its own, with stand-ins for Ray and for the work, and real signals."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from audits import ROOT
from jobs import request_for

from launch import processes
from launch.job import RESULT, Request, write_request
from launch.ray_node import command, environment, memory_of, room_for_sockets, seat_of
from launch.work import Shape
from xinv.errors import WorkError

JOB = 10**9 + os.getpid()
"""No Slurm job of this machine has this number."""

RAY = """
import os, signal, socket, subprocess, sys, time
os.kill(os.getpid(), signal.SIGUSR1)  # a Ray that hears this signal would end by it
if "dies" in sys.argv[1]: sys.exit("no such head")
once = os.environ["TMPDIR"] + "/once"
if "once" in sys.argv[1] and not os.path.exists(once):
    open(once, "w").close()
    listener = socket.create_server(("127.0.0.1", int(sys.argv[2])))
    time.sleep(1)
    sys.exit("too late")
subprocess.Popen(["sleep", "600"], start_new_session=True)
if (port := int(sys.argv[2])):
    listener = socket.socket()
    listener.bind(("127.0.0.1", port))
    listener.listen()
print("ray is up", flush=True)
time.sleep(600)
"""
WORK = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
subprocess.Popen(["sleep", "600"], start_new_session=True)
open(os.environ["TMPDIR"] + "/working", "w").close()
if sys.argv[1] == "waits": time.sleep(600)
if sys.argv[1] == "killed": os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(sys.argv[1]))
"""
SUPERVISOR = """
import sys
from collections import Counter
from launch import node, ray_node, supervisor

ray, work, there = sys.argv.pop(), sys.argv.pop(), sys.argv.pop()
supervisor.FAREWELL = 1.0
real = ray_node.start
def start(line, variables, output=None):
    if "launch.execute" in line:
        line = [sys.executable, "-c", {work!r}, work]
    return real(line, variables, output)
def command(request, seat, temporary, memory, ports, head):
    return [sys.executable, "-c", {ray!r}, ray, str(ports.gcs if ports else 0)]
ray_node.start, ray_node.command = start, command
ray_node.alive = lambda *_: Counter(there.split(","))
sys.exit(node.main(sys.argv[1:]))
"""


class Node:
    """A supervisor that is running, of node `rank` of a job of two."""

    def __init__(
        self,
        request: Request,
        parent: Path,
        rank: int = 0,
        work: str = "0",
        ray: str = "",
        there: str = "",
        limit: int = 6,
    ) -> None:
        self.request = request
        self.temporary = parent / f"xr-{os.getuid()}-{JOB}-0-{rank}"
        variables = {
            "SLURM_JOB_ID": str(JOB), "SLURM_PROCID": str(rank), "SLURMD_NODENAME": f"n{rank + 1}",
            "XINV_NODES": "n1=127.0.0.1,n2=127.0.0.2", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        script = textwrap.dedent(SUPERVISOR).format(work=WORK, ray=RAY)
        arguments = [str(request.folder), "--tmp", str(parent), "--limit", str(limit)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments, there or "127.0.0.1,127.0.0.2", work, ray],
            env={**os.environ, **variables}, stdout=-1, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.mark = f"{JOB}.0.{rank}"

    @property
    def meeting(self) -> Path:
        return self.request.folder / "start-0"

    def ended(self) -> tuple[int, str]:
        """Its exit code, and what it printed. Nothing of it is left then."""
        said, _ = self.process.communicate(timeout=40)
        assert processes.marked(self.mark) == [] and not self.temporary.exists()
        return self.process.returncode, said

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.request.folder / RESULT).read_text())
        return found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def start(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Node]]:
    request = request_for(tmp_path / "runs", nodes=2, cpus_per_node=1)
    write_request(request)
    parent = Path(f"/tmp/xt{os.getpid()}")
    parent.mkdir()
    started: list[Node] = []

    def begin(**settings: Any) -> Node:
        started.append(Node(request, parent, **settings))
        return started[-1]

    yield begin
    for node in started:
        node.process.kill()
        node.process.wait()
        processes.end(node.mark)
    for left in parent.glob("*/*"):
        left.unlink()
    for left in parent.glob("*"):
        left.rmdir()
    parent.rmdir()


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_head_ends_with_the_exit_code_of_the_work(start: Callable[..., Node], code: int) -> None:
    head = start(work=str(code))
    assert head.ended()[0] == code and head.result()["exit_code"] == code
    assert (head.meeting / "ended").read_text() == f"{code}\n", "for the batch script, and for the other nodes"


def test_a_job_that_is_cancelled_ends_in_time_and_says_so(start: Callable[..., Node]) -> None:
    head = start(work="waits")
    until((head.temporary / "working").exists)
    head.process.send_signal(signal.SIGTERM)
    assert head.ended()[0] == 130
    assert (head.result()["exit_code"], head.result()["cancelled"]) == (130, True)


def test_a_file_makes_the_work_save_and_leaves_no_result(start: Callable[..., Node]) -> None:
    head = start(work="waits")
    until((head.temporary / "working").exists)
    (head.meeting / "save").touch()
    assert head.ended()[0] == 75
    assert not (head.request.folder / RESULT).exists()


def test_work_that_was_killed_is_a_failure_with_a_reason(start: Callable[..., Node]) -> None:
    head = start(work="killed")
    code, said = head.ended()
    assert code == 137 and "SIGKILL" in said and "SIGKILL" in head.result()["reason"]


def test_a_node_that_does_not_come_is_named(start: Callable[..., Node]) -> None:
    head = start(there="127.0.0.1")
    code, said = head.ended()
    assert code == 1
    assert "n2 (127.0.0.2) did not join the Ray cluster within 6 s" in said
    assert "1 of 2 nodes are there" in head.result()["reason"]


def test_a_node_that_cannot_join_ends_the_start_with_its_own_words(start: Callable[..., Node]) -> None:
    head = start(there="127.0.0.1", limit=30)
    member = start(rank=1, ray="dies")
    code, said = head.ended()
    assert code == 1 and "n2 could not join: Ray ended here 3 times. It said: no such head" in said
    assert member.ended()[0] == 1


def test_a_member_ends_with_the_head_and_without_a_fault(start: Callable[..., Node]) -> None:
    member = start(rank=1)
    head = start(work="1")
    assert head.ended()[0] == 1
    code, said = member.ended()
    assert code == 0 and "n2: leaves: the job is over" in said


def test_a_head_that_ends_again_is_started_once_more(start: Callable[..., Node]) -> None:
    head = start(ray="once", there="unseen", limit=4)
    code, said = head.ended()
    assert code == 1 and "Ray ended again, and is started once more. It said: too late" in said
    assert "did not join" in said, "the second one stayed"


def test_ray_that_was_killed_on_a_member_is_started_again(start: Callable[..., Node]) -> None:
    member = start(rank=1)
    head = start(work="waits")
    until((head.temporary / "working").exists)
    until(lambda: len(processes.marked(member.mark)) == 2)
    first = {process.pid for process in processes.marked(member.mark)}
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len({process.pid for process in processes.marked(member.mark)} - first) == 2)
    head.process.send_signal(signal.SIGTERM)
    assert head.ended()[0] == 130
    code, said = member.ended()
    assert code == 0 and "is started again" in said


def test_ray_that_does_not_start_is_said(start: Callable[..., Node]) -> None:
    code, said = start(ray="dies").ended()
    assert code == 1 and "Ray did not start. It said: no such head" in said


# ------------------------------------------------------------------------------------------------- without a process


SLURM = {"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": "2", "SLURM_PROCID": "1", "SLURMD_NODENAME": "n2",
         "XINV_NODES": "n1=10.77.0.1,n2=10.77.0.2"}  # fmt: skip


def test_the_seat_is_what_slurm_says() -> None:
    seat = seat_of(SLURM)
    assert (seat.mark, seat.address) == ("4711.2.1", "10.77.0.2")
    assert seat_of({**SLURM, "SLURM_RESTART_COUNT": ""}).start == 0
    with pytest.raises(WorkError, match="XINV_NODES"):
        seat_of({})
    with pytest.raises(WorkError, match=r"node n1 is at no\.such\.host\.invalid, which does not resolve here"):
        seat_of({**SLURM, "XINV_NODES": "n1=no.such.host.invalid"})


def test_rays_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    request = request_for(tmp_path).model_copy(update={"environment": {"NCCL_SOCKET_IFNAME": "ib0", "RAY_X": "1"}})
    found = environment(request, seat_of(SLURM), tmp_path / "token", tmp_path, "127.0.0.1")
    assert "RAY_ADDRESS" not in found, "another cluster's"
    assert (found["RAY_X"], found["NCCL_SOCKET_IFNAME"], found["OMP_PROC_BIND"]) == ("1", "ib0", "true")
    assert found["GLOO_SOCKET_IFNAME"] == "lo"
    assert (found["RAY_AUTH_MODE"], found["RAY_AUTH_TOKEN_PATH"]) == ("token", str(tmp_path / "token"))
    assert found[processes.MARK] == "4711.2.1"


def test_ray_offers_what_the_job_was_given(tmp_path: Path) -> None:
    request = request_for(tmp_path).model_copy(update={"shape": Shape(nodes=2, cpus=6, gpus=3)})
    memory = memory_of(request, {"SLURM_MEM_PER_NODE": "8000"})
    line = command(request, seat_of(SLURM), tmp_path, memory, None, "10.77.0.1:20000")
    assert {"--num-cpus=6", "--num-gpus=3", "--address=10.77.0.1:20000", "--node-ip-address=10.77.0.2"} <= set(line)
    given = dict(option.split("=", 1) for option in line if "=" in option)
    assert int(given["--memory"]) + int(given["--object-store-memory"]) == 8000 * 2**20
    assert memory_of(request, {"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "8"}) == 4000 * 2**20
    assert memory_of(request, {}) is None


def test_sockets_need_a_short_folder() -> None:
    assert room_for_sockets(Path("/tmp/xr-1000-12345678-10-1000")) is None
    problem = room_for_sockets(Path("/scratch/ada/tmp/xr-1000-12345678-10-1000"))
    assert problem is not None and "unix allows 107" in problem
