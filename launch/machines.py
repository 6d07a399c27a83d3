"""Whether the machines of a job see what the work needs; asked before it starts, on each of them."""

import os
import secrets
from pathlib import Path
from typing import Any

from launch.job import Request
from xinv.bucket import check_nodes
from xinv.errors import InputError
from xinv.files import make_private, write_atomic
from xinv.parallel import connect

LIMIT = 120.0
"""Seconds within which every machine of a cluster must have answered."""


def enter(request: Request) -> None:
    """Go to the job's working directory, and make the job's own folder. InputError where the first is not here."""
    if not request.cwd.exists():
        raise InputError(_unseen([str(request.cwd)], "this machine", request))
    os.chdir(request.cwd)
    make_private(request.folder)


def check_this_machine(request: Request) -> None:
    """Look for what the work reads. InputError where a file that the configuration names is not on this machine."""
    lacking = missing(request.cwd, request.work.inputs)
    if lacking:
        raise InputError(_unseen(lacking, "this machine", request))


def missing(cwd: Path, inputs: tuple[Path, ...], probe: Path | None = None) -> list[str]:
    """What of it is not on this machine."""
    return [str(path) for path in (cwd, *inputs, *([probe] if probe else [])) if not path.exists()]


def check_every_machine(request: Request, address: str) -> None:
    """As `check_this_machine`, for all machines of a Ray cluster; and they must see the run folder of this one.
    Connects, and stays connected.

    Raises:
        InputError: no cluster answers, or one that is too small; a machine lacks something, by its address.
    """
    connect(request.work.workers(request.shape, address))
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    probe = make_private(request.folder) / f".probe-{secrets.token_hex(4)}"
    write_atomic(probe, "is this seen?\n")
    look = ray.remote(num_cpus=0, max_retries=0)(missing)
    answers: dict[Any, str] = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            request.cwd, request.work.inputs, probe
        ): where
        for node, where in nodes.items()
    }
    try:
        ended, silent = ray.wait(list(answers), num_returns=len(answers), timeout=LIMIT)
        if silent:
            raise InputError(
                f"{', '.join(answers[one] for one in silent)} of the cluster did not answer within {LIMIT:.0f} s. "
                "Is it too busy to start a process? The log of Ray on that machine says more."
            )
        for one in ended:
            _check_answer(one, answers[one], probe, request, len(nodes))
    finally:
        probe.unlink(missing_ok=True)


def _check_answer(answer: Any, where: str, probe: Path, request: Request, nodes: int) -> None:
    import ray
    import ray.exceptions

    try:
        lacking = ray.get(answer)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"{where} of the cluster cannot run xinv ({reason}). Install the same version there as here."
        ) from None
    if lacking == [str(probe)]:
        if request.work.storage is not None:
            check_nodes(request.work.storage, request.work.runs, nodes, shared=False)
        raise InputError(
            f"{where} of the cluster does not see {request.work.runs}, where runs are kept. Put runs on storage that "
            "all machines share (runs=...)."
        )
    if lacking:
        raise InputError(_unseen([path for path in lacking if path != str(probe)], where, request))


def _unseen(lacking: list[str], where: str, request: Request) -> str:
    return (
        f"{', '.join(lacking)} is not on {where}. The job was submitted in {request.cwd}: submit it from storage that "
        "all machines share, and put there what it reads."
    )
