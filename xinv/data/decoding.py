"""From places in shard files to arrays: what a decoder does, in this process or in another one. Knows no torch.

A request is plain data: files, and of each field where the value of every row lies. Its answer is one array a field,
(rows, ...): pictures as CHW, maps and predictions as they are stored, without a copy in between.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from xinv.data.fields import FieldSchema, codec, decode, npy_header
from xinv.data.index import MEND
from xinv.data.shards import Stamp, damaged, stamp_of
from xinv.errors import InputError

ALIGNMENT = 64  # bytes: where arrays may begin


@dataclass(frozen=True)
class Request:
    """Rows to decode."""

    files: list[tuple[str, Stamp]]  # path, and what was true of the file when it was checked
    keys: list[str]  # of each row
    schemas: dict[str, FieldSchema]
    places: dict[str, list[list[int]]]  # field -> of each row: (position in files, offset, bytes)

    def to_json(self) -> bytes:
        schemas = {name: schema.model_dump(mode="json") for name, schema in self.schemas.items()}
        return json.dumps([self.files, self.keys, schemas, self.places]).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Request":
        files, keys, schemas, places = json.loads(text)
        return cls(
            [(path, tuple(stamp)) for path, stamp in files],
            keys,
            {name: FieldSchema.model_validate(schema) for name, schema in schemas.items()},
            places,
        )

    def layout(self) -> tuple[int, dict[str, tuple[int, str, tuple[int, ...]]]]:
        """(bytes in all, of each field where its array begins, its dtype and shape) of the answer in one piece."""
        end, found = 0, {}
        for name, schema in self.schemas.items():
            dtype, shape = decoded_as(name, schema)
            found[name] = (end, dtype, (len(self.keys), *shape))
            size = np.dtype(dtype).itemsize * math.prod((len(self.keys), *shape))
            end += -(-size // ALIGNMENT) * ALIGNMENT
        return end, found


def decoded_as(name: str, schema: FieldSchema) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape) of one decoded value: pictures as (C, H, W), all else as it is stored."""
    if codec(name) == "png":
        height, width, channels = schema.shape
        return schema.dtype, (channels, height, width)
    return schema.dtype, schema.shape


def arrays_in(buffer: Any, request: Request) -> dict[str, np.ndarray]:
    """The arrays of the answer to `request` in `buffer`, which they keep alive."""
    _, layout = request.layout()
    return {
        name: np.frombuffer(buffer, dtype, math.prod(shape), begin).reshape(shape)
        for name, (begin, dtype, shape) in layout.items()
    }


def empty_arrays(request: Request) -> dict[str, np.ndarray]:
    """Arrays for the answer to `request`, in memory of their own."""
    return {name: np.empty(shape, dtype) for name, (_, dtype, shape) in request.layout()[1].items()}


def fill(request: Request, out: Mapping[str, np.ndarray]) -> None:
    """Decode the rows of `request` into `out`.

    InputError: a file that changed since it was checked, a value that is not what its schema says. OSError: the disk.
    """
    with contextlib.ExitStack() as opened:
        descriptors = [_opened(path, stamp, opened) for path, stamp in request.files]
        for row, key in enumerate(request.keys):
            for name, places in request.places.items():
                file, offset, size = places[row]
                try:
                    _take(descriptors[file], offset, size, name, request.schemas[name], out[name][row])
                except ValueError as error:
                    raise InputError(damaged(request.files[file][0], key, name, error)) from None


def _opened(path: str, stamp: Stamp, opened: contextlib.ExitStack) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InputError(f"{path} was there and is gone. {MEND}") from None
    opened.callback(os.close, descriptor)
    if stamp_of(descriptor) != stamp:
        raise InputError(f"{path} has changed since it was checked; let nothing write to a finished set. {MEND}")
    return descriptor


def _take(descriptor: int, offset: int, size: int, name: str, schema: FieldSchema, out: np.ndarray) -> None:
    """Decode one value into `out`."""
    if codec(name) == "png":
        out[...] = decode(name, os.pread(descriptor, size, offset), schema).transpose(2, 0, 1)
        return
    expected = npy_header(schema.dtype, schema.shape)
    if size == len(expected) + out.nbytes:
        # The header that we would have written is nearly always there, and then the numbers need no copy.
        header = bytearray(len(expected))
        if os.preadv(descriptor, [header, out.data], offset) == size and header == expected:
            return
    out[...] = decode(name, os.pread(descriptor, size, offset), schema)
