"""What a Ray cluster offers, against what a job asks for."""

from dataclasses import dataclass
from typing import Any

from launch.job import Request
from launch.ray_client import asked
from launch.work import GIB
from xinv.errors import InputError


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    address: str
    cpus: float
    gpus: float
    memory: float  # bytes

    def words(self) -> str:
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.address} with {self.cpus:g} CPUs{gpus}, {self.memory / GIB:.1f} GiB"


@dataclass(frozen=True)
class Group:
    """The most processes that the job trains in at once."""

    count: int
    cpus: int
    gpus: int

    def words(self) -> str:
        each = f"{self.cpus} {'CPU' if self.cpus == 1 else 'CPUs'}{f' and {self.gpus} GPU' if self.gpus else ''}"
        return f"{self.count} {'process' if self.count == 1 else 'processes'} of {each}{' each' * (self.count > 1)}"

    def room(self, node: Node) -> int:
        """How many of its processes fit on a machine."""
        places = int(node.cpus // self.cpus)
        return min(places, int(node.gpus // self.gpus)) if self.gpus else places


def group_of(request: Request) -> Group:
    """From the settings that the job's shape leads to, or that the command line gave."""
    found = request.work.workers(request.shape)
    return Group(found.count, found.cpus, found.gpus)


def nodes_of(answer: dict[str, Any]) -> list[Node]:
    """The machines that are alive, from the dashboard's answer to /api/v0/nodes?detail=true."""
    alive = [node for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]
    totals = [(node["node_ip"], node["resources_total"]) for node in alive]
    return [
        Node(address, have.get("CPU", 0), have.get("GPU", 0), have.get("memory", 0))
        for address, have in sorted(totals, key=lambda one: str(one[0]))
    ]


def check_room(request: Request, nodes: list[Node], at: str) -> str:
    """The comparison, in a line.

    Raises:
        InputError: the job's processes do not fit on the machines, were they all free.
    """
    group = group_of(request)
    wanted = request.shape.memory or 0
    fitting = [node for node in nodes if node.memory >= wanted]
    room = sum(map(group.room, fitting))
    have = "; ".join(node.words() for node in nodes) or "no machine that is alive"
    if room < group.count:
        least = f" and {wanted / GIB:g} GiB on each of their machines" if wanted else ""
        raise InputError(
            f"The job trains in {group.words()}{least}. {at} has {have}: room for {room}. Ask for less (--nodes, "
            "--cpus-per-node, --gpus-per-node, or workers.count and workers.cpus), or add machines to the cluster."
        )
    return f"{at} has {have}: room for {room} training processes, and the job is {group.words()}"


def free_words(status: dict[str, Any], nodes: list[Node]) -> str | None:
    """How much of the cluster others use, from the answer to /api/cluster_status; None where they use nothing, or
    nobody says. A job does not wait for them for long: `workers.start_limit`."""
    report = ((status.get("data") or {}).get("clusterStatus") or {}).get("loadMetricsReport") or {}
    usage = report.get("usage") or {}
    busy = {name: usage[name][0] for name in ("CPU", "GPU") if usage.get(name, [0])[0] > 0}
    if not busy:
        return None
    total = {"CPU": sum(node.cpus for node in nodes), "GPU": sum(node.gpus for node in nodes)}
    used = " and ".join(f"{amount:g} of {total[name]:g} {name}s" for name, amount in busy.items())
    return f"note: others use {used} now; a training waits workers.start_limit seconds for its processes, then fails"


def check_versions(here: dict[str, str], connection: Any, at: str) -> str:
    """Ray's and Python's, in a line. InputError where Ray's differ."""
    there = asked(connection, "/api/version")["ray_version"]
    python = asked(connection, "/api/v0/cluster_metadata")["data"].get("pythonVersion", "unknown")
    if there != here["ray"]:
        raise InputError(
            f"{at} runs Ray {there}, and here it is {here['ray']}. Install the same on both sides: pip install "
            f"'ray[default,train,tune]=={there}' here, or xinv's own requirements there."
        )
    differing = "" if python == here["python"] else f" (here {here['python']})"
    return f"{at} runs Ray {there} on Python {python}{differing}"
