"""events.jsonl survives kills; W&B (the real one, offline) gets the same scalars and nothing else."""

import json
import math
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xinv.errors import InputError
from xinv.track import Tracker, TrackSettings, key_source, read_events


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees (or touches) the W&B account, settings and caches of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there


def tracker(folder: Path, **settings: Any) -> Tracker:
    return Tracker(folder, TrackSettings(**settings), "demo", {"seed": 1}, folder / "log.txt")


def metric(track: Tracker, step: int, loss: float, series: str = "target") -> None:
    track.event("metrics", series=series, step=step, values={"loss": loss})


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: 7 bytes, then LevelDB's log (blocks of 32 KiB, chunks with a header of 7 bytes)."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part, at = data[at + 7 : at + 7 + length], at + 7 + length
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(whole)
            yield record


def wandb_files(folder: Path) -> list[Path]:
    """The .wandb files of `folder`, oldest first, each whole: W&B's own process ends a file just after it says so."""
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    deadline = time.monotonic() + 20
    while not all(any(record.HasField("exit") for record in records(path)) for path in files):
        assert time.monotonic() < deadline, "W&B did not finish its file"
        time.sleep(0.02)
    return files


def rows(path: Path) -> list[dict[str, Any]]:
    """The history rows of a .wandb file."""
    found = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found.append(row)
    return found


# ------------------------------------------------------------------------------------------------------- events.jsonl


def test_events_are_json_lines_with_a_time_and_plain_values(tmp_path: Path) -> None:
    with tracker(tmp_path / "run", mode="disabled") as track:
        track.event("stage", name="target ü", shape=(1, 2), path=Path("a/b"), score=np.float32(0.5), map=np.eye(2))
        metric(track, 3, math.nan)
        assert len(read_events(tmp_path / "run")) == 2  # each line is there as soon as the call returns
    first, second = read_events(tmp_path / "run")
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {
        "kind": "stage",
        "name": "target ü",
        "shape": [1, 2],
        "path": "a/b",
        "score": 0.5,
        "map": [[1.0, 0.0], [0.0, 1.0]],
    }
    assert second["series"] == "target"
    assert math.isnan(float(second["values"]["loss"]))
    assert (tmp_path / "run" / "events.jsonl").stat().st_mode & 0o077 == 0
    assert not (tmp_path / "run" / "wandb").exists()
    with pytest.raises(TypeError, match="object"):
        tracker(tmp_path / "run", mode="disabled").event("stage", what=object())


def test_a_line_torn_by_a_kill_costs_that_line_only(tmp_path: Path) -> None:
    with tracker(tmp_path, mode="disabled") as track:
        track.event("first")
        track.event("zweite", word="größer")
    path = tmp_path / "events.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index("ö".encode()) + 1])  # cut within a character
    assert [event["kind"] for event in read_events(tmp_path)] == ["first"]
    with tracker(tmp_path, mode="disabled") as track:
        track.event("third")
    with tracker(tmp_path, mode="disabled") as track:  # a file that ends well gets no empty line
        track.event("fourth")
    assert [event["kind"] for event in read_events(tmp_path)] == ["first", "third", "fourth"]
    assert path.read_bytes().count(b"\n") == 4
    assert read_events(tmp_path / "nowhere") == []


def test_a_full_disk_is_an_error_and_not_a_lost_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tracker(tmp_path, mode="disabled") as track:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda descriptor, data: len(data) - 1)
            with pytest.raises(OSError, match="No space left"):
                track.event("stage")
        track.event("stage")


def test_the_same_summary_is_recorded_once(tmp_path: Path) -> None:
    for value in (1.0, 1.0, 2.0):
        with tracker(tmp_path, mode="disabled") as track:
            track.summary({"psnr": value, "worst": math.inf})
    assert [event["values"]["psnr"] for event in read_events(tmp_path)] == [1.0, 2.0]


# ---------------------------------------------------------------------------------------------------------------- W&B


def test_scalars_arrive_in_one_resumable_run_and_nothing_else(tmp_path: Path) -> None:
    folder, png = tmp_path / "run", BytesIO()
    Image.new("L", (4, 4)).save(png, "png")
    with tracker(folder, tags=("mnist",)) as track:
        assert not (folder / "wandb").exists()  # nothing starts before the first metric
        for step in (10, 20):
            metric(track, step, 1 / step)
        metric(track, 5, math.nan, series="inverter.unet")
        track.picture("grid", png.getvalue(), step=1)
        track.summary({"psnr": 12.5})
    with tracker(folder) as track:  # all cached: no second W&B run
        track.event("stage", name="report")
        track.summary({"psnr": 12.5})
    assert len(wandb_files(folder)) == 1
    with tracker(folder) as track:
        metric(track, 30, 0.25)

    first, second = wandb_files(folder)
    kinds = [(row["_step"], row.get("target/step"), row.get("target/loss")) for row in rows(first) + rows(second)]
    assert kinds == [(0, 10, 0.1), (1, 20, 0.05), (2, None, None), (3, 30, 0.25)]
    assert rows(first)[2]["inverter.unet/step"] == 5
    assert math.isnan(float(rows(first)[2]["inverter.unet/loss"]))
    assert not list(folder.rglob("*.png"))
    every = list(records(first))
    assert {record.run.run_id for path in (first, second) for record in records(path) if record.HasField("run")} == {
        (folder / "run.id").read_text().strip()
    }
    axes = {(r.metric.glob_name, r.metric.step_metric) for r in every if r.HasField("metric") and r.metric.glob_name}
    assert axes == {("target/*", "target/step"), ("inverter.unet/*", "inverter.unet/step")}
    run = next(record.run for record in every if record.HasField("run"))
    assert (run.project, run.display_name, list(run.tags), run.host) == ("xinv", "demo", ["mnist"], "withheld")
    assert not run.HasField("git")
    summary = [u for r in every if r.HasField("summary") for u in r.summary.update if u.key == "psnr"]
    assert [json.loads(update.value_json) for update in summary] == [12.5]
    held = first.read_bytes()
    for secret in (str(tmp_path), str(Path.cwd()), sys.argv[0]):
        assert secret.encode() not in held
    files = [path for path in folder.glob("wandb/offline-run-*/files/**/*") if path.is_file()]
    assert files == []  # no requirements, code, patch, metadata or media
    assert (folder / "wandb").stat().st_mode & 0o077 == 0
    assert list((tmp_path / "home").iterdir()) == []
    assert "wandb sync" in (folder / "log.txt").read_text()


def test_pictures_go_to_wandb_when_asked_for(tmp_path: Path) -> None:
    png = BytesIO()
    Image.new("L", (4, 4), 7).save(png, "png")
    with tracker(tmp_path, images=True) as track:
        track.picture("grid", png.getvalue(), step=1)
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media/**/*.png")
    with Image.open(media) as image:
        assert image.getpixel((0, 0)) == 7
    assert rows(wandb_files(tmp_path)[0])[0]["pictures/step"] == 1
    assert [event["kind"] for event in read_events(tmp_path)] == ["picture"]


def test_the_terminal_stays_quiet_and_a_killed_wandb_does_not_end_the_audit(tmp_path: Path) -> None:
    program = f"""
import os, pathlib, psutil, time
from xinv.track import Tracker, TrackSettings
track = Tracker(pathlib.Path({str(tmp_path / "run")!r}), TrackSettings(), "demo", {{}})
track.event("metrics", series="a", step=1, values={{"loss": 1.0}})
print(len(psutil.Process().children()))
if os.environ.get("KILL"):
    for child in psutil.Process().children(): child.kill()
    time.sleep(0.3)
    track.event("metrics", series="a", step=2, values={{"loss": 1.0}})
    track.event("metrics", series="a", step=3, values={{"loss": 1.0}})
track.close()
"""
    quiet = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "1\n", "")
    killed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=os.environ | {"KILL": "1"}
    )
    assert (killed.returncode, killed.stdout) == (0, "1\n")
    kinds = [event["kind"] for event in read_events(tmp_path / "run")]
    assert kinds == ["metrics", "metrics", "metrics", "wandb_failed", "metrics"]


def test_online_without_a_network_falls_back_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    real, modes = wandb.init, []

    def unreachable(settings: Any, **options: Any) -> Any:
        modes.append(settings.mode)
        if settings.mode == "online":
            raise wandb.errors.CommError("connection refused\nConsider this and that")
        return real(settings=settings, **options)

    monkeypatch.setattr(wandb, "init", unreachable)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with tracker(tmp_path, mode="online") as track:
        track.check()
        metric(track, 1, 0.5)
    assert modes == ["online", "offline"]
    assert rows(wandb_files(tmp_path)[0])[0]["target/loss"] == 0.5
    (failed,) = [event for event in read_events(tmp_path) if event["kind"] == "wandb_failed"]
    assert (failed["action"], failed["reason"]) == ("start online", "connection refused")
    assert "connection refused" in (tmp_path / "log.txt").read_text()


def test_online_without_a_key_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker(tmp_path, mode="offline").check()
    online = tracker(tmp_path, mode="online")
    with pytest.raises(InputError, match=re.escape("127.0.0.1:9, and none was found; run `wandb login`")):
        online.check()
    path = tmp_path / "home" / "netrc"
    path.write_text("machine 127.0.0.1:9\n  login user\n  password secret\n")
    path.chmod(0o600)
    assert key_source() == str(path)
    online.check()
    monkeypatch.delenv("WANDB_BASE_URL")
    assert key_source() is None  # that key is for another server
    settings = tmp_path / "home" / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = http://127.0.0.1:9\n")  # as `wandb login --host` leaves it
    assert key_source() == str(path)
    path.unlink()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert key_source() == "WANDB_API_KEY"
