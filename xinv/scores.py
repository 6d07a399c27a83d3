"""The stage that scores every attack on the victims, once: scores.json, and where its numbers come from."""

import functools
from pathlib import Path
from typing import Any

from xinv.attacks import Stages
from xinv.config import AuditConfig
from xinv.data.index import INDEX_NAME, Index
from xinv.files import digest, sha256_of, write_json
from xinv.leak.attack import ORIGINALS, Attack, with_controls
from xinv.leak.score import Scorer
from xinv.leak.table import Tables, by_attack, save_samples
from xinv.progress import Progress
from xinv.provenance import git_revision, machine, versions
from xinv.release.formats import released_bytes
from xinv.stage import Finished
from xinv.train.weights import load_classifier, load_inverter

SCORES_FORMAT = 2
"""As FORMATS in audit.py, of the scores."""


def score_attacks(
    audit: Stages,
    images: Finished,
    releases: Finished,
    evaluators: dict[str, Finished],
    target: Finished,
    attacks: list[Attack],
) -> Finished:
    """Every attack on the victims, once."""
    config = audit.config
    everything = with_controls(attacks, config.attack.controls)
    identity = {
        "format": SCORES_FORMAT,
        "audit": config.name,
        "settings": config.score.model_dump(mode="json"),
        "seed": config.seed,
        "evaluators": {name: evaluator.id for name, evaluator in evaluators.items()},
        "releases": releases.id,
        "known_images": config.attack.images,
        "attacks": [one.described() for one in everything],
    }

    def work(folder: Path, progress: Progress) -> dict[str, str]:
        audit.group.close()  # trainings are over; scoring may have its memory and its GPUs
        asked = Attack(id=ORIGINALS, kind="originals", methods=config.release.methods)
        factory = functools.partial(
            Scorer,
            images.folder.resolve(),
            releases.folder.resolve(),
            {name: evaluator.folder.resolve() for name, evaluator in evaluators.items()},
            config.score,
            config.seed,
            load_classifier,
            load_inverter,
            config.attack.images,
        )
        tasks = [asked, *(one.absolute() for one in everything)]
        found = audit.run_tasks(factory, tasks, progress)
        results = by_attack(tasks, found)
        baseline = everything[0].id
        released = functools.partial(released_bytes, Index.load(releases.folder))
        scores = {
            "schema": 1,
            "audit": config.name,
            "data": _described(config, images),
            "provenance": _provenance(config, images, releases, target, *evaluators.values()),
            **Tables(everything, results, baseline, config.score, config.seed, released).all(),
        }
        save_samples(folder, everything, results)
        write_json(folder / "scores.json", scores)
        return {"scores": sha256_of((folder / "scores.json").read_bytes())}

    return audit.stage("scores", "Scores", identity, work)


def _described(config: AuditConfig, images: Finished) -> dict[str, Any]:
    index = Index.load(images.folder)
    data = config.data
    return {
        "source": data.source.kind,
        "synthetic": index.synthetic,
        "size": data.size,
        "channels": data.channels,
        "label_names": list(index.label_names),
        "images": images.result,
        "disjoint": data.split.disjoint,
    }


def _provenance(config: AuditConfig, *stages: Finished) -> dict[str, Any]:
    shards = {
        stage.id: digest(Index.load(stage.folder).model_dump(mode="json"))
        for stage in stages
        if (stage.folder / INDEX_NAME).exists()
    }
    return {
        "git": git_revision(),
        "versions": versions(),
        "machine": machine(),
        "seeds": {"audit": config.seed},
        "stages": [stage.id for stage in stages],
        "shards": shards,
        "workers": {
            "count": config.workers.count,
            "cpus": config.workers.cpus,
            "gpus": config.workers.gpus,
        },
    }
