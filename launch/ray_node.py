"""Ray on one machine of a job: where it listens, what it offers, and the environment that its processes get."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.job import Request
from launch.ports import Ports
from launch.processes import MARK, READABLE
from xinv.errors import WorkError
from xinv.interface import interface_of
from xinv.parallel import IN_WORKERS

MIB = 2**20
OBJECT_STORE = 1024 * MIB
"""Bytes for Ray's objects at most: xinv passes files by their paths, and only small values through Ray."""

START_HOOK = "launch.ray_node.without_client_server"

SOCKET_LIMIT, LONGEST_SOCKET = 107, len("/session_2026-01-01_00-00-00_000000_0000000/sockets/dash_MetricsHead")
"""Bytes that the path of a unix socket may have, and what Ray puts behind its temporary folder."""


@dataclass(frozen=True)
class Seat:
    """This machine's place in the job, as Slurm tells it to each task."""

    job: int
    start: int  # how often the job was put back into the queue
    rank: int  # 0: the head
    name: str
    addresses: Mapping[str, str]  # of every node, by its name

    @property
    def mark(self) -> str:
        return f"{self.job}.{self.start}.{self.rank}"

    @property
    def address(self) -> str:
        return self.addresses[self.name]

    def temporary(self, parent: Path) -> Path:
        """A folder for this start of the job on this machine: short, because paths of sockets are."""
        return parent / f"xr-{os.getuid()}-{self.job}-{self.start}-{self.rank}"


def seat_of(variables: Mapping[str, str]) -> Seat:
    """The seat, from the variables that Slurm and the batch script (XINV_NODES: name=address,...) set.

    Raises:
        WorkError: this was not started by the batch script; or a node's address cannot be found.
    """
    try:
        pairs = [pair.split("=", 1) for pair in variables["XINV_NODES"].split(",")]
        return Seat(
            job=int(variables["SLURM_JOB_ID"]),
            start=int(variables.get("SLURM_RESTART_COUNT") or 0),
            rank=int(variables["SLURM_PROCID"]),
            name=variables["SLURMD_NODENAME"],
            addresses={name: _resolved(name, address) for name, address in pairs},
        )
    except KeyError as error:
        raise WorkError(f"{error} is not set: this program is started by a job's batch script alone.") from None


def _resolved(name: str, address: str) -> str:
    try:
        return str(socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise WorkError(
            f"Slurm says that node {name} is at {address}, which does not resolve here ({error.strerror})."
        ) from None


def room_for_sockets(temporary: Path) -> str | None:
    """Why Ray's sockets do not fit below this folder, or None."""
    length = len(str(temporary)) + LONGEST_SOCKET
    if length <= SOCKET_LIMIT:
        return None
    return (
        f"Ray's sockets below {temporary} would have paths of {length} characters, and unix allows {SOCKET_LIMIT}. "
        f"Name a folder that is {length - SOCKET_LIMIT} characters shorter."
    )


def environment(request: Request, seat: Seat, token: Path, temporary: Path, head: str) -> dict[str, str]:
    """What Ray's processes, and through them the work, get for their environment.

    RAY_* of the shell that submitted the job is dropped: it belongs to another cluster. What the site file says stays.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    interface = _interface(head)
    return {
        **kept,
        **({"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}),
        **request.environment,
        **READABLE,
        MARK: seat.mark,
        "TMPDIR": str(temporary),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_START_HOOK": START_HOOK,
        **IN_WORKERS,
    }


def _interface(head: str) -> str | None:
    """The network interface by which this machine reaches the head; the head's own is the one that has its address."""
    family = socket.AF_INET6 if ":" in head else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((head, 9))  # sends nothing: the system only looks for a route
        except OSError:
            return None
        own = probe.getsockname()[0]
    return interface_of(own)


def command(
    request: Request, seat: Seat, temporary: Path, memory: int | None, ports: Ports | None, address: str | None
) -> list[str]:
    """The command line of Ray on this machine: of the head with its ports, else of a node that joins `address`.

    What it offers is what the job was given, not what the machine has.
    """
    where = ["--head", "--include-dashboard=true"] if ports else [f"--address={address}"]
    if ports:
        where += [f"--port={ports.gcs}", f"--dashboard-host={seat.address}", f"--dashboard-port={ports.dashboard}"]
        where += [f"--ray-client-server-port={ports.client}"]  # taken back by START_HOOK
    offers = [f"--num-cpus={request.shape.cpus}", f"--num-gpus={request.shape.gpus}"]
    if memory is not None:
        store = max(80 * MIB, min(OBJECT_STORE, memory * 3 // 10))
        offers += [f"--memory={max(MIB, memory - store)}", f"--object-store-memory={store}"]
    return [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *where, f"--node-ip-address={seat.address}",
        f"--node-name={seat.name}", "--node-manager-port=0", "--object-manager-port=0", "--min-worker-port=0",
        "--max-worker-port=0", "--dashboard-agent-listen-port=0", "--disable-usage-stats", *offers,
        f"--temp-dir={temporary}", "--log-style=record", "--log-color=false",
    ]  # fmt: skip


def without_client_server(parameters: Any, head: bool) -> None:
    """Called by `ray start` with what it has read from its command line (RAY_START_HOOK).

    A head starts a server for ray:// clients, which no option turns off. Nobody uses it here, and it takes the head
    with it where a busy machine makes it late.
    """
    parameters.ray_client_server_port = None


def memory_of(request: Request, variables: Mapping[str, str]) -> int | None:
    """Bytes of memory that the job has on this machine; None where Slurm does not limit it."""
    if request.shape.memory is not None:
        return request.shape.memory
    if found := variables.get("SLURM_MEM_PER_NODE"):
        return int(found) * MIB
    if found := variables.get("SLURM_MEM_PER_CPU"):
        return int(found) * MIB * int(variables.get("SLURM_CPUS_ON_NODE") or request.shape.cpus)
    return None


def start(line: list[str], variables: dict[str, str], output: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a program that does not hear SIGUSR1 until it wants to: Ray's would end by it."""
    sink = output.open("ab") if output else None
    try:
        return subprocess.Popen(
            line,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
        )
    finally:
        if sink:
            sink.close()


def alive(host: str, port: int, token: str) -> Counter[str]:
    """Addresses of the nodes that the cluster counts as alive; nothing while its dashboard does not answer."""
    query = urllib.request.Request(
        f"http://{host}:{port}/api/v0/nodes?limit=10000", headers={"Authorization": f"Bearer {token}"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by the site's proxy
    try:
        with opener.open(query, timeout=5) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
    except (OSError, ValueError, KeyError, TypeError):
        return Counter()
    return Counter(node["node_ip"] for node in nodes if node["state"] == "ALIVE")


def last_lines(output: Path, lines: int = 12) -> list[str]:
    """The end of what Ray printed."""
    found = output.read_text(errors="replace").strip().splitlines() if output.exists() else []
    return found[-lines:]


def keep_logs(temporary: Path, target: Path) -> None:
    """Copy Ray's own logs (files of up to a MiB) to where they outlive the job."""
    logs = temporary / "session_latest" / "logs"
    if logs.is_dir():
        files = [path for path in logs.glob("*") if path.is_file() and 0 < path.stat().st_size <= MIB]
        target.mkdir(mode=0o700, exist_ok=True)
        for path in files:
            shutil.copyfile(path, target / path.name)
