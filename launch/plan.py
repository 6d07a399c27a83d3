"""The verb `xinv plan`: what an audit takes, and with `--on`, whether a place has it."""

import json
from typing import Annotated, Any

import typer

from launch.arithmetic import audits_of, gpu_memory_of, room_at
from launch.cli import (
    Config,
    Cpus,
    Memory,
    Nodes,
    Overrides,
    Partition,
    SiteFile,
    Time,
    VerbOption,
    asks,
    check_storage,
)
from launch.job import Request
from launch.places import place_of
from launch.site import Site, load_site
from launch.submit import Asked, request_of
from launch.work import Verb
from xinv.console import AsJson, help_text, screen
from xinv.errors import InputError
from xinv.plan.room import Room, room_here

WIDTH = 100


def plan(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option("--gpus", "--gpus-per-node", min=0, help="GPUs of each machine")] = None,
    gpu_memory: Annotated[str | None, typer.Option(help="memory of a GPU, such as 80GiB")] = None,
    nodes: Nodes = None,
    rate: Annotated[
        str | None, typer.Option(help="what a rank reaches: 120tflops, or 850images (a second); for times")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="find the rate by a few real steps on this machine")
    ] = False,
    on: Annotated[
        str | None,
        typer.Option(
            "--on", help="also compare with what a place has: local, slurm, kubernetes, http://..., ray://..."
        ),
    ] = None,
    verb: VerbOption = None,
    cpus_per_node: Cpus = None,
    memory_per_node: Memory = None,
    limit: Time = None,
    partition: Partition = None,
    site: SiteFile = None,
    as_json: AsJson = False,
) -> None:
    asked = Asked(nodes, cpus_per_node, gpus, memory_per_node, limit, partition)
    local = load_site(site)
    request = request_of(verb, config, overrides or (), on or "local", asked, local, needs_inputs=on is not None)
    shown: dict[str, Any] = {"shape": request.shape.model_dump(), "command": request.arguments(None)}
    if on is not None:
        shown["checked"] = [*place_of(on, local).check(request), *check_storage(request)]
        if not as_json:
            for line in [*asks(request), *shown["checked"]]:
                screen().print(line, markup=False, soft_wrap=True)
    count, room = _ranks(request, on, local, gpu_memory, asked)
    if room is not None:
        shown["outlook"] = _outlook(request, count, room, rate, measure, as_json)
    if as_json:
        print(json.dumps(shown))


PLAN_HELP = help_text(
    "Work out memory, FLOPs, disk and time of every training, and which setting fits; send nothing.",
    "xinv plan configs/celeba_hq_256.yaml --gpus 8 --gpu-memory 80GiB",
)


def _ranks(
    request: Request, on: str | None, site: Site, gpu_memory: str | None, asked: Asked
) -> tuple[int, Room | None]:
    """How many ranks there are and what each has: of the job where there is talk of one, else of the configuration's
    workers on this machine. None where a place's memory is not known."""
    placed = on is not None or any(
        value is not None for value in (asked.nodes, asked.gpus_per_node, asked.cpus_per_node)
    )
    own = audits_of(request.work)
    workers = next(iter(own.values())).workers
    if request.work.verb is not Verb.audit:  # trials take a rank each
        workers = workers.model_copy(update={"count": 1, "gpus": int(request.work.gpus > 0)})
    if placed or asked.memory_per_node is not None:
        found = request.work.workers(request.shape)
        count = found.count if request.work.verb is Verb.audit else 1
        workers = workers.model_copy(update={"count": count, "gpus": found.gpus})
    known = gpu_memory or (None if on is None else gpu_memory_of(on, site))
    room = room_at(request.shape, workers.count, known)
    if room is None and on in (None, "local"):
        room = room_here(workers.model_copy(update={"address": None}))
    if room is None and on is None:
        raise InputError("There is no GPU here to ask for its memory; say how much one has: --gpu-memory 80GiB.")
    return workers.count, room


def _outlook(request: Request, count: int, room: Room, rate: str | None, measure: bool, quiet: bool) -> dict[str, Any]:
    from xinv.plan.outlook import outlook, ranks_for  # torch: not before it is needed
    from xinv.plan.pace import rate_of
    from xinv.plan.table import show
    from xinv.progress import Terminal
    from xinv.train.engine import bf16_in_hardware, pick_device

    stated = None if rate is None else rate_of(rate)
    if measure and stated is not None:
        raise InputError("--rate states what --measure would find out; give one of them.")
    audits = audits_of(request.work)
    config = next(iter(audits.values()))
    terminal = Terminal()
    terminal.console.quiet = quiet
    with terminal.stage("Plan") as progress:
        ranks = ranks_for(count, room, room.device == "cuda" or bf16_in_hardware(pick_device()))
        found = outlook(config, ranks, room, stated, measure, progress)
        progress(1, 1, f"{len(found.prospects)} trainings")
    if not quiet:
        console = screen()
        console.width = min(console.width, WIDTH)
        show(console, found)
        if len(audits) > 1:
            console.print(
                f"This is the base; {len(audits) - 1} more trials vary it, and the launch checks each of them."
            )
    return found.as_json()
