"""From a configuration to a job that was sent once: `xinv submit`."""

import itertools
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.backend import Backend
from launch.job import Job, Records, Request, State, Status, handle_of
from launch.limit import seconds_of
from launch.site import Site
from launch.work import GIB, Shape, Verb, verb_of, work_of
from xinv.errors import InputError
from xinv.files import digest
from xinv.progress import clock
from xinv.provenance import versions

Place = Callable[[str], Backend]
"""The backend of a place by the name that the user gives it."""


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
    verb: Verb | None,
    config: Path,
    overrides: Sequence[str],
    on: str,
    asked: Asked,
    site: Site,
    needs_inputs: bool = True,
) -> Request:
    """The job of `xinv VERB CONFIG OVERRIDES` on a place, validated as the verb itself would. InputError as there.

    `needs_inputs`: whether the files that it reads must be there.
    """
    work = work_of(verb or verb_of(config), config, tuple(overrides), needs_inputs)
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
        python=sys.executable,
    )


def _shape(own: Shape, cpus: int, asked: Asked) -> Shape:
    """The room of the job: as asked, and for the rest what the configuration's own processes need."""
    nodes = asked.nodes or 1
    gpus = -(-own.gpus // nodes) if asked.gpus_per_node is None else asked.gpus_per_node
    need = gpus * cpus if gpus else -(-own.cpus // nodes)
    memory = None if asked.memory_per_node is None else asked.memory_per_node * GIB
    return Shape(nodes=nodes, cpus=asked.cpus_per_node or need, gpus=gpus, memory=memory)


def submit(request: Request, on: str, place: Place, records: Records, again: bool = False) -> Job:
    """Send a job, recorded before it is sent.

    Args:
        request: from `request_of`.
        on: the place, as the user named it.
        place: the backend of a place by its name.
        records: where the job is recorded.
        again: also where the same job, or another one in the same run folder, is not over yet.

    Raises:
        InputError: such a job there is, and `again` is False; or the backend refuses.
    """
    with records.alone():
        request = _fresh(request, place, records, again)
        job = records.write(Job(request=request, on=on, created=time.time()))
    try:
        ident = place(on).send(request)
    except InputError as error:
        records.write(job.seen(Status(state=State.failed, detail=f"was not sent: {error}")))
        raise
    return records.write(job.model_copy(update={"ident": ident, "status": Status(state=State.pending)}))


def again_from(request: Request) -> Request:
    """A job's request for a job of its own: under the handle that counts on from the first one's."""
    first = re.sub(r"(-[0-9a-f]{6})-\d+$", r"\1", request.handle)
    return request.model_copy(update={"handle": first, "folder": request.folder.with_name(first)})


def _fresh(request: Request, place: Place, records: Records, again: bool) -> Request:
    """The request under a handle that no job has. InputError where one of its run folder is not over yet."""
    jobs = records.all()
    for job in jobs:
        if job.request.work.folder == request.work.folder and not again:
            _refuse_repeat(refreshed(job, place, records))
    taken = {job.handle for job in jobs}
    names = itertools.chain([request.handle], (f"{request.handle}-{number}" for number in itertools.count(2)))
    handle = next(name for name in names if name not in taken)
    return request.model_copy(update={"handle": handle, "folder": request.folder.with_name(handle)})


def _refuse_repeat(job: Job) -> None:
    if job.status.state.over:
        return
    sent = f"sent to {job.on} {clock(time.time() - job.created)} ago"
    raise InputError(
        f"{job.request.work.folder} has a job already: {job.handle}, {sent}, is {job.status.state}. "
        f"Follow it with `xinv jobs logs -f {job.handle}`, end it with `xinv jobs cancel {job.handle}`, give this one "
        "another name (name=...), or say --again."
    )


def refreshed(job: Job, place: Place, records: Records) -> Job:
    """The job as its place sees it now, its record brought up to date. InputError where the place does not answer."""
    if job.status.state.over:
        return job
    backend = place(job.on)
    if job.ident is None:
        ident = backend.find(job)
        if ident is None:
            lost = Status(state=State.lost, detail="the submission was interrupted before it was sent")
            return records.write(job.seen(lost))
        job = job.model_copy(update={"ident": ident})
    return records.write(job.seen(backend.status(job)))
