"""One run folder, one configuration: RUNS/NAME is tied to what ran in it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xinv.config import UNBOUND, AuditConfig
from xinv.errors import InputError
from xinv.files import make_private, write_atomic
from xinv.keeping import fetch_run
from xinv.overrides import dump_yaml, load_yaml
from xinv.stage import lock

BEGINNINGS = {"resolved.yaml", ".lock", "run.id", "events.jsonl", "log.txt", "ray", "wandb", "jobs"}
"""What a run folder holds before anything is finished in it."""


def bind(config: AuditConfig) -> None:
    """Tie the run folder to this configuration: write resolved.yaml, or compare with the one that is there.

    Raises:
        InputError: the folder belongs to an audit with another configuration; names the first key that differs. Or the
            storage cannot be used.
    """
    unbound = [(section,) for section in UNBOUND]
    bind_folder(config.folder, config.model_dump(mode="json"), unbound, "this audit", config.storage)


def bind_folder(
    folder: Path, tree: dict[str, Any], unbound: Sequence[tuple[str, ...]], owner: str, storage: str | None
) -> None:
    """As `bind`, for any configuration; the paths in `unbound` may differ. `owner`: how messages call the run.
    `storage`: where the run folder may have been kept by another machine, from which it is fetched first."""
    fetch_run(storage, folder)
    path = folder / "resolved.yaml"
    if path.exists() and _got_anywhere(folder):
        key = next(_differences(load_yaml(path), tree, (), unbound), None)
        if key is not None:
            where, kept = ".".join(key[0]), f" and {storage}/runs/{folder.name}" if storage else ""
            raise InputError(
                f"{folder} was made by another configuration: {where} was {key[1]!r} and is {key[2]!r} now. "
                f"Give {owner} another name (name=...), or remove {folder}{kept}; finished steps are kept."
            )
    make_private(folder)
    write_atomic(path, dump_yaml(tree))


def _got_anywhere(folder: Path) -> bool:
    """Whether a run folder is in use or holds more than the beginning of a run: a mistake that ended the first try
    leaves the folder to the next."""
    if any(path.name not in BEGINNINGS for path in folder.iterdir()):
        return True
    if (folder / ".lock").exists():
        try:
            with lock(folder / ".lock", busy="in use"):
                pass
        except InputError:  # a run that has not finished its first stage yet
            return True
    events = folder / "events.jsonl"
    return events.exists() and '"kind": "end"' in events.read_text()


def _differences(
    before: Any, now: Any, path: tuple[str, ...], unbound: Sequence[tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if path in unbound:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(key for key in before if key not in now)]:
            yield from _differences(before.get(key), now.get(key), (*path, key), unbound)
    elif before != now:
        yield path, before, now
