"""What a Slurm cluster offers, read from `scontrol`, and whether a job fits into it. Starts no program."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from launch.limit import seconds_in
from launch.work import Shape
from xinv.errors import InputError
from xinv.progress import clock

OUT = {"DOWN", "DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILING", "MAINT", "NOT_RESPONDING", "POWERED_DOWN"}
"""States of a node that takes no job now."""


@dataclass(frozen=True)
class Node:
    name: str
    partitions: frozenset[str]
    cpus: int
    memory: int  # MiB
    gpus: dict[str, int]  # by type; "": of no named type
    features: frozenset[str]
    states: frozenset[str]

    @property
    def up(self) -> bool:
        return not self.states & OUT

    @property
    def idle(self) -> bool:
        return self.up and "IDLE" in self.states

    def gpus_of(self, kind: str | None) -> int:
        return self.gpus.get(kind, 0) if kind else sum(self.gpus.values())


@dataclass(frozen=True)
class Partition:
    name: str
    default: bool
    state: str
    seconds: int | None  # time limit; None: none
    nodes: int | None  # most nodes of one job; None: no limit


def fields(line: str) -> dict[str, str]:
    """The fields of one line of `scontrol --oneliner`; values may hold spaces."""
    return dict(re.findall(r"(?:^|\s)([A-Za-z][\w:/]*)=(.*?)(?=\s+[A-Za-z][\w:/]*=|\s*$)", line))


def nodes_of(text: str) -> list[Node]:
    """From `scontrol --oneliner show node`."""
    return [_node(found) for line in text.splitlines() if "NodeName" in (found := fields(line))]


def _node(found: dict[str, str]) -> Node:
    state = found.get("State", "UNKNOWN")
    states = {part for part in re.split(r"[^A-Z_]+", state) if part} | ({"NOT_RESPONDING"} if "*" in state else set())
    return Node(
        name=found["NodeName"],
        partitions=frozenset(found.get("Partitions", "").split(",")),
        cpus=int(found.get("CPUEfctv") or found.get("CPUTot") or 0),
        memory=int(found.get("RealMemory") or 0),
        gpus=_gpus(found.get("Gres", "")),
        features=frozenset(found.get("AvailableFeatures", "").split(",")),
        states=frozenset(states),
    )


def _gpus(text: str) -> dict[str, int]:
    """GPUs by type in a text such as gpu:a100:4(S:0-1),gpu:v100:2,craynetwork:1."""
    found: dict[str, int] = {}
    for item in re.sub(r"\([^)]*\)", "", text).split(","):
        parts = item.split(":")
        if parts[0] == "gpu":
            kind = parts[1] if len(parts) > 2 else ""
            found[kind] = found.get(kind, 0) + (int(parts[-1]) if parts[-1].isdigit() else 1)
    return found


def partitions_of(text: str) -> list[Partition]:
    """From `scontrol --oneliner show partition`."""
    return [
        Partition(
            name=found["PartitionName"],
            default=found.get("Default") == "YES",
            state=found.get("State", "UP"),
            seconds=seconds_in(found.get("MaxTime", "UNLIMITED")),
            nodes=int(found["MaxNodes"]) if found.get("MaxNodes", "").isdigit() else None,
        )
        for line in text.splitlines()
        if "PartitionName" in (found := fields(line))
    ]


def chosen(partitions: Sequence[Partition], name: str | None) -> Partition:
    """The partition that a job goes to. InputError, with the known ones, for one that there is not."""
    known = ", ".join(sorted(partition.name for partition in partitions)) or "none"
    for partition in partitions:
        if partition.name == name or (name is None and partition.default):
            if partition.state not in ("UP", "DOWN"):
                raise InputError(f"Partition {partition.name} takes no jobs ({partition.state}). There are {known}.")
            return partition
    if name is None:
        raise InputError(f"No partition is Slurm's default. Name one (--partition, or slurm.partition): {known}.")
    raise InputError(f"There is no partition {name!r}. There are {known}.")


@dataclass(frozen=True)
class Wanted:
    """What a job asks for."""

    shape: Shape
    seconds: int | None = None
    gpu_type: str | None = None
    constraint: str | None = None

    @property
    def memory(self) -> int:
        return -(-(self.shape.memory or 0) // 2**20)

    def fits(self, node: Node) -> bool:
        return (
            node.cpus >= self.shape.cpus
            and node.memory >= self.memory
            and node.gpus_of(self.gpu_type) >= self.shape.gpus
            and self.has_features(node)
        )

    def has_features(self, node: Node) -> bool:
        # A constraint may be a whole expression (a&b, [a|b]): only a single word is compared here.
        plain = self.constraint is not None and re.fullmatch(r"[\w.-]+", self.constraint)
        return not plain or self.constraint in node.features


def compare(wanted: Wanted, partition: Partition, nodes: Sequence[Node]) -> list[str]:
    """Lines for the user: what the job asks for against what the partition has.

    Raises:
        InputError: the job could never start there; with the arithmetic.
    """
    own = [node for node in nodes if partition.name in node.partitions and wanted.has_features(node)]
    where = f"partition {partition.name}" + (f" with {wanted.constraint}" if wanted.constraint else "")
    if not own:
        raise InputError(f"No node of {where} is known. Choose another one (--partition, slurm.constraint).")
    _check_each(wanted, where, own)
    _check_time(wanted, partition)
    fitting = [node for node in own if wanted.fits(node)]
    most = min(len(fitting), partition.nodes or len(fitting))
    if wanted.shape.nodes > most:
        limit = f", and its limit is {partition.nodes} nodes a job" if partition.nodes else ""
        raise InputError(
            f"The job asks for {wanted.shape.words()}; {where} has {len(fitting)} such{limit}. Lower --nodes to {most}."
        )
    up, idle = sum(node.up for node in fitting), sum(node.idle for node in fitting)
    limit = "no time limit" if partition.seconds is None else f"at most {clock(partition.seconds)} a job"
    largest = max(own, key=lambda node: (node.gpus_of(wanted.gpu_type), node.cpus, node.memory))
    lines = [
        f"{where} has {len(own)} nodes, the largest with {largest.cpus} CPUs, {largest.gpus_of(wanted.gpu_type)} GPUs, "
        f"{largest.memory / 1024:.1f} GiB; {limit}",
        f"{len(fitting)} of them are large enough for {wanted.shape.words()}: {up} up, {idle} idle now",
    ]
    if partition.state == "DOWN" or up < wanted.shape.nodes:
        lines.append("the job will wait until the administrators bring up nodes")
    elif idle < wanted.shape.nodes:
        lines.append("the job may have to wait for others to end")
    return lines


def _check_each(wanted: Wanted, where: str, own: Sequence[Node]) -> None:
    """InputError where a node of the job asks for more of something than any node has."""
    shape = wanted.shape
    gpus = f"{wanted.gpu_type} GPUs" if wanted.gpu_type else "GPUs"
    asked = [
        (gpus, shape.gpus, lambda node: node.gpus_of(wanted.gpu_type), "--gpus-per-node"),
        ("CPUs", shape.cpus, lambda node: node.cpus, "--cpus-per-node"),
        ("MiB of memory", wanted.memory, lambda node: node.memory, "--memory-per-node"),
    ]
    for what, amount, have, option in asked:
        largest = max(own, key=have)
        if amount > have(largest):
            raise InputError(
                f"The job asks for {amount} {what} on each node; the most that a node of {where} has is "
                f"{have(largest)} ({largest.name}). Lower {option}, or choose another partition."
            )
    if not any(wanted.fits(node) for node in own):
        raise InputError(
            f"No node of {where} has all of {shape.words()} at once, though each alone can be had. Lower one of them."
        )


def _check_time(wanted: Wanted, partition: Partition) -> None:
    if wanted.seconds is not None and partition.seconds is not None and wanted.seconds > partition.seconds:
        raise InputError(
            f"The job asks for {clock(wanted.seconds)}; partition {partition.name} gives at most "
            f"{clock(partition.seconds)}. Lower --time: a job that reaches its limit saves and continues by itself."
        )
