"""The picture grid of the report: originals, what was released of them, what the attacks made of it.

Axes: N pictured images, H height, W width, C channels, M maps of one explanation.
"""

import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from xinv.errors import InputError
from xinv.report import figures, rows
from xinv.report.rows import Scores

PICTURED = 10  # people in the grid: more do not fit a page at a size at which one can see anything

Keep = Callable[[Image.Image, int], str]
"""Keeps the picture in that place of a strip in full size and tells its address; empty where it is not kept."""


def nowhere(image: Image.Image, place: int) -> str:
    return ""


@dataclass(frozen=True)
class Strip:
    """A row of the picture grid: the same step for each of the pictured images."""

    title: str
    detail: str
    pictures: tuple[str, ...]
    full: tuple[str, ...]  # the address of each one in full size, empty where the page itself has that
    kind: str  # "original", "released", "reconstruction" or "control"
    crisp: bool  # enlarged without smoothing, so that every pixel is one square


@dataclass(frozen=True)
class Gallery:
    """The picture grid, with the keys of its images, or nothing when no picture was kept."""

    keys: tuple[str, ...]
    strips: tuple[Strip, ...]
    signed: bool
    unsigned: bool

    @property
    def reduced(self) -> bool:
        """Whether a picture is larger than the page shows it."""
        return any(any(strip.full) for strip in self.strips)


def gallery(scores: Scores, path: Path, beside: figures.Beside) -> Gallery:
    """The grid from the pictures.npz in `path`: `key` (N,) text, `original` (N, H, W, C) uint8, `map:<method>`
    (N, M, h, w) float32, `reconstruction:<attack>` (N, H, W, C) uint8. The first PICTURED are shown. Those that are
    reduced for the page are kept `beside` it in full size. InputError when the file is missing or damaged.
    """
    arrays = _load(path)
    keys = tuple(str(key) for key in arrays["key"][:PICTURED])
    maps = {name.partition(":")[2]: arrays[name][:PICTURED] for name in arrays if name.startswith("map:")}
    signed = {method: figures.is_signed(values) for method, values in maps.items()}

    def kept(name: str) -> Keep:
        return lambda image, place: beside.keep(image, name, keys[place])

    strips = [picture_strip("Original", "never seen by the attacker", "original", arrays["original"], kept("original"))]
    drawn: set[str] = set()
    title = rows.titles(scores)
    for row in rows.ordered_rows(
        scores, subsets=True
    ):  # those whose pictures were kept: of subsets single explanations
        control = row["kind"] == "control"
        for method in row["release"]:
            if method in maps and method not in drawn and not control:
                drawn.add(method)
                strips.append(_map_strip(method, maps[method], signed[method], kept(method)))
        name = f"reconstruction:{row['attack']}"
        if name in arrays:
            inverter = str(row["inverter"] or "")
            heading = f"Control: {title[row['attack']]}" if control else "Reconstruction"
            if control:
                detail = "" if inverter.lower() == title[row["attack"]].lower() else inverter
            else:
                detail = " · ".join(filter(None, (rows.row_title(row), inverter)))
            kind = "control" if control else "reconstruction"
            strips.append(picture_strip(heading, detail, kind, arrays[name], kept(row["attack"])))
    used = {signed[method] for method in drawn}
    return Gallery(keys, tuple(strips), signed=True in used, unsigned=False in used)


def picture_strip(title: str, detail: str, kind: str, image_NHWC: np.ndarray, keep: Keep = nowhere) -> Strip:
    images = (figures.picture(image_HWC) for image_HWC in image_NHWC[:PICTURED])
    return _strip(title, detail, kind, images, keep, crisp=image_NHWC.shape[1] < 100)


def _strip(title: str, detail: str, kind: str, images: Iterable[Image.Image], keep: Keep, crisp: bool) -> Strip:
    found = [(figures.uri(image), keep(image, place)) for place, image in enumerate(images)]
    return Strip(title, detail, tuple(uri for uri, _ in found), tuple(full for _, full in found), kind, crisp)


def _map_strip(method: str, map_NMHW: np.ndarray, signed: bool, keep: Keep) -> Strip:
    maps, height, width = map_NMHW.shape[1:]
    detail = (
        f"released, {height} × {width} values" if maps == 1 else f"released, mean of {maps} maps of {height} × {width}"
    )
    images = (figures.explanation(map_MHW, signed) for map_MHW in map_NMHW)
    return _strip(rows.explanation_title(method), detail, "released", images, keep, crisp=height < 100)


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of pictures.npz, never unpickled."""
    advice = "Remove the scores and run the audit again: scoring writes both."
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise InputError(f"{path} is missing. {advice}") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged ({error}). {advice}") from None
    for name in ("key", "original"):
        if name not in arrays:
            raise InputError(f"{path} holds no array {name!r}. {advice}")
    uneven = [name for name in arrays if len(arrays[name]) != len(arrays["key"])]
    if uneven:
        raise InputError(
            f"{path}: {uneven[0]!r} has {len(arrays[uneven[0]])} rows, {len(arrays['key'])} expected. {advice}"
        )
    return arrays
