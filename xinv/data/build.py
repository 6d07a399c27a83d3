"""From a source to image shards: split, bring to size, shuffle, write."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import PIL
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator

import xinv
from xinv.data.attacker import AttackerSettings, open_images
from xinv.data.fields import FieldSchema
from xinv.data.shards import INDEX_NAME, Index, ShardEntry, shard_path, write_shard
from xinv.data.sources import Source, SourceSettings
from xinv.data.splits import PARTITIONS, SplitSettings, split
from xinv.errors import InputError
from xinv.files import make_private

if TYPE_CHECKING:
    from xinv.progress import Progress

Share = Annotated[float, Field(ge=0, le=1)]


class DataSettings(BaseModel):
    """The images of an audit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: SourceSettings = Field(description="where the images come from")
    size: int = Field(ge=8, le=4096, description="side of the square images in pixels")
    channels: Literal[1, 3] = Field(description="1 for gray (colour images are converted by luma), 3 for colour")
    crop: tuple[Share, Share, Share, Share] | None = Field(
        None,
        description="part of every image to keep: [top, left, bottom, right] as shares of its height and width from "
        "the top left corner, e.g. [0.2, 0.25, 0.75, 0.75]; of that the largest centred square is used; null: all",
    )
    enlarge: float = Field(
        1.15, ge=1, le=16, description="how many times an image may be enlarged to reach `size`; beyond it is an error"
    )
    repeat_gray: bool = Field(False, description="with channels 3, show gray images as colour; otherwise an error")
    split: SplitSettings = Field(description="how many images each party gets")
    attacker: AttackerSettings | None = Field(
        None, description="what sets the attacker's images apart from everybody's; null: nothing does"
    )
    shard_samples: int = Field(250, ge=1, description="samples of one shard; the last of a partition may be shorter")

    @field_validator("crop")
    @classmethod
    def _crop_has_area(
        cls, value: tuple[float, float, float, float] | None
    ) -> tuple[float, float, float, float] | None:
        if value is not None and not (value[0] < value[2] and value[1] < value[3]):
            raise ValueError(
                f"{list(value)} is empty; expected [top, left, bottom, right] with top < bottom, left < right"
            )
        return value


def build_images(settings: DataSettings, seed: int, folder: Path, progress: "Progress | None" = None) -> Index:
    """Write the image shards of every partition into `folder`, then their index, and return it.

    Within a partition the order is a seeded shuffle. The same settings, seed and source give the same bytes (Pillow and
    numpy versions equal). What an interrupted build left in `folder` is written over; its index, if any, goes first.
    InputError: a source that is missing, too few images; an image that is damaged, too small or of the wrong channels,
    with its name. OSError: the disk.
    """
    source, attackable, shared = open_images(settings.source, settings.attacker)
    parts = split(source.records, settings.split, seed, attackable, shared)
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
        image_HWC = source.read(position)
        try:
            image_HWC = fitted(image_HWC, settings)
        except InputError as error:
            raise InputError(f"{source.where(position)}: {error}") from None
        yield {
            "__key__": record.key,
            "png": image_HWC,
            "json": {"label": record.label, "identity": record.identity, "attributes": record.attributes},
        }


def fitted(image_HWC: np.ndarray, settings: DataSettings) -> np.ndarray:
    """`image_HWC` (uint8, 1 or 3 channels) as uint8 (size, size, channels).

    Of the part that `crop` keeps (edges rounded to whole pixels), the largest centred square is resized by Pillow's
    bilinear filter, which smooths when it shrinks. Images may be of any size and shape, but none smaller than
    size / `enlarge`: digits of 28 px are enlarged to the whole of 32 px (1.14 times), not padded. Colour becomes gray
    by ITU-R 601 luma; gray becomes colour only where `repeat_gray` says so, because three equal channels make a release
    look larger than it is. InputError: too small, gray where colour is asked for, no image.
    """
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] not in (1, 3):
        raise InputError(
            f"a source gave an image of dtype {image_HWC.dtype} and shape {image_HWC.shape}; "
            "expected uint8 of shape (H, W, 1) or (H, W, 3)."
        )
    size, gray = settings.size, image_HWC.shape[2] == 1
    if gray and settings.channels == 3 and not settings.repeat_gray:
        raise InputError(
            "the image is gray and data.channels is 3; set data.channels: 1, or data.repeat_gray: true to show gray "
            "as colour."
        )
    image = Image.fromarray(image_HWC[:, :, 0] if gray else image_HWC)
    image = image.convert("L" if settings.channels == 1 else "RGB")
    top, left, bottom, right = _kept(image.height, image.width, settings.crop)
    side = min(bottom - top, right - left)
    if side * settings.enlarge < size:
        part = " after the crop" if settings.crop else ""
        raise InputError(
            f"the image is {image.width}x{image.height} px, its largest square{part} {side} px, and data.size is "
            f"{size}; lower data.size, remove the image, or raise data.enlarge (it is {settings.enlarge}; "
            f"{math.ceil(100 * size / max(side, 1)) / 100} would do)."
        )
    left, top = left + (right - left - side) // 2, top + (bottom - top - side) // 2
    image = image.crop((left, top, left + side, top + side))  # first: resize would blend in what lies outside a box
    if side != size:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(size, size, settings.channels)


def _kept(height: int, width: int, crop: tuple[float, float, float, float] | None) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of what `crop` keeps, in whole pixels."""
    top, left, bottom, right = crop or (0, 0, 1, 1)
    return round(top * height), round(left * width), round(bottom * height), round(right * width)
