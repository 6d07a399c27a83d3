"""Tiny data for every test: made once, read by all. A test that changes a set works on a copy (`own_images`)."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fabricated import draw_pictures, fabricated

from xinv.data.fields import schema_of
from xinv.data.index import Index, ShardEntry, shard_path
from xinv.data.shards import read_shard, write_shard

SIZE = 16
LABELS = ("cross", "disc", "ring", "stripe")
SHARD_SAMPLES = 5
COUNTS = {
    "target": 23,
    "target_validation": 6,
    "attack": 23,
    "attack_validation": 6,
    "victim": 11,
    "gallery": 17,
    "gallery_validation": 6,
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors on few cores: threads cost more than they give, and sums stay in one order."""
    torch.set_num_threads(1)


def write_set(folder: Path, kind: str, samples: dict[str, list[dict[str, Any]]], label_names: tuple[str, ...]) -> Index:
    """A finished set of shards from samples by partition."""
    partitions: dict[str, tuple[ShardEntry, ...]] = {}
    for partition, found in samples.items():
        cuts = [found[start : start + SHARD_SAMPLES] for start in range(0, len(found), SHARD_SAMPLES)]
        partitions[partition] = tuple(
            write_shard(shard_path(folder, partition, number), cut) for number, cut in enumerate(cuts)
        )
    index = Index(
        kind="images" if kind == "images" else "releases",
        made_by={"program": "tests"},
        label_names=label_names,
        synthetic=True,
        fields=schema_of(next(iter(samples.values()))[0]),
        partitions=partitions,
    )
    index.save(folder)
    return index


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an image set: random 16x16 gray images of 4 labels, each with one quarter brighter, by its label."""
    folder = tmp_path_factory.mktemp("tiny") / "images"
    generator = np.random.default_rng(20211017)
    samples: dict[str, list[dict[str, Any]]] = {}
    for partition, count in COUNTS.items():
        samples[partition] = []
        for _ in range(count):
            number = sum(map(len, samples.values()))
            label = number % len(LABELS)
            image = generator.integers(0, 100, (SIZE, SIZE, 1))
            top, left = label // 2 * 8, label % 2 * 8
            image[top : top + 8, left : left + 8] += 120
            key = f"{number:08d}"
            facts = {"label": label, "identity": key, "attributes": {"number": number}}
            samples[partition].append({"__key__": key, "png": image.astype(np.uint8), "json": facts})
    write_set(folder, "images", samples, LABELS)
    return folder


@pytest.fixture
def own_images(tiny_images: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_images` that a test may damage."""
    return Path(shutil.copytree(tiny_images, tmp_path / "images"))


@pytest.fixture(scope="session")
def tiny_releases(tiny_images: Path) -> Path:
    """Folder of releases for `tiny_images`: logits, `gradient` (1, 16, 16) of both signs, `grad_cam` (1, 4, 4) >= 0."""
    folder = tiny_images.parent / "releases"
    generator = np.random.default_rng(20211018)
    images = Index.load(tiny_images)
    samples: dict[str, list[dict[str, Any]]] = {partition: [] for partition in images.partitions}
    for partition, entries in images.partitions.items():
        for number in range(len(entries)):
            for sample in read_shard(tiny_images, images, partition, number):
                logits = generator.normal(0, 1, len(LABELS)) + 4 * np.eye(len(LABELS))[sample["json"]["label"]]
                pixels = sample["png"][:, :, 0] / 255
                gradient = (pixels - pixels.mean()) + generator.normal(0, 0.1, pixels.shape)
                samples[partition].append(
                    {
                        "__key__": sample["__key__"],
                        "prediction.npy": logits.astype(np.float32),
                        "gradient.npy": gradient[None].astype(np.float32),
                        "grad_cam.npy": pixels.reshape(1, 4, 4, 4, 4).mean(axis=(2, 4)).astype(np.float32),
                    }
                )
    write_set(folder, "releases", samples, ())
    return folder


@pytest.fixture
def scores() -> dict[str, Any]:
    """The scores of an audit that was never run."""
    return fabricated()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """The folder of their pictures."""
    return draw_pictures(tmp_path)
