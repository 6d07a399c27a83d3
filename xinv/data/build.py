"""From a source to image shards: split, bring to size, shuffle, write."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

import xinv
from xinv.data.fields import FieldSchema
from xinv.data.shards import INDEX_NAME, Index, ShardEntry, shard_path, write_shard
from xinv.data.sources import Source, SourceSettings, open_source
from xinv.data.splits import PARTITIONS, SplitSettings, split
from xinv.errors import InputError
from xinv.files import make_private

if TYPE_CHECKING:
    from xinv.progress import Progress


class DataSettings(BaseModel):
    """The images of an audit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: SourceSettings = Field(description="where the images come from")
    size: int = Field(ge=8, le=4096, description="side of the square images in pixels")
    channels: Literal[1, 3] = Field(description="1 for gray, 3 for colour")
    split: SplitSettings = Field(description="how many images each party gets")
    shard_samples: int = Field(250, ge=1, description="samples of one shard; the last of a partition may be shorter")


def build_images(settings: DataSettings, seed: int, folder: Path, progress: "Progress | None" = None) -> Index:
    """Write the image shards of every partition into `folder`, then their index, and return it.

    Within a partition the order is a seeded shuffle. The same settings, seed and source give the same bytes (Pillow and
    numpy versions equal). What an interrupted build left in `folder` is written over; its index, if any, goes first.
    InputError: a source that is missing, too few images. OSError: the disk.
    """
    source = open_source(settings.source)
    parts = split(source.records, settings.split, seed)
    make_private(folder)
    (folder / INDEX_NAME).unlink(missing_ok=True)
    for partition in PARTITIONS:
        for leftover in (*(folder / partition).glob("*.tar"), *(folder / partition).glob(".*.partial")):
            leftover.unlink()
    total, done = sum(map(len, parts.values())), 0
    partitions: dict[str, tuple[ShardEntry, ...]] = {}
    for place, partition in enumerate(PARTITIONS):
        order = np.random.default_rng([seed, 1, place]).permutation(parts[partition]).tolist()
        entries: list[ShardEntry] = []
        for start in range(0, len(order), settings.shard_samples):
            chosen = order[start : start + settings.shard_samples]
            path = shard_path(folder, partition, len(entries))
            entries.append(write_shard(path, _samples(source, chosen, settings)))
            done += len(chosen)
            if progress:
                progress(done, total, f"{done:,} images")
        partitions[partition] = tuple(entries)
    index = Index(
        kind="images",
        made_by=_made_by(settings, seed, source),
        label_names=source.label_names,
        synthetic=source.synthetic,
        fields={
            "png": FieldSchema(
                dtype="uint8", shape=(settings.size, settings.size, settings.channels), units="intensity, 0..255"
            ),
            "json": FieldSchema(dtype="json", shape=(), units="label, identity, attributes"),
        },
        partitions=partitions,
    )
    index.save(folder)
    return index


def _made_by(settings: DataSettings, seed: int, source: Source) -> dict[str, Any]:
    return {
        "program": f"xinv {xinv.__version__}",
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        "seed": seed,
        "settings": settings.model_dump(mode="json"),
        "source_sha256": source.fingerprint,
        "disjoint": settings.split.disjoint,  # `verify` holds the set to it
    }


def _samples(source: Source, chosen: list[int], settings: DataSettings) -> Iterator[dict[str, Any]]:
    for position in chosen:
        record = source.records[position]
        yield {
            "__key__": record.key,
            "png": fitted(source.read(position), settings.size, settings.channels),
            "json": {"label": record.label, "identity": record.identity, "attributes": record.attributes},
        }


def fitted(image_HWC: np.ndarray, size: int, channels: int) -> np.ndarray:
    """`image_HWC` (uint8, 1 or 3 channels) as uint8 (size, size, channels).

    The largest centred square is resized by Pillow's bilinear filter, which smooths when it shrinks. Digits of 28 px
    are enlarged to the whole of 32 px, not padded. Colour becomes gray by ITU-R 601 luma; gray is repeated for colour.
    """
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] not in (1, 3):
        raise InputError(
            f"a source gave an image of dtype {image_HWC.dtype} and shape {image_HWC.shape}; "
            "expected uint8 of shape (H, W, 1) or (H, W, 3)."
        )
    image = Image.fromarray(image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC)
    image = image.convert("L" if channels == 1 else "RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if image.size != (size, size):
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image).reshape(size, size, channels)
