"""A job's trainings against the memory that its ranks will have, where the place's is known."""

from launch.job import Request
from launch.places import RAY
from launch.site import Site
from launch.work import Shape, Verb, Work
from xinv.config import AuditConfig
from xinv.plan.room import Room, bytes_of, gpu_room, share_of

ALONE = ""


def audits_of(work: Work) -> dict[str, AuditConfig]:
    """The audits that a job trains for, by the name that messages call them: one, but for an analysis of factors. Of a
    search its base: candidates have a budget of their own."""
    if work.verb is Verb.audit:
        return {ALONE: AuditConfig.model_validate(work.tree)}
    if work.verb is Verb.search:
        from xinv.search.settings import SearchConfig, base_audit

        return {ALONE: base_audit(SearchConfig.model_validate(work.tree), str(work.config))}
    from xinv.factors.settings import FactorsConfig
    from xinv.factors.trial import trials_of

    expanded = trials_of(FactorsConfig.model_validate(work.tree), str(work.config))
    return {expanded.origins[name]: config for name, config in expanded.configs.items()}


def gpu_memory_of(on: str, site: Site) -> str | None:
    """What the site file says of a place's GPUs."""
    if on.startswith(RAY):
        return site.ray.gpu_memory
    return {"slurm": site.slurm.gpu_memory, "kubernetes": site.kubernetes.gpu_memory}.get(on)


def room_at(shape: Shape, count: int, gpu_memory: str | None) -> Room | None:
    """What each of `count` ranks of a job has; None where that is not known here.

    Raises:
        InputError: `gpu_memory` is no amount of memory.
    """
    if shape.gpus:
        return None if gpu_memory is None else gpu_room(bytes_of(gpu_memory))
    return None if shape.memory is None else share_of(shape.memory, max(1, count // shape.nodes))


def check_memory(request: Request, on: str, site: Site) -> list[str]:
    """Lines for the user, none where the place's memory is not known. InputError where a training cannot fit."""
    count = request.work.workers(request.shape).count
    room = room_at(request.shape, count, gpu_memory_of(on, site))
    if room is None:
        return []
    from xinv.plan.check import check_fits  # torch: not before it is needed
    from xinv.plan.rehearsal import forget

    parts = ("target",) if request.work.verb is Verb.search else ("",)
    ranks = count if request.work.verb is Verb.audit else 1
    for name, config in audits_of(request.work).items():
        check_fits(config, ranks, room, name, parts)
    forget()
    return [f"every training fits into {room.words}"]
