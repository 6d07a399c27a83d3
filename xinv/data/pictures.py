"""Image files in a folder or in a .zip: listed at once, read one at a time, never all in memory."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from xinv.errors import InputError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's other readers are never tried
GRAY = ("1", "L")
COLOUR = ("RGB", "P", "CMYK", "YCbCr", "LAB", "HSV")
ALPHA = ("LA", "PA", "RGBA", "La", "RGBa")


@dataclass(frozen=True)
class Pictures:
    """The image files below a folder or in a .zip, by their names: paths relative to it, with /."""

    place: Path
    stamps: dict[str, str]  # name -> bytes of the file (and its CRC in a .zip), in the order of names
    content: Callable[[str], bytes]

    def where(self, name: str) -> str:
        return str(self.place / name)

    def read(self, name: str) -> np.ndarray:
        """image_HWC uint8, C 1 for gray files and 3 for colour. InputError names a file that is no whole image."""
        return decode(self.content(name), self.where(name))

    def listing(self) -> bytes:
        """What stands for all the pictures in a fingerprint: every name and size. Contents are not read: a folder of
        200,000 files would take minutes at every start. Whoever edits a picture in place without changing its size
        must remove the made shards."""
        return "\n".join(f"{name}\t{stamp}" for name, stamp in self.stamps.items()).encode()


def open_pictures(place: Path) -> Pictures:
    """The pictures in the folder or .zip `place`, which is there. InputError: it holds none, or is no readable .zip."""
    if place.is_dir():
        found = Pictures(place, dict(sorted(_folder(place))), lambda name: _file(place / name))
    else:
        found = _zip(place)
    if not found.stamps:
        raise InputError(f"{place} holds no image files ({' '.join(SUFFIXES)}).")
    return found


def decode(content: bytes, where: str) -> np.ndarray:
    """The image in `content` as image_HWC uint8, C 1 or 3, turned upright as its EXIF data say.

    Palettes and CMYK become RGB. InputError, with `where`: no image, a cut one, more than 8 bits, transparency.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except (
        Image.DecompressionBombError,
        OSError,
        EOFError,
        OverflowError,
        SyntaxError,  # Pillow's word for a broken PNG
        ValueError,
        struct.error,
        zlib.error,
    ) as error:
        problem = "empty" if not content else str(error).replace(repr(content), "").strip() or type(error).__name__
        if "cannot identify" in problem:
            problem = f"not one of {', '.join(FORMATS)}"
        raise InputError(f"{where} cannot be read as an image ({problem}); replace or remove it.") from None
    if image.mode in ALPHA or "transparency" in image.info:
        image = _opaque(image, where)
    if image.mode in GRAY:
        return np.asarray(image.convert("L"))[:, :, None]
    if image.mode in COLOUR:
        return np.asarray(image.convert("RGB"))
    raise InputError(f"{where} has pixels of kind {image.mode}; expected 8 bits a channel, gray or colour: convert it.")


def _opaque(image: Image.Image, where: str) -> Image.Image:
    gray = image.mode in ("LA", "La", "L")
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() != (255, 255):
        raise InputError(f"{where} is transparent in places; put it on a background first.")
    return image.convert("L" if gray else "RGB")


def _folder(place: Path) -> Iterator[tuple[str, str]]:
    """(name, size) of every image file below `place`. Hidden files and folders are no part of a set."""
    waiting = [("", str(place))]
    while waiting:  # plain strings: for 200,000 files Path objects would take most of the time
        prefix, folder = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append((f"{prefix}{entry.name}/", entry.path))
                elif entry.name.lower().endswith(SUFFIXES):
                    try:
                        yield prefix + entry.name, str(entry.stat().st_size)
                    except FileNotFoundError:
                        raise InputError(f"{entry.path} is a link to a file that is not there; remove it.") from None


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f"{path} was listed and cannot be read now ({error.strerror}).") from None


def _zip(place: Path) -> Pictures:
    try:
        archive = zipfile.ZipFile(place)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{place} is no folder and no readable .zip ({error}); fetch it again.") from None
    members = {
        member.filename: member
        for member in archive.infolist()
        if member.filename.lower().endswith(SUFFIXES) and not PurePosixPath(member.filename).name.startswith(".")
    }

    def content(name: str) -> bytes:
        try:
            return archive.read(members[name])
        except (OSError, EOFError, RuntimeError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
            raise InputError(f"{place}: member {name} cannot be read ({error}); fetch the .zip again.") from None

    stamps = {name: f"{member.file_size} {member.CRC:08x}" for name, member in sorted(members.items())}
    return Pictures(place, stamps, content)
