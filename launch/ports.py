"""Ports for a Ray cluster of one job: each job has a slot of its own, chosen by the job's number and probed."""

import socket
from dataclasses import dataclass

from xinv.errors import WorkError

FIRST, SLOTS, WIDTH = 20_000, 1_200, 8
"""Slots are below 32768, where Linux begins to give ports to whoever asks for any."""

TRIES = 40
"""Slots that are looked at before a node counts as full."""


@dataclass(frozen=True)
class Ports:
    """The ports of the head that others must know. All others are given by the system (Ray's port 0)."""

    slot: int
    gcs: int
    dashboard: int
    client: int


def ports_of(slot: int) -> Ports:
    """The ports of a slot; slots count round."""
    first = FIRST + slot % SLOTS * WIDTH
    return Ports(slot, first, first + 1, first + 2)


def free_ports(number: int, address: str, after: int = 0) -> Ports:
    """The first slot with free ports, from the job's own on.

    Args:
        number: of the job. Two jobs that run at a time have numbers near each other, and so slots of their own.
        address: of this machine, where Ray will listen.
        after: slots to pass over: they looked free, and Ray could not have them.

    Raises:
        WorkError: none of `TRIES` slots is free.
    """
    for slot in range(number + after, number + after + TRIES):
        ports = ports_of(slot)
        if all(is_free(port, address) for port in (ports.gcs, ports.dashboard, ports.client)):
            return ports
    first, last = ports_of(number + after), ports_of(number + after + TRIES)
    raise WorkError(
        f"No ports are free on {address} between {first.gcs} and {last.gcs}. What listens there (`ss -ltnp`)?"
    )


def is_free(port: int, address: str) -> bool:
    """Whether nobody on this machine listens at a port, at this address or at all of them."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def listens(host: str, port: int) -> bool:
    """Whether somebody answers there within a second."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False
