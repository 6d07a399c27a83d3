"""Sets of shards that are made one shard at a time, by whoever is free, and go on after an interruption.

OUT/<partition>/NNNNNN.tar           a shard
OUT/<partition>/NNNNNN.entry.json    written after its tar: the shard is finished; gone when the set is
OUT/index.json                       written last: the set is finished
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xinv.data.index import ShardEntry, shard_path
from xinv.errors import InputError
from xinv.files import read_json, sha256_of_file, write_json

Task = tuple[str, int]
"""(partition, shard number)"""

RunTasks = Callable[..., list[dict[str, Any]]]
"""run_tasks(factory, tasks, progress=...) -> results in the order of the tasks; `pool.map_tasks` is one."""

READERS = 4  # files hashed at once


class Entry(BaseModel):
    """What NNNNNN.entry.json says of the shard beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_by: str = Field(description="digest of everything the shard was made from")
    shard: ShardEntry = Field(description="its line for the index")

    def save(self, out: Path, task: Task) -> None:
        write_json(entry_path(out, task), self.model_dump(mode="json"))


Kind = TypeVar("Kind", bound=Entry)


def entry_path(out: Path, task: Task) -> Path:
    """Where the entry of the shard of `task` lies."""
    return shard_path(out, *task).with_suffix(".entry.json")


def finished_entry(
    kind: type[Kind], out: Path, task: Task, wanted: str, samples: int, trust: bool = False
) -> Kind | None:
    """The entry of a shard that is finished, was made from `wanted` and is byte for byte what it was; else None.

    `trust`: compare the size alone, where the same run has just read or written the bytes.
    """
    path = entry_path(out, task)
    if not path.exists():
        return None
    try:
        entry = kind.model_validate(read_json(path))
        content = shard_path(out, *task)
        same = entry.shard.bytes == content.stat().st_size and (trust or entry.shard.sha256 == sha256_of_file(content))
    except (InputError, ValidationError, FileNotFoundError):
        return None
    return entry if same and entry.made_by == wanted and entry.shard.samples == samples else None


def finished_entries(kind: type[Kind], out: Path, samples: Mapping[Task, int], wanted: str) -> dict[Task, Kind]:
    """The entries of all shards that are finished; `samples`: how many each shard must have."""

    def look(task: Task) -> Kind | None:
        return finished_entry(kind, out, task, wanted, samples[task])

    with ThreadPoolExecutor(READERS) as threads:  # hashing leaves the interpreter alone
        found = dict(zip(samples, threads.map(look, samples), strict=True))
    return {task: entry for task, entry in found.items() if entry is not None}


def remove_entries(out: Path, tasks: Sequence[Task]) -> None:
    """The set is finished: its index says what the entries said."""
    for task in tasks:
        entry_path(out, task).unlink(missing_ok=True)
