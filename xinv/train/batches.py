"""A batch on its way to a step: relabelled, cut into micro-batches, moved to the device.

Axes: B images; C, H, W of an image; K classes; M map channels; G explanations; A attributes.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F

from xinv.data.loader import Batch, floated
from xinv.errors import InputError


def relabelled(batch: Batch, answers: Mapping[str, int]) -> Batch:
    """`batch` with the number of each image's identity as its label. InputError for an identity that has none."""
    unknown = [identity for identity in batch.identity if identity not in answers]
    if unknown:
        raise InputError(
            f"identity {unknown[0]!r} is not among the {len(answers)} that the evaluator was trained to tell apart. "
            "Use data.split.disjoint: identity, which puts every victim's other images into the gallery."
        )
    return replace(batch, label_B=torch.tensor([answers[identity] for identity in batch.identity]))


def split(batch: Batch, pieces: int) -> list[Batch]:
    """`batch` in exactly `pieces` micro-batches, as even as can be; a piece without images gets one of weight 0."""
    rows = len(batch.key)
    parts = [list(range(start, rows, pieces)) for start in range(pieces)]
    if pieces == 1:
        return [batch]
    return [_take(batch, part or [0], keep_weight=bool(part)) for part in parts]


def _take(batch: Batch, rows: list[int], keep_weight: bool) -> Batch:
    weight_B = batch.weight_B[rows]
    return replace(
        batch,
        key=[batch.key[row] for row in rows],
        identity=[batch.identity[row] for row in rows],
        image_BCHW=batch.image_BCHW[rows],
        label_B=batch.label_B[rows],
        prediction_BK=None if batch.prediction_BK is None else batch.prediction_BK[rows],
        maps={name: map_BMHW[rows] for name, map_BMHW in batch.maps.items()},
        weight_B=weight_B if keep_weight else torch.zeros_like(weight_B),
        present_BG=None if batch.present_BG is None else batch.present_BG[rows],
        attribute_BA=None if batch.attribute_BA is None else batch.attribute_BA[rows],
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """`batch` with its tensors on `device`, and as float32 there: pixels go over the bus as bytes."""
    if device.type == "cpu":
        return floated(batch)
    prediction_BK, present_BG, attribute_BA = batch.prediction_BK, batch.present_BG, batch.attribute_BA
    moved = replace(
        batch,
        image_BCHW=batch.image_BCHW.to(device, non_blocking=True),
        label_B=batch.label_B.to(device, non_blocking=True),
        prediction_BK=None if prediction_BK is None else prediction_BK.to(device, non_blocking=True),
        maps={name: map_BMHW.to(device, non_blocking=True) for name, map_BMHW in batch.maps.items()},
        weight_B=batch.weight_B.to(device, non_blocking=True),
        present_BG=None if present_BG is None else present_BG.to(device, non_blocking=True),
        attribute_BA=None if attribute_BA is None else attribute_BA.to(device, non_blocking=True),
    )
    return floated(moved)


def shrunk(batch: Batch, size: int) -> Batch:
    """`batch` with images of `size` px a side, each pixel the mean of those that it stands for: what a network that
    grows with its images is taught. Maps stay as they were released."""
    if batch.image_BCHW.shape[2] == size:
        return batch
    return replace(batch, image_BCHW=F.adaptive_avg_pool2d(batch.image_BCHW, size))
