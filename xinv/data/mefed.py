"""iCV-MEFED (Guo et al. 2018, IEEE Access 6): 125 people, each acting 50 compound emotions five times; on request only.

Known, from the authors' page and paper: 31,250 photographs of 5184x3456 px; a label A_B, where A is the complementary
and B the dominant emotion (1_7 is angrily surprised), with 1 anger, 2 contempt, 3 disgust, 4 fear, 5 happiness,
6 sadness, 7 surprise, N neutral; 50 classes.
Assumed: how files and folders are named, which is not published. The default pattern takes the outermost folder as the
person and the first A_B after it, in a folder's or the file's name, as the label: s001/1_7/3.jpg, s001/1_7_3.JPG,
s001/img_1_7_3.jpg. For other trees set `pattern`. Also assumed: the 50 classes are the 7x7 pairs and one neutral, N_N.
"""

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from xinv.data.pictures import open_pictures
from xinv.data.records import Record, Source, fingerprint, label_counts, missing_file
from xinv.errors import InputError

EMOTIONS = {
    "N": "neutral",
    "1": "anger",
    "2": "contempt",
    "3": "disgust",
    "4": "fear",
    "5": "happiness",
    "6": "sadness",
    "7": "surprise",
}
PATTERN = r"(?P<person>[^/]+)/(?:.*?[^0-9A-Za-z])??(?P<complementary>[1-7N])_(?P<dominant>[1-7N])(?:[^0-9A-Za-z].*)"
GROUPS = ("person", "complementary", "dominant")


class MefedSettings(BaseModel):
    """iCV-MEFED: faces with a dominant and a complementary emotion, and who they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mefed"] = Field(description="iCV-MEFED: compound emotions of 125 people")
    folder: Path = Field(description="folder of the photographs, or a .zip of it")
    label: Literal["dominant", "complementary", "compound"] = Field(
        "dominant", description="what the target predicts: one of 8 emotions, or which of the 50 compounds"
    )
    pattern: str = Field(
        PATTERN,
        description="regular expression that a photograph's whole path in `folder` fits, with the groups person, "
        "complementary and dominant",
    )

    @field_validator("pattern")
    @classmethod
    def _has_groups(cls, value: str) -> str:
        try:
            groups = re.compile(value).groupindex
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from None
        lacking = [group for group in GROUPS if group not in groups]
        if lacking:
            raise ValueError(f"the expression lacks the group (?P<{lacking[0]}>...); it needs {', '.join(GROUPS)}")
        return value


def open_mefed(settings: MefedSettings) -> Source:
    """Every photograph below the folder in the order of names, with both emotions as attributes.

    Files are read when asked for. The fingerprint is over names and sizes (`Pictures.listing`). InputError: a missing
    folder, a photograph whose path does not fit the pattern or names no emotion of the set.
    """
    folder = settings.folder.expanduser()
    if not folder.exists():
        raise missing_file(folder, "the folder of iCV-MEFED's photographs", "Ask the iCV lab in Tartu for the set.")
    pictures = open_pictures(folder)
    names = tuple(pictures.stamps)
    pattern = re.compile(settings.pattern)
    facts = [_facts(name, pattern, pictures.where(name)) for name in names]
    label_names = _label_names(settings.label)
    label_of = {name: label for label, name in enumerate(label_names)}
    records = tuple(
        Record(
            f"{i:08d}",
            label_of[_compound(complementary, dominant) if settings.label == "compound" else chosen],
            person,
            {"dominant": EMOTIONS[dominant], "complementary": EMOTIONS[complementary]},
        )
        for i, (person, complementary, dominant) in enumerate(facts)
        for chosen in [EMOTIONS[dominant if settings.label == "dominant" else complementary]]
    )
    label_counts(records, label_names, folder)
    return Source(
        records=records,
        label_names=label_names,
        fingerprint=fingerprint([settings.pattern.encode(), pictures.listing()]),
        synthetic=False,
        read=lambda position: pictures.read(names[position]),
        name=lambda position: pictures.where(names[position]),
    )


def _facts(name: str, pattern: re.Pattern[str], where: str) -> tuple[str, str, str]:
    """(person, code of the complementary emotion, code of the dominant one)."""
    match = pattern.fullmatch(name)
    if match is None:
        raise InputError(
            f"{where} has no label: its path does not say person and emotions as in s001/1_7/3.jpg; "
            "rename the files, or set source.pattern."
        )
    person, complementary, dominant = (match[group] or "" for group in GROUPS)
    if complementary not in EMOTIONS or dominant not in EMOTIONS or (complementary == "N") != (dominant == "N"):
        raise InputError(
            f"{where}: {complementary}_{dominant} is none of the 50 emotions; "
            "expected two numbers from 1 to 7, or N_N for neutral."
        )
    return person, complementary, dominant


def _compound(complementary: str, dominant: str) -> str:
    """1_7 is anger+surprise, 7_7 surprise, N_N neutral."""
    names = dict.fromkeys((EMOTIONS[complementary], EMOTIONS[dominant]))
    return "+".join(names)


def _label_names(label: str) -> tuple[str, ...]:
    if label != "compound":
        return tuple(EMOTIONS.values())
    codes = [code for code in EMOTIONS if code != "N"]
    return ("neutral", *(_compound(first, second) for first in codes for second in codes))
