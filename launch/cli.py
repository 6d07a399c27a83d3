"""The verbs `xinv submit` and `xinv jobs`: each calls one function and prints what it answers."""

import functools
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.arithmetic import check_memory
from launch.job import Job, Records, Request, Status
from launch.places import place_of
from launch.site import load_site
from launch.submit import Asked, Place, again_from, refreshed, request_of
from launch.submit import submit as send
from launch.work import Verb
from xinv.bucket import check
from xinv.console import AsJson, help_text, print_table, screen
from xinv.progress import clock

jobs = typer.Typer(invoke_without_command=True, help="List, watch, end and repeat the jobs that were submitted here.")

POLL = 2.0
"""Seconds between two looks at a job that is waited for."""


Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as configs/digits.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings to change, as `xinv audit` takes them")
]
On = Annotated[
    str,
    typer.Option("--on", help="local, slurm, kubernetes, or the address of a Ray cluster (http://... or ray://...)"),
]
VerbOption = Annotated[
    Verb | None, typer.Option("--verb", help="what to run; by default what the configuration is for")
]
Nodes = Annotated[int | None, typer.Option(min=1, help="machines")]
Cpus = Annotated[int | None, typer.Option(min=1, help="CPU cores of each")]
Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs of each")]
Memory = Annotated[int | None, typer.Option(min=1, help="GiB of memory of each")]
Time = Annotated[str | None, typer.Option("--time", help="limit, such as 12:00:00, 2-00:00:00, 90m")]
Partition = Annotated[str | None, typer.Option(help="part of the cluster, where it has parts")]
SiteFile = Annotated[Path | None, typer.Option("--site", help="site file; default: $XINV_SITE or xinv/site.yaml")]
Handle = Annotated[str, typer.Argument(metavar="HANDLE", help="the job, as `xinv jobs` lists it, or its beginning")]


def submit(
    config: Config,
    overrides: Overrides = None,
    on: On = "local",
    verb: VerbOption = None,
    nodes: Nodes = None,
    cpus_per_node: Cpus = None,
    gpus_per_node: Gpus = None,
    memory_per_node: Memory = None,
    limit: Time = None,
    partition: Partition = None,
    site: SiteFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be sent, and send nothing")] = False,
    again: Annotated[bool, typer.Option("--again", help="also where this run has a job that is not over")] = False,
    as_json: AsJson = False,
) -> None:
    asked = Asked(nodes, cpus_per_node, gpus_per_node, memory_per_node, limit, partition)
    local = load_site(site)
    request = request_of(verb, config, overrides or (), on, asked, local)
    backend = place_of(on, local)
    if dry_run:
        print(backend.render(request))
        return
    lines = [*backend.check(request), *check_memory(request, on, local), *check_storage(request)]
    job = send(request, on, functools.partial(place_of, site=local), Records(), again)
    if as_json:
        print(json.dumps({**_described(job), "checked": lines}))
        return
    console = screen()
    for line in [*asks(request), *lines]:
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"{job.handle} sent to {on} as {job.ident}; run folder {job.request.work.folder}", soft_wrap=True)
    console.print(f"Follow it: xinv jobs logs -f {job.handle}", soft_wrap=True)


SUBMIT_HELP = help_text(
    "Send an audit, a search or an analysis of factors to where it runs.",
    "xinv submit configs/digits.yaml --on slurm --nodes 2 --gpus-per-node 8 --time 12:00:00",
)


def check_storage(request: Request) -> list[str]:
    """Look from here at where finished work is to be kept. InputError where it does not take any."""
    if request.work.storage is None:
        return []
    check(request.work.storage)
    return [f"{request.work.storage} takes, gives back and lists objects"]


def asks(request: Request) -> list[str]:
    settings = ", ".join(request.work.placed(request.shape))
    limit = f", for at most {clock(request.seconds)}" if request.seconds else ""
    return [f"{request.work.verb} {request.work.config} asks for {request.shape.words()}{limit}; it sets {settings}"]


@jobs.callback()
def _list(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="also the jobs that ended more than a week ago")] = False,
    as_json: AsJson = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    week = time.time() - 7 * 86400
    found = [job for job in Records().all() if everything or not job.status.state.over or job.created > week]
    if as_json:
        print(json.dumps([_described(job) for job in found]))
    elif found:
        print_table(screen(), [_row(job) for job in found], words=5)
    else:
        screen().print("No jobs were submitted here.")


def _row(job: Job) -> dict[str, str]:
    return {
        "job": job.handle,
        "on": job.on,
        "as": job.ident or "",
        "state": str(job.status.state),
        "run folder": str(job.request.work.folder),
        "age": clock(time.time() - job.created),
    }


def _described(job: Job) -> dict[str, Any]:
    return {
        "handle": job.handle,
        "on": job.on,
        "ident": job.ident,
        **job.status.model_dump(mode="json"),
        "run": str(job.request.work.folder),
        "folder": str(job.request.folder),
        "created": job.created,
    }


def _place() -> Place:
    return functools.partial(place_of, site=load_site())


@jobs.command("status", help=help_text("Ask where it runs how a job is.", "xinv jobs status digits-1a2b3c --wait"))
def jobs_status(
    handle: Handle,
    wait: Annotated[
        bool, typer.Option("--wait", help="until it is over; the exit code is then the job's own (130: cancelled)")
    ] = False,
    as_json: AsJson = False,
) -> None:
    records, place = Records(), _place()
    job = refreshed(records.read(handle), place, records)
    while wait and not job.status.state.over:
        time.sleep(POLL)
        job = refreshed(job, place, records)
    if as_json:
        print(json.dumps(_described(job)))
    else:
        print(_sentence(job))
    if wait and (code := result_code(job.status)):
        raise typer.Exit(code)


def _sentence(job: Job) -> str:
    status = job.status
    code = f", exit code {status.exit_code}" if status.exit_code else ""
    return (
        f"{job.handle} on {job.on} ({job.ident}): {status.state}{code}{f'; {status.detail}' if status.detail else ''}"
    )


def result_code(status: Status) -> int:
    """What `xinv jobs status --wait` ends with: the exit code of the work, 130 for a job that was cancelled, 1 for one
    that failed or was lost without a word."""
    if status.exit_code is not None:
        return status.exit_code
    return {"succeeded": 0, "cancelled": 130}.get(status.state, 1)


@jobs.command("logs", help=help_text("Print what a job printed.", "xinv jobs logs -f digits-1a2b3c"))
def jobs_logs(
    handle: Handle, follow: Annotated[bool, typer.Option("--follow", "-f", help="until the job is over")] = False
) -> None:
    records, place = Records(), _place()
    job = refreshed(records.read(handle), place, records)
    for piece in place(job.on).logs(job, follow):
        print(piece, end="", flush=True)


@jobs.command("cancel", help=help_text("End a job; finished steps are kept.", "xinv jobs cancel digits-1a2b3c"))
def jobs_cancel(handle: Handle) -> None:
    records, place = Records(), _place()
    job = refreshed(records.read(handle), place, records)
    if job.status.state.over:
        print(f"{_sentence(job)}. There is nothing to cancel.")
        return
    place(job.on).cancel(job)
    print(_sentence(refreshed(job, place, records)))


@jobs.command(
    "resubmit",
    help=help_text(
        "Send a job again as it was; it continues from what is finished.", "xinv jobs resubmit digits-1a2b3c"
    ),
)
def jobs_resubmit(
    handle: Handle,
    again: Annotated[bool, typer.Option("--again", help="also where this run has a job that is not over")] = False,
) -> None:
    records, place = Records(), _place()
    job = records.read(handle)
    place(job.on).check(job.request)
    fresh = send(again_from(job.request), job.on, place, records, again)
    print(f"{fresh.handle} sent to {fresh.on} as {fresh.ident}")
