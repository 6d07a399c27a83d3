"""Where an audit's events and metrics go: one JSON line each into the run folder, and the scalars to W&B.

`events.jsonl` is the record that always exists and that nothing else may stand in the way of; W&B is a view of it. This
is the only file that imports wandb, and it does so when the first metric arrives: an audit whose stages are all
cached starts no W&B run. Nothing leaves the machine unless `track.mode=online`, and pictures only with `track.images`.
"""

import configparser
import contextlib
import errno
import importlib.util
import io
import json
import math
import netrc
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from xinv.errors import InputError
from xinv.files import make_private, write_atomic

EVENTS = "events.jsonl"
RUN_ID = "run.id"


class TrackSettings(BaseModel):
    """What is sent to W&B, and where to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["offline", "online", "disabled"] = Field(
        "offline",
        description="offline: W&B files in the run folder, upload them with `wandb sync`; online: upload as it runs; "
        "disabled: no W&B (events.jsonl is written all the same)",
    )
    project: str = Field("xinv", min_length=1, description="W&B project")
    images: bool = Field(
        False, description="send pictures too; reconstructions can show the people whose images were audited"
    )
    tags: tuple[str, ...] = Field((), description="W&B tags of the run")


class Recorder(Protocol):
    """Who hears of an audit's events, pictures and final figures; `Tracker` writes them down."""

    def event(self, kind: str, **fields: Any) -> None: ...

    def picture(self, name: str, png: bytes, step: int) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...


class Tracker:
    """The events of one run folder.

    An audit that was killed and is started again appends to the same events.jsonl and continues the same W&B run (its
    id is a random one kept in the folder's `run.id`). What it repeats since its last checkpoint appears again, with the
    same series and step: the later line counts. One process at a time writes a folder's events.
    """

    def __init__(
        self,
        folder: Path,
        settings: TrackSettings,
        name: str,
        config: Mapping[str, Any],
        log: Path | None = None,
        group: str | None = None,
        job: str | None = None,
    ) -> None:
        """`folder`: the run folder, made if missing. `name`, `config`: shown by W&B. `log`: gets notes on its state.
        `group`: runs that W&B shows together; `job`: what kind of run it is among them."""
        self.folder, self.settings, self.name, self.log = make_private(folder), settings, name, log
        self.config, self.group, self.job = _plain(dict(config)), group, job
        self._lock = threading.RLock()
        self._wandb: Any = None  # the W&B run, once a metric has come
        self._wandb_over = settings.mode == "disabled"
        self._series: set[str] = set()
        earlier = read_events(folder)
        # W&B drops a row whose number is not above the last one's, so a resumed run must count on from there.
        self._rows = sum(event["kind"] in ("metrics", "picture") for event in earlier)
        self._summary = next((event["values"] for event in reversed(earlier) if event["kind"] == "summary"), None)
        self._events = os.open(folder / EVENTS, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        size = os.fstat(self._events).st_size
        if size and os.pread(self._events, 1, size - 1) != b"\n":
            self._append(b"\n")  # a run killed within a line: what follows must not join its torn half

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(failed=kind is not None)

    def check(self) -> None:
        """InputError when the settings cannot work, to be called before an hour of work is done for nothing."""
        if self.settings.mode == "disabled":
            return
        if importlib.util.find_spec("wandb") is None:
            raise InputError("track.mode needs wandb, which is missing; pip install wandb, or set track.mode=disabled.")
        if self.settings.mode == "online" and key_source() is None:
            raise InputError(
                f"track.mode=online needs an API key for {_host()}, and none was found; run `wandb login`, or set "
                "WANDB_API_KEY, or keep track.mode=offline and upload later with `wandb sync`."
            )

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line {"time", "kind", **fields} to events.jsonl; it is in the file when this returns.

        A "metrics" event has the fields `series` (what is trained or measured: one axis of steps), `step` (an int) and
        `values` ({name: number}); W&B gets its values as "<series>/<name>". JSON has no NaN or infinity: they are
        written as "NaN", "Infinity", "-Infinity", which float() reads. OSError when the line cannot be written.
        """
        assert not {"time", "kind"} & fields.keys(), "an event's time and kind are not fields"
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        line = json.dumps(_plain({"time": now, "kind": kind, **fields}), allow_nan=False, ensure_ascii=False)
        with self._lock:
            self._append(line.encode() + b"\n")
            if kind == "metrics":
                series, values = fields["series"], fields["values"]
                assert "step" not in values, "step is the axis of a series, not one of its values"
                self._send(series, fields["step"], {f"{series}/{name}": value for name, value in values.items()})

    def picture(self, name: str, png: bytes, step: int) -> None:
        """Send a PNG to W&B as "pictures/<name>", if `images` is set; nowhere else, and never by default."""
        if self.settings.images and self.settings.mode != "disabled":
            with self._lock:
                self.event("picture", name=name, step=step, bytes=len(png))
                self._send("pictures", step, {f"pictures/{name}": png})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final figures: an event, and W&B's summary of the run. The figures last recorded are not recorded again."""
        plain = _plain(dict(values))
        with self._lock:
            if plain == self._summary:
                return
            self._summary = plain
            self.event("summary", values=plain)
            if self._running():
                with self._guard("take the summary"):
                    self._wandb.summary.update({key: _number(value) for key, value in plain.items()})

    def close(self, failed: bool = False) -> None:
        """End the W&B run, waiting for its upload where it has one. A closed tracker takes no more events."""
        with self._lock:
            if self._wandb is not None:
                with self._guard("finish"):
                    self._wandb.finish(exit_code=int(failed))
                self._wandb = None
            self._wandb_over = True
            if self._events >= 0:
                os.close(self._events)
            self._events = -1

    def _append(self, line: bytes) -> None:
        assert self._events >= 0, "this tracker is closed"
        if os.write(self._events, line) < len(line):  # the disk took a part of it: it is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / EVENTS))

    # ------------------------------------------------------------------------------------------------------------ W&B

    def _send(self, series: str, step: int, values: Mapping[str, Any]) -> None:
        """One row to W&B: numbers, and pictures as PNG bytes."""
        number, self._rows = self._rows, self._rows + 1
        if not self._running():
            return
        with self._guard("take a metric"):
            if series not in self._series:
                self._series.add(series)
                self._wandb.define_metric(f"{series}/step", hidden=True)
                self._wandb.define_metric(f"{series}/*", step_metric=f"{series}/step")
            row = {
                name: _image(value) if isinstance(value, bytes) else _number(value) for name, value in values.items()
            }
            self._wandb.log({f"{series}/step": int(step), **row}, step=number)

    def _running(self) -> bool:
        """Whether there is a W&B run to send to; the first call starts it."""
        if self._wandb is None and not self._wandb_over:
            self._wandb = self._start(self.settings.mode)
            if self._wandb is None and self.settings.mode == "online":
                self._wandb = self._start("offline")  # nothing is lost: the files can be uploaded later
            self._wandb_over = self._wandb is None
        return self._wandb is not None

    def _start(self, mode: str) -> Any:
        """The W&B run, continued where this folder has had one; None when W&B cannot start (an event says why)."""
        home = make_private(self.folder / "wandb")
        with _private_environment(home), self._guard(f"start {mode}"):
            import wandb

            settings = wandb.Settings(
                mode=mode,
                project=self.settings.project,
                run_id=_run_id(self.folder),
                run_name=self.name,
                run_tags=self.settings.tags,
                run_group=self.group,
                run_job_type=self.job,
                resume="allow",
                root_dir=str(self.folder),
                use_dot_wandb=False,
                init_timeout=30,
                finish_timeout=120,  # what is not uploaded by then stays in the files, for `wandb sync`
                # Silence: the terminal is the audit's own.
                console="off",
                silent=True,
                quiet=True,
                # Metrics only: neither code nor git state, host name, packages, hardware or its load.
                save_code=False,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                label_disable=True,
                host="withheld",
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                x_save_requirements=False,
                symlink=False,
            )
            run = wandb.init(settings=settings, config=self.config, reinit="create_new")
            where = run.url if mode == "online" else f"{home}; upload it with: wandb sync {home}/offline-run-*"
            self._note(f"W&B run {run.id} ({mode}): {where}")
            return run
        return None

    @contextlib.contextmanager
    def _guard(self, action: str) -> Iterator[None]:
        """W&B's trouble (no network, its process killed) is an event and a log line, never the end of an audit."""
        import wandb

        try:
            yield
        except (wandb.Error, OSError) as error:
            self._wandb, self._wandb_over = None, action != "start online"
            reason = (str(error) or type(error).__name__).splitlines()[0]
            self._note(f"W&B could not {action}: {reason}")
            self.event("wandb_failed", action=action, reason=reason)

    def _note(self, line: str) -> None:
        if self.log is not None:
            with self.log.open("a") as stream:
                stream.write(f"{line}\n")


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Every event of the run `folder`, oldest first; none when it has no events.jsonl.

    A line torn by a kill (the last one, or one that a later start closed) is passed over: it never was an event.
    """
    try:
        lines = (folder / EVENTS).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # (bytes cut within a character are a ValueError too)
            continue
        if isinstance(event, dict) and "kind" in event:
            events.append(event)
    return events


def key_source() -> str | None:
    """Where a W&B API key lies (WANDB_API_KEY, an identity token file, a netrc file), or None. Never the key itself."""
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(variable):
            return variable
    homes = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for path in (Path(home).expanduser() for home in homes):
        try:
            entry = netrc.netrc(path).authenticators(_host())
        except (OSError, netrc.NetrcParseError):
            continue
        if entry and entry[2]:
            return str(path)
    return None


def _host() -> str:
    """The W&B server: of WANDB_BASE_URL, else of the settings file that `wandb login --host` writes, else W&B's own."""
    url = os.environ.get("WANDB_BASE_URL")
    if not url:
        parser = configparser.ConfigParser(interpolation=None)
        with contextlib.suppress(OSError, configparser.Error):
            parser.read(Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser() / "settings")
        url = parser.get("default", "base_url", fallback="https://api.wandb.ai")
    return urlsplit(url).netloc


def _run_id(folder: Path) -> str:
    """The random id of the run folder, made at its first use. It says nothing of the audit, its data or its machine."""
    path = folder / RUN_ID
    if not path.exists():
        write_atomic(path, secrets.token_hex(6) + "\n")
    return path.read_text().strip()


def _image(png: bytes) -> Any:
    import wandb
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return wandb.Image(image)


@contextlib.contextmanager
def _private_environment(home: Path) -> Iterator[None]:
    """While W&B starts: its caches and service log under `home`, not in $HOME, and no word about its credentials."""
    wanted = {"WANDB_CACHE_DIR": str(home / "cache"), "WANDB_DATA_DIR": str(home / "data"), "WANDB_SILENT": "true"}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _plain(value: Any) -> Any:
    """`value` as JSON holds it: numpy scalars and arrays as numbers and lists, paths as text, no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if hasattr(value, "tolist"):  # numpy and torch
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path | datetime):
        return str(value)
    raise TypeError(f"an event cannot hold a {type(value).__name__}")


def _number(value: Any) -> Any:
    """`value` for W&B, which unlike JSON takes NaN."""
    plain = _plain(value)
    return float(plain) if plain in ("NaN", "Infinity", "-Infinity") else plain
