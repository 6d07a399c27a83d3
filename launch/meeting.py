"""Where the supervisors of one start of a job meet: a folder in the job's own, on storage that all its machines share.

Files are written by rename, so what is there is complete.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xinv.files import make_private, read_json, write_atomic, write_json

SAVE, ENDED = "save", "ended"
"""Written by the batch script when the machines are wanted back; read by it for the exit code of the work."""


@dataclass(frozen=True)
class Meeting:
    """The folder of one start: what the head tells the others, and they it."""

    folder: Path

    def open(self) -> "Meeting":
        make_private(self.folder)
        return self

    @property
    def token(self) -> Path:
        return self.folder / "token"

    def tell_head(self, address: str) -> None:
        """The head of the Ray cluster listens at host:port."""
        write_json(self.folder / "head.json", {"address": address})

    def head(self) -> str | None:
        path = self.folder / "head.json"
        return str(read_json(path)["address"]) if path.exists() else None

    def tell_failed(self, node: str, reason: str) -> None:
        """A node could not join."""
        write_json(self.folder / f"failed-{node}.json", {"node": node, "reason": reason})

    def failed(self) -> dict[str, str]:
        """The reasons of the nodes that could not join."""
        found: list[dict[str, Any]] = [read_json(path) for path in sorted(self.folder.glob("failed-*.json"))]
        return {one["node"]: one["reason"] for one in found}

    def tell_ended(self, code: int) -> None:
        """The work is over, with this exit code."""
        write_atomic(self.folder / ENDED, f"{code}\n")

    def ended(self) -> int | None:
        path = self.folder / ENDED
        return int(path.read_text()) if path.exists() else None

    @property
    def save_wanted(self) -> bool:
        return (self.folder / SAVE).exists()
