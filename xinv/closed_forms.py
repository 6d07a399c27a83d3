"""Attacks that are solved for and not trained: ridge regression, and the quotient of two explanations."""

from collections.abc import Callable
from pathlib import Path

from xinv.attacks import Stages
from xinv.data.loader import Reader
from xinv.leak.closed_form import fit_ridge
from xinv.leak.controls import mean_image
from xinv.leak.score import Attack
from xinv.nets import quotient
from xinv.progress import Progress
from xinv.release.methods import METHODS
from xinv.stage import Finished
from xinv.train.weights import WEIGHTS, QuotientSpec, RidgeSpec, save_spec, save_weights

RidgeTask = tuple[RidgeSpec, Path, Path, Path, int | None]
QuotientTask = tuple[QuotientSpec, Path, Path, int | None]
RIDGE_FORMAT = 1
QUOTIENT_FORMAT = 1
BATCH = 256  # images read at once


def closed_forms(audit: Stages, images: Finished, releases: Finished) -> list[Attack]:
    """Those named in `attack.closed_forms`: ridge regression of every attacked release, one quotient.

    The quotient reads both of its explanations, though `attack.releases` may attack each of them alone.
    """
    wanted, found = audit.config.attack.closed_forms, []
    if "quotient" in wanted:
        found.append(_quotient(audit, images, releases))
    if "ridge" in wanted:
        found += [_ridge(audit, images, releases, methods) for methods in audit.config.attacked_releases()]
    return found


def _ridge(audit: Stages, images: Finished, releases: Finished, methods: tuple[str, ...]) -> Attack:
    """The floor that a network must beat."""
    data = audit.config.data
    label = " + ".join(methods)
    limit = audit.config.attack.images
    identity = {
        "format": RIDGE_FORMAT,
        "images": images.id,
        "releases": releases.id,
        "methods": list(methods),
        "limit": limit,
    }

    def work(folder: Path, progress: Progress) -> dict[str, float]:
        seen = Reader(images.folder, "attack", releases.folder, methods)
        spec = RidgeSpec(
            channels=data.channels,
            size=data.size,
            classes=seen.classes,
            methods=methods,
            maps=tuple(seen.map_shapes.values()),
        )
        task = (spec, folder.resolve(), images.folder.resolve(), releases.folder.resolve(), limit)
        (found,) = audit.run_tasks(_ridge_solver, [task], progress)
        return found

    found = audit.stage("ridge", f"Ridge regression: {label}", identity, work)
    return Attack(
        id=f"ridge:{'+'.join(methods)}",
        kind="control",
        inverter="ridge regression",
        folder=found.folder,
        methods=methods,
        title=f"Ridge regression ({', '.join(METHODS[method].title for method in methods)})",
        closed_form=True,
    )


def _ridge_solver() -> Callable[[RidgeTask], dict[str, float]]:
    """Built in a worker process: solves one ridge regression and writes its network folder."""

    def solve(task: RidgeTask) -> dict[str, float]:
        spec, folder, images, releases, limit = task
        network = spec.build()
        found = fit_ridge(network, images, releases, spec.methods, batch_size=BATCH, limit=limit)
        save_spec(folder, spec)
        save_weights(folder / WEIGHTS, dict(network.state_dict()))
        return found

    return solve


def _quotient(audit: Stages, images: Finished, releases: Finished) -> Attack:
    """A real attack: whoever receives both explanations can divide one by the other."""
    data = audit.config.data
    limit = audit.config.attack.images
    identity = {"format": QUOTIENT_FORMAT, "images": images.id, "limit": limit}

    def work(folder: Path, progress: Progress) -> dict[str, int]:
        spec = QuotientSpec(channels=data.channels, size=data.size)
        task = (spec, folder.resolve(), images.folder.resolve(), limit)
        (found,) = audit.run_tasks(_quotient_maker, [task], progress)
        return found

    found = audit.stage("quotient", f"Quotient: {' + '.join(quotient.METHODS)}", identity, work)
    return Attack(
        id=f"quotient:{'+'.join(quotient.METHODS)}",
        kind="attack",
        inverter="quotient",
        folder=found.folder,
        methods=quotient.METHODS,
        closed_form=True,
    )


def _quotient_maker() -> Callable[[QuotientTask], dict[str, int]]:
    """Built in a worker process: takes the mean image of the attack partition and writes the network folder."""

    def make(task: QuotientTask) -> dict[str, int]:
        spec, folder, images, limit = task
        network, reader = spec.build(), Reader(images, "attack", limit=limit)
        network.mean_CHW.copy_(mean_image((batch.image_BCHW, batch.weight_B) for batch in reader.once(BATCH)))
        save_spec(folder, spec)
        save_weights(folder / WEIGHTS, dict(network.state_dict()))
        return {"images": reader.samples}

    return make
