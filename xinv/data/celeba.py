"""CelebA (Liu et al. 2015) and CelebA-HQ (Karras et al. 2018) as they are published: pictures and label files apart."""

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from xinv.data.pictures import Pictures, open_pictures
from xinv.data.records import Record, Source, fingerprint, label_counts, missing_file
from xinv.errors import InputError

IDENTITIES = "identity_CelebA.txt"
ATTRIBUTES = "list_attr_celeba.txt"
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
BIT = {"1": 1, "-1": 0}  # how the file of attributes writes yes and no


class _CelebaLabels(BaseModel):
    """What both sets are labelled with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str = Field(
        "Smiling", description=f"what the target predicts: an attribute of {ATTRIBUTES}, or identity for who it is"
    )
    people: int | None = Field(
        None, ge=2, description="keep the images of only this many people, those with the most images; null: all"
    )
    subset: bool = Field(
        False, description="accept that some listed images are not there; otherwise a missing one is an error"
    )


class CelebaSettings(_CelebaLabels):
    """CelebA: 202,599 faces of 10,177 people, 178x218 RGB, 40 attributes."""

    kind: Literal["celeba"] = Field(description="CelebA, aligned and cropped: pictures, identities, 40 attributes")
    folder: Path = Field(
        description=f"folder with img_align_celeba (or img_align_celeba.zip), {IDENTITIES} and {ATTRIBUTES}, "
        "side by side or in Img and Anno as published"
    )


class CelebaHqSettings(_CelebaLabels):
    """CelebA-HQ: 30,000 of CelebA's pictures at up to 1024 px, with CelebA's labels."""

    kind: Literal["celeba_hq"] = Field(description="CelebA-HQ: pictures, the mapping to CelebA, and CelebA's labels")
    folder: Path = Field(description=f"folder with {MAPPING} and the folder of pictures")
    images: Path = Field(
        Path("CelebA-HQ-img"), description="folder or .zip of pictures named by number (0.jpg, 00000.png), in `folder`"
    )
    celeba: Path | None = Field(None, description=f"folder with {IDENTITIES} and {ATTRIBUTES}; null: `folder`")
    numbered_from: Literal[0, 1] = Field(
        0, description="number of the first picture: 0 in CelebAMask-HQ, 1 in some copies of 256 px"
    )


def open_celeba(settings: CelebaSettings) -> Source:
    """CelebA's aligned faces; 000001.jpg has key 000001. See `_source` for labels, fingerprint and errors."""
    folder = settings.folder.expanduser()
    choices = [folder / part / name for part in ("", "Img") for name in ("img_align_celeba", "img_align_celeba.zip")]
    place = next((choice for choice in choices if choice.exists()), None)
    if place is None:
        raise missing_file(
            choices[0],
            "the folder of CelebA's aligned pictures (or img_align_celeba.zip)",
            "Download img_align_celeba.zip from CelebA's page and put it there; it need not be unpacked.",
        )
    pictures = open_pictures(place)
    tables = _Tables.read(folder)
    names: dict[str, str] = {}
    for name in pictures.stamps:
        other = names.setdefault(name.rpartition("/")[2], name)
        if other != name:
            raise InputError(f"{pictures.where(name)} and {pictures.where(other)} have one name; keep one of them.")
    return _source(settings, pictures, names, tables, tables.identity, [])


def open_celeba_hq(settings: CelebaHqSettings) -> Source:
    """CelebA-HQ's pictures, keyed and labelled as the CelebA pictures that they were made from.

    The mapping file says which: after a heading, `number, CelebA number from 0, CelebA file name` a line.
    See `_source` for labels, fingerprint and errors.
    """
    folder = settings.folder.expanduser()
    place = folder / settings.images
    if not place.exists():
        raise missing_file(
            place,
            "the folder (or .zip) of CelebA-HQ's pictures",
            "CelebAMask-HQ holds them as CelebA-HQ-img; for another name set source.images.",
        )
    pictures = open_pictures(place)
    file = _label_file(folder, MAPPING, "the list of whose pictures they are", "It comes with CelebAMask-HQ.")
    mapping = _read_mapping(file)
    names: dict[str, str] = {}
    for name in pictures.stamps:
        number = _number(name, pictures) - settings.numbered_from
        if number not in mapping:
            hint = " Are they numbered from 1? Then set source.numbered_from: 1." if number == len(mapping) else ""
            raise InputError(f"{pictures.where(name)}: {file} has no line for picture {number}.{hint}")
        other = names.setdefault(mapping[number], name)
        if other != name:
            raise InputError(f"{pictures.where(name)} and {pictures.where(other)} are both picture {number}.")
    tables = _Tables.read((settings.celeba or settings.folder).expanduser())
    return _source(settings, pictures, names, tables, mapping.values(), [file.read_bytes()])


@dataclass(frozen=True)
class _Tables:
    """CelebA's two label files, by file name of the CelebA picture."""

    identity: dict[str, str]
    attribute_names: tuple[str, ...]
    bits: dict[str, bytes]  # one byte, 0 or 1, an attribute: 40 Python numbers a picture would be a gigabyte
    files: tuple[Path, Path]

    @classmethod
    def read(cls, folder: Path) -> "_Tables":
        remedy = "Download it from CelebA's page (folder Anno) and put it there."
        identities = _label_file(folder, IDENTITIES, "the list of who is shown", remedy)
        attributes = _label_file(folder, ATTRIBUTES, "the table of attributes", remedy)
        names, bits = _read_attributes(attributes)
        return cls(_read_identities(identities), names, bits, (identities, attributes))


def _source(
    settings: _CelebaLabels,
    pictures: Pictures,
    names: Mapping[str, str],  # file name in CelebA -> name in `pictures`
    tables: _Tables,
    expected: Collection[str],  # file names in CelebA that should have a picture
    mapping: Sequence[bytes],
) -> Source:
    """Records in the order of CelebA's file names: the chosen label, who it is, and all 40 attributes as 0 or 1.

    Pictures are read when asked for. The fingerprint is over names and sizes of the pictures (`Pictures.listing`) and
    the bytes of the label files. InputError: a missing or malformed label file (with the line), a picture without
    labels, a listed picture that is not there (unless `subset`), an unknown attribute (with the nearest).
    """
    for name, picture in names.items():
        for known, file in zip((tables.identity.keys(), tables.bits.keys()), tables.files, strict=True):
            if name not in known:
                raise InputError(f"{pictures.where(picture)} has no label: {file} has no line for {name}.")
    absent = sorted(set(expected).difference(names))
    if absent and not settings.subset:
        raise InputError(
            f"{pictures.place} lacks {len(absent):,} of {len(expected):,} listed pictures, {absent[0]} among them; "
            "complete it, or set source.subset: true to use those that are there."
        )
    kept = _most_pictured(sorted(names), tables.identity, settings.people, pictures.place)
    if settings.label == "identity":
        people = sorted({tables.identity[name] for name in kept}, key=int)
        label_names, place = tuple(people), {person: label for label, person in enumerate(people)}
        labels = [place[tables.identity[name]] for name in kept]
    else:
        column = _column(settings.label, tables)
        label_names = (f"not {settings.label}", settings.label)
        labels = [tables.bits[name][column] for name in kept]
    records = tuple(
        Record(
            name.rpartition(".")[0],
            label,
            tables.identity[name],
            dict(zip(tables.attribute_names, tables.bits[name], strict=True)),
        )
        for name, label in zip(kept, labels, strict=True)
    )
    label_counts(records, label_names, pictures.place)
    return Source(
        records=records,
        label_names=label_names,
        fingerprint=fingerprint([pictures.listing(), *mapping, *(file.read_bytes() for file in tables.files)]),
        synthetic=False,
        read=lambda position: pictures.read(names[kept[position]]),
        name=lambda position: pictures.where(names[kept[position]]),
    )


def _column(attribute: str, tables: _Tables) -> int:
    """Where the table of attributes has `attribute`."""
    if attribute in tables.attribute_names:
        return tables.attribute_names.index(attribute)
    by_lower = {name.lower(): name for name in (*tables.attribute_names, "identity")}
    near = [by_lower[name] for name in difflib.get_close_matches(attribute.lower(), by_lower, n=3)]
    hint = f"the nearest are {', '.join(near)}" if near else "none is alike"
    raise InputError(
        f"{tables.files[1]} has no attribute {attribute!r}; {hint}. "
        f"Known: identity, {', '.join(tables.attribute_names)}."
    )


def _most_pictured(names: list[str], identity: Mapping[str, str], people: int | None, place: Path) -> list[str]:
    """The pictures of the `people` persons with the most of them; of equals, the lower number first."""
    if people is None:
        return names
    counts = Counter(identity[name] for name in names)
    if people > len(counts):
        raise InputError(f"{place} shows {len(counts)} people, and source.people asks for {people}.")
    chosen = set(sorted(counts, key=lambda person: (-counts[person], int(person)))[:people])
    return [name for name in names if identity[name] in chosen]


# ------------------------------------------------------------------------------------------------------- label files


def _label_file(folder: Path, name: str, content: str, remedy: str) -> Path:
    found = next((path for path in (folder / name, folder / "Anno" / name) if path.is_file()), None)
    if found is None:
        raise missing_file(folder / name, content, remedy)
    return found


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, its words) of every line that is not blank."""
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if words := line.split():
                    yield number, words
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text file ({error}); download it again.") from None


def _malformed(path: Path, number: int, expected: str, words: Sequence[str]) -> InputError:
    shown = " ".join(words)
    return InputError(
        f"{path}, line {number}: expected {expected}, got {shown[:60]!r}{' ...' if len(shown) > 60 else ''}."
    )


def _read_identities(path: Path) -> dict[str, str]:
    """`000001.jpg 2880` a line -> file name: number of the person."""
    found: dict[str, str] = {}
    for number, words in _lines(path):
        if len(words) != 2 or not words[1].isdecimal():
            raise _malformed(path, number, "a file name and the number of a person", words)
        if words[0] in found:
            raise InputError(f"{path}, line {number}: {words[0]} was listed before.")
        found[words[0]] = words[1]
    return found


def _read_attributes(path: Path) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """A line with the number of pictures, one with the names, then `000001.jpg -1 1 ...`: a 1 or -1 an attribute."""
    lines = _lines(path)
    number, words = next(lines, (1, []))
    if len(words) != 1 or not words[0].isdecimal():
        raise _malformed(path, number, "the number of pictures", words)
    count = int(words[0])
    number, heading = next(lines, (2, []))
    names = tuple(heading)
    if len(names) < 2 or len(set(names)) < len(names):
        raise _malformed(path, number, "the names of the attributes, each once", heading)
    found: dict[str, bytes] = {}
    for number, words in lines:
        if len(words) != len(names) + 1:
            raise _malformed(path, number, f"a file name and {len(names)} values", words)
        if words[0] in found:
            raise InputError(f"{path}, line {number}: {words[0]} was listed before.")
        try:
            found[words[0]] = bytes([BIT[word] for word in words[1:]])
        except KeyError as error:
            raise _malformed(path, number, f"only 1 and -1 as values, not {error}", words) from None
    if len(found) != count:
        raise InputError(f"{path} announces {count:,} pictures in line 1 and lists {len(found):,}; download it again.")
    return names, found


def _read_mapping(path: Path) -> dict[int, str]:
    """Number of the CelebA-HQ picture -> file name of the CelebA picture that it was made from."""
    lines = _lines(path)
    number, words = next(lines, (1, []))
    if words[:3] != ["idx", "orig_idx", "orig_file"]:
        raise _malformed(path, number, "the heading idx orig_idx orig_file", words)
    found: dict[int, str] = {}
    for number, words in lines:
        if len(words) < 3 or not words[0].isdecimal() or not words[1].isdecimal():
            raise _malformed(path, number, "two numbers and a file name", words)
        if int(words[0]) in found:
            raise InputError(f"{path}, line {number}: picture {words[0]} was listed before.")
        found[int(words[0])] = words[2]
    return found


def _number(name: str, pictures: Pictures) -> int:
    stem = PurePosixPath(name).stem
    if not stem.isdecimal():
        raise InputError(f"{pictures.where(name)}: expected a number as the file's name, as in 0.jpg or 00000.png.")
    return int(stem)
