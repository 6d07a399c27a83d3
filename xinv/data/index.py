"""The index of a set of shards: what each shard file must be, and what the samples in it hold.

`index.json` holds each shard's count, bytes and sha256, and the schema of each field; it is written last, so a set
without one is unfinished. `data.shards` writes the shards, and believes them only as far as this vouches.
"""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xinv.data.fields import FieldSchema, codec
from xinv.errors import InputError
from xinv.files import make_private, read_json, write_json

INDEX_NAME = "index.json"
MEND = "Restore it from a copy, or remove the set's folder and make the set again."
FOLDER_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
NUMBERS = ("float32", "float16", "float64", "uint8", "int8", "uint16", "int16", "int32", "int64", "bool")


class ShardEntry(BaseModel):
    """What the index vouches for in one shard file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(ge=1, description="number of samples in the shard")
    bytes: int = Field(ge=1, description="size of the file in bytes")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the file, hexadecimal")


class Index(BaseModel):
    """index.json: what a finished set of shards holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = Field(1, description="version of this format")
    kind: Literal["images", "releases"] = Field(description="image shards, or release shards aligned with them")
    made_by: dict[str, Any] = Field(description="program, settings, seed and inputs that made the set")
    label_names: tuple[str, ...] = Field((), description="name of each label (image sets); a label is a position here")
    synthetic: bool = Field(False, description="true when the images show nothing real")
    fields: dict[str, FieldSchema] = Field(description="schema of each field, by extension")
    partitions: dict[str, tuple[ShardEntry, ...]] = Field(description="shards of each partition; position = number")

    @model_validator(mode="after")
    def _consistent(self) -> "Index":
        needed = {"images": {"png", "json"}, "releases": {"prediction.npy"}}[self.kind]
        if missing := needed - self.fields.keys():
            raise ValueError(f"a set of {self.kind} needs the fields {', '.join(sorted(missing))}")
        for name, schema in self.fields.items():
            # Only plain numbers: an index that asked for dtype 'object' would ask for unpickling.
            known = {"png": ("uint8",), "json": ("json",), "npy": NUMBERS}[codec(name)]
            if schema.dtype not in known:
                raise ValueError(f"field {name} has dtype {schema.dtype}; expected one of {', '.join(known)}")
        for partition in self.partitions:
            if not FOLDER_NAME.fullmatch(partition):
                raise ValueError(f"{partition!r} is no name for a partition")
        return self

    @classmethod
    def load(cls, folder: Path) -> "Index":
        """The index of the finished set in `folder`. InputError when there is none, or none that makes sense."""
        path = folder / INDEX_NAME
        if not path.exists():
            raise InputError(
                f"{folder} holds no finished set of shards: {INDEX_NAME} is missing. "
                "Name the folder that holds it, or run the step that makes the set again."
            )
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{path} is no valid index: {where or 'index'}: {first['msg']}. {MEND}") from None

    def save(self, folder: Path) -> None:
        """Write index.json atomically. Call it last: a set without an index is an unfinished set."""
        write_json(make_private(folder) / INDEX_NAME, self.model_dump(mode="json"))

    def entries(self, partition: str) -> tuple[ShardEntry, ...]:
        """The shards of `partition`. InputError, with the known names, for another name."""
        if partition not in self.partitions:
            raise InputError(f"there is no partition {partition!r} in this set; it has {', '.join(self.partitions)}.")
        return self.partitions[partition]

    def samples(self, partition: str) -> int:
        """Number of samples in `partition`."""
        return sum(entry.samples for entry in self.entries(partition))


def shard_path(folder: Path, partition: str, number: int) -> Path:
    """Where shard `number` of `partition` lies in the set in `folder`."""
    return folder / partition / f"{number:06d}.tar"
