"""What one member of a shard may hold, and how it becomes bytes and back: PNG pixels, JSON, .npy arrays, nothing else.

The table is explicit because webdataset's own decoder unpickles members whose names ask for it, and a shard may come
from anywhere. A field is named by its extension; the part after the last dot chooses the codec ("gradient.npy" -> npy).
"""

import io
import json
import math
import tokenize
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from xinv.errors import InputError


class FieldSchema(BaseModel):
    """What every value of one field is: the same dtype and shape in every sample of a set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str = Field(description="numpy name of the element type, little endian on disk; 'json' for a JSON object")
    shape: tuple[int, ...] = Field(
        description="(H, W, C) of images, (K,) of predictions, (M, h, w) of maps, () of JSON"
    )
    units: str = Field("", description="what a number means, for a person: '0..255', 'logits', 'gradient of the logit'")


def codec(name: str) -> str:
    """The codec of field `name` ("png", "json" or "npy"). InputError for any other."""
    kind = name.rpartition(".")[2]
    if kind not in DECODERS:
        raise InputError(f"a shard member .{name} is of no known kind; known kinds are {', '.join(DECODERS)}.")
    return kind


def schema_of(sample: Mapping[str, Any], units: Mapping[str, str] | None = None) -> dict[str, FieldSchema]:
    """The schema of `sample` (as given to `write_shard`), for an index; `units` names the units of some fields."""
    schema = {}
    for name, value in sample.items():
        if name == "__key__":
            continue
        unit = (units or {}).get(name, "")
        if codec(name) == "json":
            schema[name] = FieldSchema(dtype="json", shape=(), units=unit)
        else:
            array = _with_channels(value) if codec(name) == "png" else np.asarray(value)
            schema[name] = FieldSchema(dtype=array.dtype.name, shape=array.shape, units=unit)
    return schema


def encode(name: str, value: Any) -> bytes:
    """The bytes of one member: the same bytes for the same value."""
    return ENCODERS[codec(name)](value)


def decode(name: str, data: bytes | memoryview, schema: FieldSchema) -> Any:
    """The value in the bytes of one member. ValueError when it is not what `schema` promises; nothing is unpickled."""
    return DECODERS[codec(name)](data, schema)


def _with_channels(image: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) -> (H, W, C)."""
    return image[:, :, None] if image.ndim == 2 else image


def _encode_png(value: np.ndarray) -> bytes:
    image = _with_channels(np.asarray(value))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise InputError(
            f"an image of dtype {image.dtype} and shape {image.shape} cannot be stored as PNG; "
            "give uint8 of shape (H, W, 1) or (H, W, 3)."
        )
    stream = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else np.ascontiguousarray(image)).save(stream, "PNG")
    return stream.getvalue()


def _decode_png(data: bytes | memoryview, schema: FieldSchema) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            # Size and mode stand in the header: a picture of another size is refused before it is unpacked.
            found = (image.height, image.width, {"L": 1, "RGB": 3}.get(image.mode, 0))
            if found != schema.shape:
                raise ValueError(f"a {image.mode} picture of {image.width}x{image.height}, not of shape {schema.shape}")
            return _with_channels(np.array(image))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"no readable PNG ({error})") from None


def _encode_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _decode_json(data: bytes | memoryview, schema: FieldSchema) -> dict[str, Any]:
    try:
        value = json.loads(bytes(data).decode())
    except RecursionError:
        raise ValueError("JSON nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, not an object")
    return value


def _encode_npy(value: np.ndarray) -> bytes:
    array = np.asarray(value, order="C")
    if array.dtype.hasobject:
        raise InputError("an array of Python objects cannot be stored; give an array of numbers.")
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


@lru_cache(maxsize=64)
def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The bytes before the numbers of an .npy member as `_encode_npy` writes it."""
    stream = io.BytesIO()
    description = np.lib.format.dtype_to_descr(np.dtype(dtype).newbyteorder("<"))
    header = {"descr": description, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def _decode_npy(data: bytes | memoryview, schema: FieldSchema) -> np.ndarray:
    dtype = np.dtype(schema.dtype).newbyteorder("<")
    header = npy_header(schema.dtype, schema.shape)
    # The header we would have written is nearly always there: comparing it is 20 times faster than parsing it.
    same = data[: len(header)] == header
    offset = len(header) if same else _checked_header(bytes(data), dtype, schema.shape)
    size = dtype.itemsize * math.prod(schema.shape)
    if len(data) != offset + size:
        raise ValueError(f"an array of {len(data) - offset} bytes, not {size}")
    return np.frombuffer(data, dtype, offset=offset).reshape(schema.shape).copy()


def _checked_header(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """Where the numbers begin behind a header written otherwise than by us, which must promise `dtype` and `shape`.

    An array of objects is refused here, by its dtype, before anything could unpickle it.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        found, fortran, kind = read(stream)
    except (ValueError, SyntaxError, TypeError, EOFError, tokenize.TokenError) as error:
        raise ValueError(f"no readable .npy header ({error})") from None
    if kind != dtype or found != shape or (fortran and len(shape) > 1):
        order = " in Fortran order" if fortran else ""
        raise ValueError(f"an array of dtype {kind.name} and shape {found}{order}, not {dtype.name} {shape}")
    return stream.tell()


Encoder = Callable[[Any], bytes]
Decoder = Callable[[bytes | memoryview, FieldSchema], Any]
ENCODERS: dict[str, Encoder] = {"png": _encode_png, "json": _encode_json, "npy": _encode_npy}
DECODERS: dict[str, Decoder] = {"png": _decode_png, "json": _decode_json, "npy": _decode_npy}
