"""Release formats: what becomes of an explanation map between the explainer and whoever receives it.

Axes in tensor names: B batch, M map channels, h and w of a map, 3 colours.

A format is a step of its own, behind every method: map_BMhw float32 in, an array of the released dtype out, image by
image and, but for top-k, channel by channel. Integers are codes: a reader divides them by the largest of their dtype,
so that they come out in [0, 1] (`decode`; `xinv.data.loader` does the same). Bytes count a plain code of what is
released, not how a shard stores it: b bits a value where a value has 2**b levels, index and value of what top-k keeps,
one byte a coloured pixel, because a colour map has at most 256 colours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from xinv.data.fields import FieldSchema
from xinv.data.index import Index
from xinv.errors import InputError

Shape = tuple[int, int, int]
"""Of one map: channels, height, width."""

FLOAT_BITS = 32
COLOUR_BITS = 8

# Corner points (place, value) of each colour: piecewise linear, as in the rainbow map known as "jet".
JET = (
    ((0.0, 0.0), (0.35, 0.0), (0.66, 1.0), (0.89, 1.0), (1.0, 0.5)),
    ((0.0, 0.0), (0.125, 0.0), (0.375, 1.0), (0.64, 1.0), (0.91, 0.0), (1.0, 0.0)),
    ((0.0, 0.5), (0.11, 1.0), (0.34, 1.0), (0.65, 0.0), (1.0, 0.0)),
)
# Blue, white, red, darkening to both ends.
BLUE_RED = (
    ((0.0, 0.02), (0.25, 0.26), (0.5, 0.97), (0.75, 0.84), (1.0, 0.4)),
    ((0.0, 0.19), (0.25, 0.58), (0.5, 0.97), (0.75, 0.38), (1.0, 0.0)),
    ((0.0, 0.38), (0.25, 0.76), (0.5, 0.97), (0.75, 0.30), (1.0, 0.12)),
)
GREY = (((0.0, 0.0), (1.0, 1.0)),) * 3
COLOURS = {"jet": JET, "blue_red": BLUE_RED, "grey": GREY}


class FormatSettings(BaseModel):
    """In which format maps are released."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["raw", "minmax", "uint8", "bits", "top_k", "down_sample", "heat_map"] = Field(
        "raw",
        description="raw: float32 as computed. minmax: each map scaled to [0, 1] by itself, as pictures are. "
        "uint8, bits: then rounded to 256 or 2**bits levels. top_k: the largest magnitudes, zeros elsewhere. "
        "down_sample: means of blocks. heat_map: minmax, then colours.",
    )
    absolute: bool = Field(
        False, description="magnitudes are released, without signs (minmax, uint8, bits and heat_map; GNIME does so)"
    )
    bits: int = Field(8, ge=1, le=16, description="bits: bits a value")
    share: float = Field(0.1, gt=0, le=1, description="top_k: share of an image's map values that is kept")
    factor: int = Field(2, ge=1, description="down_sample: side of a block, in map values")
    colours: Literal["jet", "blue_red", "grey"] = Field("jet", description="heat_map: the colour map")

    @model_validator(mode="after")
    def _fits(self) -> "FormatSettings":
        known = FORMATS[self.name].parameters
        for name, field in type(self).model_fields.items():
            if name not in ("name", *known) and getattr(self, name) != field.default:
                raise ValueError(
                    f"the format {self.name} has no {name}; it has {', '.join(known) or 'no parameters'}. Formats with "
                    f"{name}: {', '.join(key for key, form in FORMATS.items() if name in form.parameters)}"
                )
        return self


@dataclass(frozen=True)
class Format:
    """One format."""

    name: str
    title: str
    parameters: tuple[str, ...]  # the settings that it reads
    apply: Callable[[np.ndarray, FormatSettings], np.ndarray]
    bits: Callable[[Shape, FormatSettings], int]  # of one image's released map, from the shape before the format
    units: Callable[[str, FormatSettings], str]  # of the stored numbers, from the method's own


def release(settings: FormatSettings, map_BMhw: np.ndarray, colours: int = 1) -> np.ndarray:
    """The maps as they are released: an array of the dtype and shape of the format.

    `map_BMhw`: float32, finite. `colours`: how many neighbouring channels are colours of one picture; a heat map shows
    their sum.
    """
    assert map_BMhw.ndim == 4 and map_BMhw.dtype == np.float32, (map_BMhw.shape, map_BMhw.dtype)
    return np.ascontiguousarray(FORMATS[settings.name].apply(_pictures(settings, map_BMhw, colours), settings))


def decode(released: np.ndarray) -> np.ndarray:
    """What a receiver makes of released maps, float32: codes in [0, 1], floats as they are."""
    if np.issubdtype(released.dtype, np.unsignedinteger):
        return released.astype(np.float32) / np.float32(np.iinfo(released.dtype).max)
    return released.astype(np.float32)


def bytes_per_image(settings: FormatSettings, shape: Shape, colours: int = 1) -> int:
    """Bytes that one image's map of `shape` (M, h, w), before the format, takes when released."""
    channels = shape[0] // colours if settings.name == "heat_map" else shape[0]
    return -(-FORMATS[settings.name].bits((channels, *shape[1:]), settings) // 8)


def stored(settings: FormatSettings, shape: Shape, colours: int = 1) -> FieldSchema:
    """What shards hold of one image's map of `shape` (M, h, w), before the format: dtype and shape, for an index.

    A plain array, whatever a code of it might need: top-k keeps its zeros, and 4 bits take a byte.
    """
    channels, height, width = shape
    dtype = "float32"
    if settings.name in ("uint8", "bits"):
        dtype = "uint16" if settings.name == "bits" and settings.bits > 8 else "uint8"
    elif settings.name == "heat_map":
        dtype, channels = "uint8", 3 * (channels // colours)
    elif settings.name == "down_sample":
        height, width = -(-height // settings.factor), -(-width // settings.factor)
    return FieldSchema(dtype=dtype, shape=(channels, height, width))


def units(settings: FormatSettings, plain: str) -> str:
    """The units of released numbers; `plain`: those of the method's maps."""
    return FORMATS[settings.name].units(plain, settings)


def released_bytes(index: Index, methods: Sequence[str]) -> float:
    """Bytes that a receiver gets for one image: its prediction and the maps of `methods`.

    From a release set's index; a set made before there were formats is counted by its dtype. InputError for a method
    that is not in the set.
    """
    counted = index.made_by.get("bytes_per_image", {})
    total = 0.0
    for name in ("prediction", *methods):
        if f"{name}.npy" not in index.fields:
            known = ", ".join(key.removesuffix(".npy") for key in index.fields)
            raise InputError(f"the release set holds no {name!r}; it has {known}.")
        schema = index.fields[f"{name}.npy"]
        total += counted.get(name, np.dtype(schema.dtype).itemsize * math.prod(schema.shape))
    return total


def _pictures(settings: FormatSettings, map_BMhw: np.ndarray, colours: int) -> np.ndarray:
    if settings.name != "heat_map" or colours == 1:
        return map_BMhw
    value_BMhw = np.abs(map_BMhw) if settings.absolute else map_BMhw
    batch, channels, height, width = value_BMhw.shape
    return value_BMhw.reshape(batch, channels // colours, colours, height, width).sum(axis=2)


def _raw(map_BMhw: np.ndarray, settings: FormatSettings) -> np.ndarray:
    return map_BMhw


def _minmax(map_BMhw: np.ndarray, settings: FormatSettings) -> np.ndarray:
    """Each channel of each image to [0, 1] by itself; a constant one to 0."""
    value_BMhw = np.abs(map_BMhw) if settings.absolute else map_BMhw
    low_BM11 = value_BMhw.min(axis=(2, 3), keepdims=True)
    span_BM11 = value_BMhw.max(axis=(2, 3), keepdims=True).astype(np.float64) - low_BM11
    # In float64: the span of two finite float32 may overflow, and differ from its own numerator by rounding.
    share_BMhw = (value_BMhw.astype(np.float64) - low_BM11) / np.where(span_BM11 > 0, span_BM11, 1.0)
    return share_BMhw.astype(np.float32)


def _quantised(map_BMhw: np.ndarray, settings: FormatSettings) -> np.ndarray:
    """Levels, spread over the whole range of uint8 or uint16, so that one rule decodes them all."""
    bits = 8 if settings.name == "uint8" else settings.bits
    dtype, largest, top = (np.uint8, 255, 2**bits - 1) if bits <= 8 else (np.uint16, 65535, 2**bits - 1)
    level_BMhw = np.rint(_minmax(map_BMhw, settings).astype(np.float64) * top)
    return np.rint(level_BMhw * (largest / top)).astype(dtype)


def _top_k(map_BMhw: np.ndarray, settings: FormatSettings) -> np.ndarray:
    """The largest magnitudes of an image's whole map; of equal ones, the first."""
    flat_BN = map_BMhw.reshape(len(map_BMhw), -1)
    kept_BN = np.argsort(-np.abs(flat_BN), axis=1, kind="stable")[:, : kept(map_BMhw.shape[1:], settings)]
    found_BN = np.zeros_like(flat_BN)
    np.put_along_axis(found_BN, kept_BN, np.take_along_axis(flat_BN, kept_BN, axis=1), axis=1)
    return found_BN.reshape(map_BMhw.shape)


def kept(shape: Sequence[int], settings: FormatSettings) -> int:
    """How many values of a map of `shape` top-k keeps: its share, rounded up."""
    # 0.07 * 100 is a little more than 7 in floats: do not let that count.
    return max(1, math.ceil(round(settings.share * math.prod(shape), 6)))


def _down_sampled(map_BMhw: np.ndarray, settings: FormatSettings) -> np.ndarray:
    """Means of blocks; those at the far edges are smaller where the factor does not divide the map."""
    total = map_BMhw.astype(np.float64)
    for axis in (2, 3):
        starts = np.arange(0, map_BMhw.shape[axis], settings.factor)
        sizes = np.diff(np.append(starts, map_BMhw.shape[axis]))
        total = np.add.reduceat(total, starts, axis=axis) / sizes.reshape((-1, 1) if axis == 2 else (-1,))
    return total.astype(np.float32)


def _heat_map(map_BMhw: np.ndarray, settings: FormatSettings) -> np.ndarray:
    """Three channels, red, green and blue, for each channel of the map."""
    level_BMhw = np.rint(_minmax(map_BMhw, settings).astype(np.float64) * 255).astype(np.int64)
    batch, channels, height, width = map_BMhw.shape
    return palette(settings.colours)[level_BMhw].transpose(0, 1, 4, 2, 3).reshape(batch, 3 * channels, height, width)


def palette(name: str) -> np.ndarray:
    """The colours of a colour map from 0 to 1, uint8 (256, 3)."""
    places = np.linspace(0, 1, 256)
    shades = [np.interp(places, [at for at, _ in points], [shade for _, shade in points]) for points in COLOURS[name]]
    return np.rint(255 * np.stack(shades, axis=1)).astype(np.uint8)


def _top_k_bits(shape: Shape, settings: FormatSettings) -> int:
    return kept(shape, settings) * (FLOAT_BITS + (math.prod(shape) - 1).bit_length())


def _down_sampled_bits(shape: Shape, settings: FormatSettings) -> int:
    channels, height, width = shape
    return FLOAT_BITS * channels * -(-height // settings.factor) * -(-width // settings.factor)


def _scaled(plain: str, settings: FormatSettings) -> str:
    return f"share of the map's own range of {'|' + plain + '|' if settings.absolute else plain}"


FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format(
            name="raw",
            title="raw float32",
            parameters=(),
            apply=_raw,
            bits=lambda shape, settings: FLOAT_BITS * math.prod(shape),
            units=lambda plain, settings: plain,
        ),
        Format(
            name="minmax",
            title="min-max",
            parameters=("absolute",),
            apply=_minmax,
            bits=lambda shape, settings: FLOAT_BITS * math.prod(shape),
            units=_scaled,
        ),
        Format(
            name="uint8",
            title="8 bit",
            parameters=("absolute",),
            apply=_quantised,
            bits=lambda shape, settings: 8 * math.prod(shape),
            units=lambda plain, settings: f"1/255 {_scaled(plain, settings)}",
        ),
        Format(
            name="bits",
            title="b bit",
            parameters=("absolute", "bits"),
            apply=_quantised,
            bits=lambda shape, settings: settings.bits * math.prod(shape),
            units=lambda plain, settings: (
                f"1/{255 if settings.bits <= 8 else 65535} {_scaled(plain, settings)}, {2**settings.bits} levels"
            ),
        ),
        Format(
            name="top_k",
            title="top-k",
            parameters=("share",),
            apply=_top_k,
            bits=_top_k_bits,
            units=lambda plain, settings: f"{plain}, the largest {100 * settings.share:g}% of magnitudes",
        ),
        Format(
            name="down_sample",
            title="down-sampled",
            parameters=("factor",),
            apply=_down_sampled,
            bits=_down_sampled_bits,
            units=lambda plain, settings: f"{plain}, means of blocks of {settings.factor}x{settings.factor}",
        ),
        Format(
            name="heat_map",
            title="heat map",
            parameters=("absolute", "colours"),
            apply=_heat_map,
            bits=lambda shape, settings: COLOUR_BITS * math.prod(shape),
            units=lambda plain, settings: (
                f"red, green, blue of the colour map {settings.colours}: {_scaled(plain, settings)}"
            ),
        ),
    )
}
