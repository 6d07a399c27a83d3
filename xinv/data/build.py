"""From a source to image shards: split, bring to size, shuffle, write."""

import functools
import math
import os
import statistics
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import PIL
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator

import xinv
from xinv.data.attacker import AttackerSettings, open_images
from xinv.data.entries import Entry, RunTasks, Task, entry_path, finished_entries, remove_entries
from xinv.data.fields import FieldSchema, encode
from xinv.data.index import INDEX_NAME, Index, ShardEntry, shard_path
from xinv.data.shards import write_shard
from xinv.data.sources import Source, SourceSettings
from xinv.data.splits import PARTITIONS, SplitSettings, split
from xinv.errors import InputError
from xinv.files import digest, make_private
from xinv.progress import Progress, counted, silent

Chosen = tuple[str, int, list[int]]
"""A shard to make: its partition and number, and the positions in the source of its images."""

WORTH = 15.0  # seconds of work for one process that are worth the start of workers
PROBES = 5  # images that are timed to find out

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


class Builder:
    """Makes image shards: opens the source once, then is called with task after task.

    Raises:
        InputError: the source is missing, or is not the one with this `fingerprint`; then, an image that is damaged,
            too small or of the wrong channels, with its name.
    """

    def __init__(
        self, settings: DataSettings, folder: Path, made_by: str, fingerprint: str, source: Source | None = None
    ) -> None:
        """`source`: already open; None: open it."""
        self.settings, self.folder, self.made_by = settings, folder, made_by
        self.source = open_images(settings.source, settings.attacker)[0] if source is None else source
        if self.source.fingerprint != fingerprint:
            raise InputError(
                f"the source {settings.source.kind} holds other images here than where the build was started; give all "
                "machines the same files, and change none of them meanwhile."
            )

    def __call__(self, task: Chosen) -> dict[str, Any]:
        """Make the shard of `task`; its entry."""
        partition, number, positions = task
        shard = write_shard(shard_path(self.folder, partition, number), map(self.sample, positions))
        entry = Entry(made_by=self.made_by, shard=shard)
        entry.save(self.folder, (partition, number))
        return entry.model_dump(mode="json")

    def sample(self, position: int) -> dict[str, Any]:
        """The image at `position` of the source as a shard holds it."""
        record = self.source.records[position]
        image_HWC = self.source.read(position)
        try:
            image_HWC = fitted(image_HWC, self.settings)
        except InputError as error:
            raise InputError(f"{self.source.where(position)}: {error}") from None
        return {
            "__key__": record.key,
            "png": image_HWC,
            "json": {"label": record.label, "identity": record.identity, "attributes": record.attributes},
        }

    def seconds(self, tasks: Sequence[Chosen]) -> float:
        """About how long one process works on `tasks`, from a few images of theirs."""
        times: list[float] = []
        for position in tasks[0][2][:PROBES]:
            begun = time.perf_counter()
            encode("png", self.sample(position)["png"])
            times.append(time.perf_counter() - begun)
        return statistics.median(times) * sum(len(positions) for _, _, positions in tasks)


def _opened_builder(directory: Path, *arguments: Any) -> Builder:
    """A Builder in a worker, for which relative paths mean what they meant where the build was started."""
    os.chdir(directory)
    return Builder(*arguments)


def build_images(
    settings: DataSettings,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
    run_tasks: RunTasks | None = None,
) -> Index:
    """Write the image shards of every partition into `folder`, then their index, and return it.

    Within a partition the order is a seeded shuffle. The same settings, seed and source give the same bytes (Pillow and
    numpy versions equal), whoever makes them. Of what an interrupted build left in `folder`, shards that the same
    settings, seed and source made are kept, after a look at their bytes; all else is removed, an index at first.

    Args:
        progress: counts images, a shard at a time.
        run_tasks: workers that make shards side by side, for work that is worth their start (`WORTH`); None: this
            process makes them all.

    Raises:
        InputError: a source that is missing, too few images; an image that is damaged, too small or of the wrong
            channels, with its name. OSError: the disk.
    """
    source, attackable, shared = open_images(settings.source, settings.attacker)
    parts = split(source.records, settings.split, seed, attackable, shared)
    made_by = _made_by(settings, seed, source)
    tasks = _tasks(parts, settings, seed)
    make_private(folder)
    (folder / INDEX_NAME).unlink(missing_ok=True)
    sizes = {(partition, number): len(positions) for partition, number, positions in tasks}
    entries = finished_entries(Entry, folder, sizes, digest(made_by))
    _clear(folder, entries)
    rest = [task for task in tasks if task[:2] not in entries]
    if rest:
        arguments = (settings, folder.resolve(), digest(made_by), source.fingerprint)
        builder = Builder(*arguments, source)
        told = counted(progress or silent, [sizes[task[:2]] for task in rest], sum(sizes[task] for task in entries))
        if run_tasks is not None and len(rest) > 1 and builder.seconds(rest) > WORTH:
            made = run_tasks(functools.partial(_opened_builder, Path.cwd(), *arguments), rest, progress=told)
        else:
            made = _in_turn(builder, rest, told)
        entries |= {task[:2]: Entry.model_validate(entry) for task, entry in zip(rest, made, strict=True)}
    index = _index(settings, source, made_by, {task: entries[task].shard for task in sizes})
    index.save(folder)
    remove_entries(folder, list(sizes))
    return index


def _tasks(parts: dict[str, list[int]], settings: DataSettings, seed: int) -> list[Chosen]:
    """Every shard, with the positions in the source of its images in their order."""
    found: list[Chosen] = []
    for place, partition in enumerate(PARTITIONS):
        order = np.random.default_rng([seed, 1, place]).permutation(parts[partition]).tolist()
        cuts = range(0, len(order), settings.shard_samples)
        found += [(partition, number, order[cut : cut + settings.shard_samples]) for number, cut in enumerate(cuts)]
    return found


def _clear(folder: Path, kept: Collection[Task]) -> None:
    """Remove what an interrupted build left in `folder`, but for the shards `kept` and their entries."""
    wanted = {path for task in kept for path in (shard_path(folder, *task), entry_path(folder, task))}
    for partition in PARTITIONS:
        for leftover in (folder / partition).glob("*"):
            if leftover not in wanted and leftover.name.endswith((".tar", ".entry.json", ".partial")):
                leftover.unlink()


def _in_turn(builder: Builder, tasks: Sequence[Chosen], progress: Progress) -> list[dict[str, Any]]:
    """What workers do, done here."""
    made: list[dict[str, Any]] = []
    progress(0, len(tasks), "")
    for task in tasks:
        made.append(builder(task))
        progress(len(made), len(tasks), "")
    return made


def _index(settings: DataSettings, source: Source, made_by: dict[str, Any], shards: dict[Task, ShardEntry]) -> Index:
    return Index(
        kind="images",
        made_by=made_by,
        label_names=source.label_names,
        synthetic=source.synthetic,
        fields={
            "png": FieldSchema(
                dtype="uint8", shape=(settings.size, settings.size, settings.channels), units="intensity, 0..255"
            ),
            "json": FieldSchema(dtype="json", shape=(), units="label, identity, attributes"),
        },
        partitions={
            partition: tuple(shard for task, shard in shards.items() if task[0] == partition)
            for partition in PARTITIONS
        },
    )


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
