"""Image files sorted into folders: one folder a class, one a person, or one inside the other."""

from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from xinv.data.pictures import SUFFIXES, open_pictures
from xinv.data.records import Record, Source, fingerprint, label_counts, missing_file
from xinv.errors import InputError


class FoldersSettings(BaseModel):
    """A tree of image files whose paths say the label, the identity, or both."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["folders"] = Field(description="image files sorted into folders by class, by person, or by both")
    folder: Path = Field(description="the outermost folder, or a .zip of it")
    layout: Literal[
        "label/*", "identity/*", "label/identity/*", "identity/label/*", "label/identity.*", "identity/label.*"
    ] = Field(
        description="what names of folders and files mean, from the outside; * is any name. label/*: a folder a class, "
        "identities unknown. identity/*: a folder a person, and the person is the label. identity.*: the file is named "
        "after the person"
    )


def open_folders(settings: FoldersSettings) -> Source:
    """Every image file below the folder, in the order of names; labels are the sorted names of their folders.

    Files are read when asked for. The fingerprint is over the sorted names and sizes (`Pictures.listing`), not over the
    contents. Files with other suffixes and hidden files are no images and are not looked at. InputError: a missing or
    empty folder, an image at a depth where the layout gives it no label, files in one folder for one label only.
    """
    folder = settings.folder.expanduser()
    if not folder.exists():
        raise missing_file(folder, f"a folder (or .zip) of images laid out as {settings.layout}", "Correct the path.")
    pictures = open_pictures(folder)
    names = tuple(pictures.stamps)
    levels = settings.layout.split("/")
    facts = [_facts(name, levels, settings.layout, pictures.where(name)) for name in names]
    labels = [fact.get("label", fact.get("identity", "")) for fact in facts]
    label_names = tuple(sorted(set(labels)))
    label_of = {label: number for number, label in enumerate(label_names)}
    records = tuple(
        Record(f"{i:08d}", label_of[label], fact.get("identity", f"{i:08d}"), {})
        for i, (fact, label) in enumerate(zip(facts, labels, strict=True))
    )
    label_counts(records, label_names, folder)
    return Source(
        records=records,
        label_names=label_names,
        fingerprint=fingerprint([settings.layout.encode(), pictures.listing()]),
        synthetic=False,
        read=lambda position: pictures.read(names[position]),
        name=lambda position: pictures.where(names[position]),
    )


def _facts(name: str, levels: list[str], layout: str, where: str) -> dict[str, str]:
    """What the path `name` says: {"label": ...} and, or, {"identity": ...}."""
    parts = PurePosixPath(name).parts
    if len(parts) != len(levels):
        raise InputError(
            f"{where} does not fit the layout {layout}: expected {len(levels) - 1} folder(s) around each image "
            f"({', '.join(SUFFIXES)}), found {len(parts) - 1}; move it, or correct source.folder or source.layout."
        )
    found = dict(zip(levels, parts, strict=True))
    stem = PurePosixPath(name).stem
    return {level.removesuffix(".*"): stem if level.endswith(".*") else part for level, part in found.items()}
