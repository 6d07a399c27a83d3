"""A job: what was asked, where it was sent, what became of it; and the records that this machine keeps of all jobs.

A record is written before the job is sent, so that nothing runs that nobody knows of.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launch.work import Shape, Work
from xinv.errors import InputError
from xinv.files import make_private, read_json, write_json
from xinv.stage import lock

REQUEST, CONFIG, RESULT, LOG = "request.json", "config.yaml", "result.json", "log.txt"
"""In a job's own folder: what was asked, the configuration that it runs, what came of it, and what it printed."""


class State(StrEnum):
    """Where a job is in its life, whatever runs it."""

    created = "created"  # recorded; sent or not, nobody has said yet
    pending = "pending"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"
    lost = "lost"  # where it was sent nobody knows it any more, and it has left no result

    @property
    def over(self) -> bool:
        return self in (State.succeeded, State.failed, State.cancelled, State.lost)


class Status(BaseModel):
    """What became of a job so far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State
    exit_code: int | None = Field(None, description="of the work; null until it has ended, or where none is known")
    detail: str = Field("", description="in words: why it waits, why it failed")


class Request(BaseModel):
    """One job, complete: what REQUEST holds, and all that the machines of the job need to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    handle: str = Field(description="the job's name, here and where it runs")
    work: Work
    shape: Shape
    cwd: Path = Field(description="absolute path that relative paths of the configuration start from")
    folder: Path = Field(description="the job's own folder, below the run folder, on storage that all machines share")
    seconds: int | None = Field(None, ge=60, description="time limit; null: the site's own")
    partition: str | None = Field(None, description="part of the cluster; null: the site's own")
    environment: dict[str, str] = Field(default_factory=dict, description="set on every machine of the job")
    versions: dict[str, str] = Field(default_factory=dict, description="of the libraries where it was submitted")
    python: str = Field(description="the interpreter that it was submitted with")

    def arguments(self, address: str | None) -> list[str]:
        """The command line of the work, after the program's name; `address`: of the Ray cluster that it runs on."""
        return [self.work.verb, str(self.folder / CONFIG), *self.work.placed(self.shape, address)]


class Job(BaseModel):
    """The record of one job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: int = Field(1, alias="schema")
    request: Request
    on: str = Field(description="where it was sent, as the user named it: slurm, http://head:8265, ...")
    created: float = Field(description="seconds since 1970")
    ident: str | None = Field(None, description="its name where it runs, such as Slurm's number; null: not sent yet")
    status: Status = Field(default_factory=lambda: Status(state=State.created), description="as last seen")

    @property
    def handle(self) -> str:
        return self.request.handle

    def seen(self, status: Status) -> "Job":
        return self.model_copy(update={"status": status})


def handle_of(name: str, identity: str) -> str:
    """The name of a job: letters, digits and dashes, with a number behind it at most 47 (what KubeRay takes)."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:32].strip("-") or "job"
    start = plain if plain[0].isalpha() else f"x{plain}"
    return f"{start}-{identity[:6]}"


def result_of(folder: Path) -> Status | None:
    """What a job has said of its own end, in RESULT; None where it has not ended, or its folder is not seen here."""
    path = folder / RESULT
    if not path.exists():
        return None
    found: dict[str, Any] = read_json(path)
    code = int(found["exit_code"])
    state = State.succeeded if code == 0 else State.cancelled if found.get("cancelled") else State.failed
    return Status(state=state, exit_code=code, detail=str(found.get("reason", "")))


class Records:
    """The records of this user's jobs: one file each. XINV_JOBS names another folder for them."""

    def __init__(self, folder: Path | None = None) -> None:
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        self.folder = folder or Path(os.environ.get("XINV_JOBS") or home / "xinv" / "jobs")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else submits meanwhile."""
        with lock(make_private(self.folder) / ".lock"):
            yield

    def write(self, job: Job) -> Job:
        make_private(self.folder)
        write_json(self._path(job.handle), job.model_dump(mode="json", by_alias=True))
        return job

    def all(self) -> list[Job]:
        """Every job, the youngest first."""
        jobs = [self.read(path.stem) for path in self.folder.glob("*.json")]
        return sorted(jobs, key=lambda job: -job.created)

    def read(self, handle: str) -> Job:
        """InputError for a handle that no job here has, with the nearest ones that there are."""
        path = self._path(handle)
        if not path.exists():
            known = sorted(entry.stem for entry in self.folder.glob("*.json"))
            likely = [name for name in known if name.startswith(handle)]
            if len(likely) == 1:
                return self.read(likely[0])
            shown = ", ".join((likely or known)[-8:]) or "none"
            raise InputError(f"No job is called {handle!r}; known are {shown} (records in {self.folder}).")
        try:
            return Job.model_validate(read_json(path))
        except ValidationError as error:
            raise InputError(f"{path} is no record of a job ({error.errors()[0]['msg']}); remove it.") from None

    def _path(self, handle: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9-]+", handle):
            raise InputError(f"{handle!r} is no handle of a job: letters, digits and dashes.")
        return self.folder / f"{handle}.json"


def write_request(request: Request) -> Path:
    """Put REQUEST into the job's folder, and return its path."""
    path = make_private(request.folder) / REQUEST
    write_json(path, request.model_dump(mode="json"))
    return path


def read_request(path: Path) -> Request:
    """The request in a file. InputError where it is missing or something else."""
    try:
        return Request.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(f"{path} is no request of a job ({error.errors()[0]['msg']}).") from None


def write_result(folder: Path, exit_code: int, reason: str = "", cancelled: bool = False) -> None:
    """Say how the job has ended (RESULT); called where it ran, once it is over."""
    write_json(
        folder / RESULT,
        {"exit_code": exit_code, "reason": reason, "cancelled": cancelled, "ended": round(time.time(), 1)},
    )
