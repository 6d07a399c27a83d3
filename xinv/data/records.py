"""What every source of images gives: records (who is shown, which label), pixels on demand, a fingerprint."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xinv.errors import InputError


@dataclass(frozen=True, slots=True)
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
    fingerprint: str  # SHA-256 of what was read, hexadecimal; each source says of what
    synthetic: bool  # true when the images show nothing real
    read: Callable[[int], np.ndarray]  # position in records -> image_HWC uint8, C 1 or 3; lazily, where sets are large
    name: Callable[[int], str] | None = None  # position in records -> the file behind it, for messages

    def where(self, position: int) -> str:
        """What to call the image at `position` in a message."""
        return self.name(position) if self.name else f"image {self.records[position].key}"


def fingerprint(parts: Iterable[bytes]) -> str:
    """SHA-256 over `parts`, each with its length, so that no two different lists of parts look the same."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def missing_file(path: Path, content: str, remedy: str) -> InputError:
    """The error for a file or folder of a source that is not there."""
    return InputError(f"{path} is missing; it should be {content}. {remedy} See docs/data.md.")


def label_counts(records: Iterable[Record], label_names: tuple[str, ...], place: Path) -> None:
    """Refuse a set whose images all bear one label: there is nothing a target could learn to tell apart."""
    present = {record.label for record in records}
    if len(present) < 2:
        shown = ", ".join(label_names[label] for label in sorted(present)) or "none"
        raise InputError(f"{place}: a target needs images of at least two labels; this source has {shown}.")
