"""Tiny trees of files in the layouts of published sets, for the tests of sources."""

import gzip
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def shared(name: str) -> Path:
    """A file or folder of the real sets beside the repository; the test is skipped on machines that lack them."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    return path


def picture(path: Path, value: int = 90, size: tuple[int, int] = (20, 24), mode: str = "RGB") -> Path:
    """An image file of one colour: its red (or gray) is `value`; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value)).save(path)
    return path


def write_idx(path: Path, array: np.ndarray, kind: int = 8) -> Path:
    """`array` (uint8) as an IDX file; packed where the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def idx_folder(folder: Path, train: int = 6, test: int = 4, suffix: str = ".gz") -> Path:
    """The four files of a set of 5x3 px: pixel (0, 0) of image i is i, its label is i % 3."""
    for part, first, count in (("train", 0, train), ("t10k", train, test)):
        image_NHW = np.zeros((count, 3, 5), dtype=np.uint8)
        image_NHW[:, 0, 0] = np.arange(first, first + count)
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", image_NHW)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", np.arange(first, first + count) % 3)
    return folder


def celeba_tables(folder: Path, people: Sequence[int], smiling: Iterable[int]) -> None:
    """CelebA's two label files for 000001.jpg, 000002.jpg...: who, and 1 or -1 for Smiling; Male goes by person."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:06d}.jpg" for number in range(1, len(people) + 1)]
    pairs = list(zip(names, people, smiling, strict=True))
    (folder / "identity_CelebA.txt").write_text("".join(f"{name} {person}\n" for name, person, _ in pairs))
    rows = [f"{name}  {smile:2d} {1 if person % 2 else -1:2d} -1\n" for name, person, smile in pairs]
    (folder / "list_attr_celeba.txt").write_text(f"{len(names)}\nSmiling Male Wearing_Hat \n{''.join(rows)}")


def celeba_folder(folder: Path) -> Path:
    """CelebA with 6 pictures of people 7, 7, 7, 10, 10, 2; the odd ones smile. Red of picture n is 10 n."""
    celeba_tables(folder, [7, 7, 7, 10, 10, 2], [1, -1, 1, -1, 1, -1])
    for number in range(1, 7):
        picture(folder / "img_align_celeba" / f"{number:06d}.jpg", 10 * number)
    return folder
