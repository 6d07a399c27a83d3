"""A Ray cluster of one node on the loopback interface, as its owner starts it by hand: with a token, on ports of its
own."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marks import marked


@dataclass(frozen=True)
class Head:
    """The cluster."""

    address: str  # http://127.0.0.1:PORT
    client: str  # ray://127.0.0.1:PORT
    token: Path

    def asked(self, endpoint: str) -> Any:
        """What its dashboard says."""
        header = {"Authorization": f"Bearer {self.token.read_text()}"}
        with urllib.request.urlopen(
            urllib.request.Request(self.address + endpoint, headers=header), timeout=30
        ) as found:
            return json.load(found)

    def used(self) -> float:
        """CPUs that actors hold."""
        usage = self.asked("/api/cluster_status")["data"]["clusterStatus"]["loadMetricsReport"]["usage"]
        return float(usage["CPU"][0])


@contextlib.contextmanager
def ray_head(cpus: int = 2) -> Iterator[Head]:
    """Start it, and end it with all that ran on it."""
    folder = Path(tempfile.mkdtemp(prefix="xrh-", dir="/tmp"))  # short: it will hold sockets
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    gcs, dashboard, client, agent = free_ports(4)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH", "XINV"))}
    mark = f"XINV_RAY_HEAD={folder}"
    environment = {
        **kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "XINV_RAY_HEAD": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "SPT_NOENV": "1",
    }  # fmt: skip
    command = [
        Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--disable-usage-stats", f"--port={gcs}",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", f"--num-cpus={cpus}",
        f"--object-store-memory={100 << 20}", f"--temp-dir={folder / 'ray'}", "--min-worker-port=0",
        "--max-worker-port=0",
    ]  # fmt: skip
    try:
        with (folder / "out").open("ab") as sink:
            subprocess.Popen(
                command, env=environment, cwd=folder, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        head = Head(f"http://127.0.0.1:{dashboard}", f"ray://127.0.0.1:{client}", token)
        _wait(head, folder / "out")
        yield head
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            _end(mark, number)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait(head: Head, output: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
            head.used()
            if head.asked("/api/v0/nodes")["data"]["result"]["total"] == 1:
                return
        time.sleep(0.3)
    raise RuntimeError(f"Ray did not start within {seconds:.0f} s: {output.read_text()[-1500:]}")


def _end(mark: str, number: int, seconds: float = 10) -> None:
    """Signal whatever has `mark` in its environment, and wait."""
    deadline = time.monotonic() + seconds
    while (found := marked(mark)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(0.2)
