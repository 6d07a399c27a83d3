"""The contact sheet: one PNG on which a person sees at a glance what a set of shards holds."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xinv.data.index import Index
from xinv.data.shards import read_shard
from xinv.files import write_atomic

TILE = 72  # px, side of one picture
GAP = 8
TITLE = 22
IMAGES_A_ROW = 12
SAMPLES_A_ROW = 3

# Blue, white, red for signed maps (zero is white, both signs on one scale); white to dark for maps of one sign.
DIVERGING = np.array(
    [[33, 78, 156], [122, 170, 214], [247, 247, 247], [226, 132, 104], [165, 20, 38]], dtype=np.float64
)
SEQUENTIAL = np.array([[252, 252, 250], [247, 196, 120], [214, 84, 60], [108, 20, 80], [24, 8, 40]], dtype=np.float64)


def colours(map_hw: np.ndarray, signed: bool) -> np.ndarray:
    """One map in colours, uint8 (h, w, 3). Scaled to its own largest magnitude; a map of zeros comes out white."""
    value_hw = np.nan_to_num(map_hw.astype(np.float64))
    scale = float(np.abs(value_hw).max()) or 1.0
    palette = DIVERGING if signed else SEQUENTIAL
    place_hw = (value_hw / scale + 1) / 2 if signed else value_hw / scale
    stops = np.linspace(0, 1, len(palette))
    return np.stack([np.interp(place_hw, stops, palette[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def contact_sheet(folder: Path, path: Path, rows: int) -> None:
    """Write to `path` a PNG that shows `rows` rows of every partition's first samples: images, or what was released.

    No more than the first shard of a partition holds. InputError as for `read_shard`.
    """
    index = Index.load(folder)
    shown = {}
    for partition, entries in index.partitions.items():
        if entries:
            shown[partition] = read_shard(folder, index, partition, 0, rows=range(rows * _columns(index)))
    write_atomic(path, draw(shown, index))


def _columns(index: Index) -> int:
    """How many samples one row of the sheet shows."""
    return IMAGES_A_ROW if index.kind == "images" else SAMPLES_A_ROW


def draw(shown: Mapping[str, Sequence[Mapping[str, Any]]], index: Index) -> bytes:
    """A PNG of the samples in `shown` (partition -> samples), a titled block a partition, its bytes.

    Image sets: the images. Release sets: for each sample the prediction as bars (softmax) and each map (the mean over
    its channels), diverging colours where any map shown of that method is negative.
    """
    if index.kind == "images":
        titles = ["image"]
        tiles = {name: [[_image_tile(sample["png"])] for sample in samples] for name, samples in shown.items()}
    else:
        methods = [name for name in index.fields if name != "prediction.npy" and len(index.fields[name].shape) == 3]
        everything = [sample for samples in shown.values() for sample in samples]
        signed = {name: any(float(sample[name].min()) < 0 for sample in everything) for name in methods}
        titles = ["prediction", *(name.removesuffix(".npy") for name in methods)]
        tiles = {
            name: [
                [_bars(sample["prediction.npy"]), *(_map_tile(sample[method], signed[method]) for method in methods)]
                for sample in samples
            ]
            for name, samples in shown.items()
        }
    return _laid_out(tiles, titles, index)


def _laid_out(tiles: Mapping[str, list[list[Image.Image]]], titles: list[str], index: Index) -> bytes:
    """Paste the tiles in titled blocks of rows."""
    a_row, step = _columns(index), TILE + GAP
    wide = len(titles) * step
    heads = TITLE if len(titles) > 1 else 0
    heights = {name: TITLE + heads + -(-len(samples) // a_row) * step for name, samples in tiles.items()}
    sheet = Image.new("RGB", (a_row * (wide + GAP) + GAP, sum(heights.values()) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    top = GAP
    for name, samples in tiles.items():
        entries = index.partitions[name]
        plural = "s" * (len(entries) > 1)
        text = f"{name}: {sum(entry.samples for entry in entries)} samples in {len(entries)} shard{plural}"
        pen.text((GAP, top), text, fill="black", font=font)
        for column in range(min(a_row, len(samples)) if heads else 0):
            for place, title in enumerate(titles):
                pen.text(
                    (GAP + column * (wide + GAP) + place * step, top + TITLE), title[:11], fill="#666666", font=font
                )
        for number, pictures in enumerate(samples):
            left = GAP + number % a_row * (wide + GAP)
            for place, picture in enumerate(pictures):
                sheet.paste(picture, (left + place * step, top + TITLE + heads + number // a_row * step))
        top += heights[name]
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def _image_tile(image_HWC: np.ndarray) -> Image.Image:
    image = Image.fromarray(image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC).convert("RGB")
    return _fitted(image)


def _map_tile(map_MHW: np.ndarray, signed: bool) -> Image.Image:
    return _fitted(Image.fromarray(colours(map_MHW.mean(axis=0, dtype=np.float64), signed)))


def _fitted(image: Image.Image) -> Image.Image:
    """Scaled to fit a tile: small ones by whole pixels, so that a person sees what is there and nothing smoothed in."""
    grows = max(image.size) <= TILE
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if grows else Image.Resampling.BOX)


def _bars(logit_K: np.ndarray) -> Image.Image:
    """The softmax of a prediction as bars, at most one a pixel column."""
    power_K = np.exp(logit_K.astype(np.float64) - logit_K.max())
    share_K = (power_K / power_K.sum())[:TILE]
    tile = Image.new("RGB", (TILE, TILE), "#f0f0ee")
    pen = ImageDraw.Draw(tile)
    width = TILE / len(share_K)
    for k, share in enumerate(share_K.tolist()):
        left, right = round(k * width), max(round(k * width), round((k + 1) * width) - 2)
        pen.rectangle((left, TILE - 1 - round(share * (TILE - 4)), right, TILE - 1), fill="#33567f")
    return tile
