"""Images in one .npz file of numpy: any set the user has packed, and LFW faces with emotion labels.

A .npz is unpacked as a whole, so its images are held in memory; a set too large for that belongs in a folder.
"""

import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from xinv.data.records import Record, Source, label_counts, missing_file
from xinv.errors import InputError


class NpzSettings(BaseModel):
    """One .npz file: an array of images, an array of labels, and, where known, an array of identities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["npz"] = Field(description="arrays in one .npz file of numpy")
    file: Path = Field(description="the .npz file")
    images: str = Field("images", description="array of images: uint8, (N, H, W), (N, H, W, 1) or (N, H, W, 3)")
    labels: str = Field("labels", description="array of labels, (N,): whole numbers from 0, or names")
    identities: str | None = Field(
        None, description="array of who is shown, (N,): whole numbers or names; null: unknown"
    )
    label_names: str | None = Field(None, description="array of the labels' names; null: the labels name themselves")
    identity_names: str | None = Field(None, description="array of the identities' names; null: they name themselves")


class LfwEmotionSettings(BaseModel):
    """LFW faces with both labels: the emotion, which a target predicts, and the identity, which nobody should learn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["lfw_emotion"] = Field(description="LFW faces with emotion and identity, 64x64 gray, one .npz file")
    file: Path = Field(
        description=".npz file with the arrays images, identity, emotion, identity_names and emotion_names"
    )
    emotions: tuple[str, ...] | None = Field(
        None,
        min_length=2,
        description="emotions to keep, e.g. [neutral, happiness]; they are the labels in this order; null: all named "
        "but `unlabelled`",
    )


def open_npz(settings: NpzSettings) -> Source:
    """The images of one .npz file; image i has key i. The fingerprint is the file's SHA-256.

    InputError: a file or array that is missing, an array of another shape or type, a label without a name.
    """
    arrays = _Arrays(settings.file)
    image_NHWC = arrays.images(settings.images)
    label_N, names = arrays.named(settings.labels, settings.label_names, len(image_NHWC))
    people = None
    if settings.identities is not None:
        identity_N, known = arrays.named(settings.identities, settings.identity_names, len(image_NHWC))
        people = [known[identity] for identity in identity_N.tolist()]
    return arrays.source(image_NHWC, label_N, names, people, range(len(image_NHWC)))


def open_lfw_emotion(settings: LfwEmotionSettings) -> Source:
    """LFW (Huang et al. 2007) with emotion labels: press photographs, for research only; see docs/data.md.

    Image i of the file has key i, whichever emotions are kept. The fingerprint is the file's SHA-256.
    InputError as for `open_npz`, and for an emotion that the file does not name.
    """
    arrays = _Arrays(settings.file)
    image_NHWC = arrays.images("images")
    emotion_N, emotions = arrays.named("emotion", "emotion_names", len(image_NHWC))
    identity_N, names = arrays.named("identity", "identity_names", len(image_NHWC))
    kept = settings.emotions or tuple(emotion for emotion in emotions if emotion != "unlabelled")
    unknown = [emotion for emotion in kept if emotion not in emotions]
    if unknown or len(set(kept)) < len(kept):
        problem = f"has no emotion {unknown[0]!r}" if unknown else "is asked for one emotion twice"
        raise InputError(f"{arrays.path} {problem}; its emotions are {', '.join(emotions)}.")
    label_of = {emotions.index(emotion): label for label, emotion in enumerate(kept)}
    chosen = [i for i, emotion in enumerate(emotion_N.tolist()) if emotion in label_of]
    label_N = np.array([label_of.get(emotion, 0) for emotion in emotion_N.tolist()])
    return arrays.source(image_NHWC, label_N, kept, [names[i] for i in identity_N.tolist()], chosen)


class _Arrays:
    """The arrays of one .npz file, checked as they are taken out."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        if not self.path.is_file():
            raise missing_file(self.path, "a .npz file of images and labels", "Put it there, or correct the path.")
        with self.path.open("rb") as stream:
            self.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        try:
            opened = np.load(self.path, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path} is no .npz file ({error}).") from None
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise InputError(f"{self.path} is a single array (.npy); expected a .npz with images and labels.")
        self.archive = opened

    def take(self, name: str) -> np.ndarray:
        if name not in self.archive.files:
            raise InputError(f"{self.path} has no array {name!r}; it has {', '.join(self.archive.files)}.")
        try:
            found: Any = self.archive[name]
        except ValueError:
            raise InputError(f"{self.path}: {name} holds Python objects, which are never loaded.") from None
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path}: {name} cannot be read ({error}); the file is damaged.") from None
        return np.asarray(found)

    def images(self, name: str) -> np.ndarray:
        """uint8 (N, H, W, C) with C 1 or 3."""
        found = self.take(name)
        image_NHWC = found[..., None] if found.ndim == 3 else found
        if image_NHWC.dtype != np.uint8 or image_NHWC.ndim != 4 or image_NHWC.shape[3] not in (1, 3):
            raise InputError(
                f"{self.path}: {name} is {found.dtype} of shape {found.shape}; expected uint8 (0 to 255) of shape "
                "(N, H, W), (N, H, W, 1) or (N, H, W, 3)."
            )
        return image_NHWC

    def named(self, name: str, names: str | None, count: int) -> tuple[np.ndarray, tuple[str, ...]]:
        """Whole numbers (N,) from 0, and what each stands for."""
        found = self.take(name)
        if found.shape != (count,) or found.dtype.kind not in "iuU":
            raise InputError(
                f"{self.path}: {name} is {found.dtype} of shape {found.shape}; "
                f"expected whole numbers or names of shape ({count},), one for each image."
            )
        if found.dtype.kind == "U":
            if names is not None:
                raise InputError(f"{self.path}: {name} holds names already; leave out {names!r}.")
            known, number_N = np.unique(found, return_inverse=True)
            return number_N, tuple(known.tolist())
        known_names = (
            tuple(str(entry) for entry in self.take(names).tolist())
            if names is not None
            else tuple(str(number) for number in range(int(found.max(initial=0)) + 1))
        )
        wrong = np.flatnonzero((found < 0) | (found >= len(known_names)))
        if len(wrong):
            raise InputError(
                f"{self.path}: image {wrong[0]} has {name} {found[wrong[0]]}; expected 0 to {len(known_names) - 1}."
            )
        return found, known_names

    def source(
        self,
        image_NHWC: np.ndarray,
        label_N: np.ndarray,
        label_names: tuple[str, ...],
        people: list[str] | None,
        chosen: range | list[int],
    ) -> Source:
        records = tuple(Record(f"{i:08d}", int(label_N[i]), people[i] if people else f"{i:08d}", {}) for i in chosen)
        label_counts(records, label_names, self.path)
        return Source(
            records=records,
            label_names=label_names,
            fingerprint=self.sha256,
            synthetic=False,
            read=lambda position: image_NHWC[chosen[position]],
            name=lambda position: f"{self.path}, image {chosen[position]}",
        )
