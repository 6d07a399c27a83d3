"""Image and release sets of random numbers, as the training benches read them."""

from pathlib import Path
from typing import Any

import numpy as np

from xinv.data.fields import schema_of
from xinv.data.index import Index, shard_path
from xinv.data.shards import write_shard

CLASSES = 10
SHARD = 256


def make_sets(folder: Path, size: int, images: int, held_out: int = 32) -> tuple[Path, Path]:
    """Folders of an image set and a release set (logits and one `gradient` map) of RGB images of `size` px."""
    generator = np.random.default_rng(0)
    parts: dict[str, dict[str, list[Any]]] = {"images": {}, "releases": {}}
    for partition, count in (("attack", images), ("attack_validation", held_out)):
        found: dict[str, list[dict[str, Any]]] = {"images": [], "releases": []}
        for number in range(count):
            key = f"{partition}-{number:06d}"
            png = generator.integers(0, 256, (size, size, 3)).astype(np.uint8)
            facts = {"label": number % CLASSES, "identity": key, "attributes": {}}
            found["images"].append({"__key__": key, "png": png, "json": facts})
            logits = generator.normal(0, 1, CLASSES).astype(np.float32)
            gradient = generator.normal(0, 1, (1, size, size)).astype(np.float32)
            found["releases"].append({"__key__": key, "prediction.npy": logits, "gradient.npy": gradient})
        for kind, samples in found.items():
            parts[kind][partition] = samples
    for kind, partitions in parts.items():
        entries = {
            partition: tuple(
                write_shard(shard_path(folder / kind, partition, start // SHARD), samples[start : start + SHARD])
                for start in range(0, len(samples), SHARD)
            )
            for partition, samples in partitions.items()
        }
        Index(
            kind="images" if kind == "images" else "releases",
            made_by={"program": "bench"},
            label_names=tuple(f"class {number}" for number in range(CLASSES)) if kind == "images" else (),
            synthetic=True,
            fields=schema_of(partitions["attack"][0]),
            partitions=entries,
        ).save(folder / kind)
    return folder / "images", folder / "releases"
