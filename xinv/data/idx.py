"""IDX files: MNIST, Fashion-MNIST, and every set published in their format (KMNIST, QMNIST...).

The format (LeCun et al., "The MNIST database"): four bytes 0, 0, type, number of dimensions (type 8 is unsigned byte),
one big-endian 32-bit size a dimension, then the bytes in row-major order.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from xinv.data.records import Record, Source, fingerprint, label_counts, missing_file
from xinv.errors import InputError

PARTS = ("train", "t10k")
DIMENSIONS = {"images": 3, "labels": 1}


class IdxSettings(BaseModel):
    """A folder with the four files of MNIST, Fashion-MNIST or a set of the same format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["idx"] = Field(description="the four IDX files of MNIST or Fashion-MNIST; training and test joined")
    folder: Path = Field(description="folder with train-images-idx3-ubyte and its three companions, plain or .gz")
    label_names: tuple[str, ...] | None = Field(
        None, min_length=2, description="names of labels 0, 1, 2...; null: their numbers"
    )


def open_idx(settings: IdxSettings) -> Source:
    """All images of the four files, training first: image i of MNIST has key i, test images begin at 00060000.

    Held in memory (MNIST: 55 MB). The fingerprint is over the unpacked contents, so that a packed and an unpacked copy
    are the same source. InputError: a file that is missing, cut, of another kind; files that do not fit each other.
    """
    folder = settings.folder.expanduser()
    contents, images, labels = [], [], []
    for part in PARTS:
        image_NHW, packed_images = _read(folder, part, "images")
        label_N, packed_labels = _read(folder, part, "labels")
        if len(image_NHW) != len(label_N):
            raise InputError(
                f"{folder}: the {part} files do not belong together, "
                f"one has {len(image_NHW)} images and the other {len(label_N)} labels."
            )
        images.append(image_NHW)
        labels.append(label_N)
        contents += [packed_images, packed_labels]
    if images[0].shape[1:] != images[1].shape[1:]:
        raise InputError(
            f"{folder}: the {PARTS[0]} images are {_size(images[0])} and the {PARTS[1]} images {_size(images[1])}; "
            "they are of two different sets."
        )
    image_NHWC, label_N = np.concatenate(images)[..., None], np.concatenate(labels)
    names = settings.label_names or tuple(str(number) for number in range(int(label_N.max(initial=0)) + 1))
    if len(label_N) and label_N.max() >= len(names):
        raise InputError(
            f"{folder}: labels go up to {label_N.max()}, and label_names has {len(names)} names; "
            f"give {label_N.max() + 1} names."
        )
    keys = [f"{number:08d}" for number in range(len(label_N))]
    records = tuple(Record(key, label, key, {}) for key, label in zip(keys, label_N.tolist(), strict=True))
    label_counts(records, names, folder)
    return Source(records, names, fingerprint(contents), False, image_NHWC.__getitem__)


def _read(folder: Path, part: str, content: str) -> tuple[np.ndarray, bytes]:
    """The array in one of the four files, and the file's unpacked bytes."""
    dimensions = DIMENSIONS[content]
    name = f"{part}-{content}-idx{dimensions}-ubyte"
    choices = [folder / (stem + suffix) for stem in (name, name.replace("-idx", ".idx")) for suffix in ("", ".gz")]
    path = next((choice for choice in choices if choice.is_file()), None)
    if path is None:
        raise missing_file(
            folder / f"{name}.gz",
            "one of the four IDX files of MNIST, Fashion-MNIST or a set like them",
            f"`xinv data fetch mnist {folder}` (or fashion_mnist) downloads and checks them; files of these names, "
            "plain or packed with gzip, may also be copied there.",
        )
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} cannot be unpacked ({error}); it is damaged, fetch it again.") from None
    header = 4 + 4 * dimensions
    magic = bytes([0, 0, 8, dimensions])
    if data[:4] != magic:
        raise InputError(
            f"{path} begins with {data[:4].hex(' ') or 'nothing'}, expected {magic.hex(' ')}: "
            f"it is no IDX file of {content}."
        )
    shape = tuple(int(size) for size in np.frombuffer(data[4:header], ">u4")) if len(data) >= header else ()
    if len(shape) != dimensions or len(data) != header + math.prod(shape):
        says = f"its header announces {header + math.prod(shape):,}" if shape else "that is less than its header"
        raise InputError(f"{path} holds {len(data):,} bytes, and {says}; it is cut or damaged, fetch it again.")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape), data


def _size(image_NHW: np.ndarray) -> str:
    return f"{image_NHW.shape[2]}x{image_NHW.shape[1]} px"
