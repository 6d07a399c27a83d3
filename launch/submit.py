"""From a configuration to a job that was sent once: `xinv submit`."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.backend import Backend
from launch.job import Job, Records, Request, State, Status, handle_of
from launch.site import Site
from launch.work import GIB, Shape, Verb, verb_of, work_of
from xinv.errors import InputError
from xinv.files import digest
from xinv.progress import clock
from xinv.provenance import versions


@dataclass(frozen=True)
class Asked:
    """What the command line asks for beside the work; None: what the configuration and the site say."""

    nodes: int | None = None
    cpus_per_node: int | None = None
    gpus_per_node: int | None = None
    memory_per_node: int | None = None  # GiB
    time: str | None = None
    partition: str | None = None


def request_of(
    verb: Verb | None, config: Path, overrides: Sequence[str], on: str, asked: Asked, site: Site
) -> Request:
    """The job of `xinv VERB CONFIG OVERRIDES` on a place, validated as the verb itself would. InputError as there."""
    work = work_of(verb or verb_of(config), config, tuple(overrides))
    shape = _shape(work.shape(), work.cpus, asked)
    work.placed(shape)
    identity = digest([on, work.verb, work.identity, str(work.folder)])
    handle = handle_of(work.name, identity)
    return Request(
        handle=handle,
        work=work,
        shape=shape,
        cwd=Path.cwd(),
        folder=work.folder / "jobs" / handle,
        seconds=None if asked.time is None else seconds_of(asked.time),
        partition=asked.partition,
        environment=site.environment,
        versions=versions(),
    )


def _shape(own: Shape, cpus: int, asked: Asked) -> Shape:
    """The room of the job: as asked, and for the rest what the configuration's own processes need."""
    nodes = asked.nodes or 1
    gpus = -(-own.gpus // nodes) if asked.gpus_per_node is None else asked.gpus_per_node
    need = gpus * cpus if gpus else -(-own.cpus // nodes)
    memory = None if asked.memory_per_node is None else asked.memory_per_node * GIB
    return Shape(nodes=nodes, cpus=asked.cpus_per_node or need, gpus=gpus, memory=memory)


def seconds_of(text: str) -> int:
    """A time limit as Slurm writes it: minutes, hours:minutes:seconds, days-hours:minutes:seconds; also 90m, 12h, 2d.

    Raises:
        InputError: it is nothing of that, or under a minute.
    """
    if found := re.fullmatch(r"(\d+)([smhd])", text):
        seconds = int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
    elif found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        seconds = days * 86400 + hours * 3600 + minutes * 60 + rest
    elif text.isdigit():
        seconds = int(text) * 60
    else:
        raise InputError(f"{text!r} is no time limit; write 12:00:00, 2-00:00:00, 90m or 12h.")
    if seconds < 60:
        raise InputError(f"A time limit of {seconds} s is too short for any job; the least is a minute.")
    return seconds


def submit(request: Request, on: str, backend: Backend, records: Records, again: bool = False) -> Job:
    """Send a job, recorded before it is sent.

    Args:
        request: from `request_of`.
        on: the place, as the user named it.
        backend: that place.
        records: where the job is recorded.
        again: also where the same job, or another one in the same run folder, is not over yet.

    Raises:
        InputError: such a job there is, and `again` is False; or the backend refuses.
    """
    earlier = [job for job in records.all() if job.request.work.folder == request.work.folder]
    for job in earlier:
        if not again:
            _refuse_repeat(job, refreshed(job, backend, records) if job.on == on else job)
    taken = {job.handle for job in records.all()}
    number, first = 1, request.handle
    while request.handle in taken:
        number += 1
        handle = f"{first}-{number}"
        request = request.model_copy(update={"handle": handle, "folder": request.folder.with_name(handle)})
    job = records.write(Job(request=request, on=on, created=time.time()))
    try:
        ident = backend.send(request)
    except InputError as error:
        records.write(job.seen(Status(state=State.failed, detail=f"was not sent: {error}")))
        raise
    return records.write(job.model_copy(update={"ident": ident, "status": Status(state=State.pending)}))


def _refuse_repeat(job: Job, now: Job) -> None:
    if now.status.state.over:
        return
    raise InputError(
        f"{job.request.work.folder} has a job already: {job.handle}, sent to {job.on} {clock(time.time() - job.created)} "
        f"ago, is {now.status.state}. Follow it with `xinv jobs logs -f {job.handle}`, end it with `xinv jobs cancel "
        f"{job.handle}`, give this one another name (name=...), or say --again."
    )


def refreshed(job: Job, backend: Backend, records: Records) -> Job:
    """The job as its place sees it now, its record brought up to date."""
    if job.status.state.over:
        return job
    if job.ident is None:
        ident = backend.find(job)
        if ident is None:
            lost = Status(state=State.lost, detail="the submission was interrupted before it was sent")
            return records.write(job.seen(lost))
        job = job.model_copy(update={"ident": ident})
    return records.write(job.seen(backend.status(job)))
