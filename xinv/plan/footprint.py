"""Bytes on disk: shards of images and of releases, checkpoints."""

from dataclasses import dataclass

from xinv.config import AuditConfig
from xinv.data.fields import FieldSchema
from xinv.data.footprint import bytes_per_image
from xinv.plan.rehearsal import Rehearsed, ReleaseSet
from xinv.plan.shapes import schemas
from xinv.plan.step import Step


@dataclass(frozen=True)
class Footprint:
    """Bytes. Pictures are PNG, whose size their content decides: `images` is what photographs take (PNG_SHARE)."""

    images: int
    image_count: int
    releases: dict[str, int]
    released: dict[str, int]


def footprint(config: AuditConfig, rehearsed: Rehearsed) -> Footprint:
    """What an audit's data takes. `releases`: of each set; `released`: of one image, by explanation."""
    data, split = config.data, config.data.split
    count = split.target + split.attack + split.victim + split.gallery
    png = FieldSchema(dtype="uint8", shape=(data.size, data.size, data.channels))
    picture = sum(bytes_per_image({"png": png, "json": FieldSchema(dtype="json", shape=())}).values())
    return Footprint(
        images=count * picture,
        image_count=count,
        releases={one.title: _size(one) for one in rehearsed.releases},
        released={name: field.bytes for one in rehearsed.releases[:1] for name, field in one.fields.items()},
    )


def _size(one: ReleaseSet) -> int:
    return one.images * sum(bytes_per_image(schemas(one.fields)).values())


def checkpoint_bytes(step: Step, stage: int) -> int:
    """A training's newest checkpoint, over all ranks: weights, moments, from stage 1 on the fp32 copy; and the best
    weights. While one is written the last one is still there."""
    numbers = (1, 2, 1) if stage == 0 else (1, 3, 1)
    return 4 * sum(numbers) * step.total


def words(size: float) -> str:
    """1.5 GiB."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}" if size / scale < 999.5 else f"{size / scale:,.0f} {unit}"
    return f"{size:.0f} B"
