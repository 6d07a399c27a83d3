"""Every finding of the doctor, on machines made up with monkeypatch, and once on the real one."""

import collections
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from packaging.requirements import Requirement

from xinv import doctor, extension
from xinv.errors import WorkError

Usage = collections.namedtuple("Usage", "total used free")
GIB = 2**30


def test_the_whole_is_quiet_complete_and_leaves_the_heavy_libraries_alone(tmp_path: Path) -> None:
    program = """
import dataclasses, json, pathlib, sys
from xinv.doctor import diagnose
checks = [dataclasses.asdict(check) for check in diagnose(pathlib.Path(sys.argv[1]) / "not" / "yet")]
print(json.dumps([checks, [name for name in ("ray", "deepspeed", "wandb") if name in sys.modules]]))
"""
    key = "0123456789abcdef" * 3
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"WANDB_API_KEY": key},
    )
    assert (done.returncode, done.stderr) == (0, "")
    checks, imported = json.loads(done.stdout)  # (one line, nothing beside it)
    assert imported == []
    assert key not in done.stdout
    states = {check["name"]: check["state"] for check in checks}
    assert len(states) == len(checks)
    assert {"python", "torch", "gpu", "gloo", "ray dashboard", "disk", "w&b account"} <= states.keys()
    assert states["python"] == states["torch"] == states["gloo"] == "ok"
    for check in checks:
        assert check["found"]
        assert (check["mend"] == "") == (check["state"] == "ok"), check
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ packages


def test_a_package_that_is_missing_or_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.package("no-such-package").state == "fail"
    monkeypatch.setattr(doctor, "_requirement", lambda name: Requirement("pydantic>=99"))
    check = doctor.package("pydantic")
    assert check.state == "warn"
    assert "made for >=99" in check.found
    assert "pip install 'pydantic>=99'" in check.mend


def test_requirements_come_from_the_projects_own_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: ["ray[train]<2.61", "x>1; extra == 'dev'"])
    assert str(doctor._requirement("ray")) == "ray[train]<2.61"
    assert doctor._requirement("x") is None  # (of an extra)


def test_without_its_dashboard_ray_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.ray_dashboard().state == "ok"
    monkeypatch.setattr(doctor, "DASHBOARD_NEEDS", ("aiohttp", "no_such_module"))
    check = doctor.ray_dashboard()
    assert check.state == "fail"
    assert "no_such_module" in check.found
    assert "ray[default]" in check.mend


@pytest.mark.parametrize(
    ("environment", "token", "state", "words"),
    [
        ({}, None, "ok", "will make a token"),
        ({}, 0o600, "ok", "token at"),
        ({}, 0o644, "warn", "other users can read"),
        ({"RAY_AUTH_MODE": "TOKEN"}, 0o600, "ok", "token at"),
        ({"RAY_AUTH_MODE": "disabled"}, 0o600, "warn", "run code as you"),
        ({"RAY_AUTH_MODE": "off"}, None, "warn", "unknown"),
        ({"RAY_AUTH_TOKEN": "hidden-secret"}, None, "ok", "RAY_AUTH_TOKEN"),
    ],
)
def test_ray_authentication(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    token: int | None,
    state: str,
    words: str,
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if token is not None:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("hidden-secret")
        (tmp_path / ".ray" / "auth_token").chmod(token)
    check = doctor.ray_token()
    assert (check.state, words in check.found) == (state, True), check
    assert "hidden-secret" not in f"{check}"


def test_ray_without_a_token_and_without_a_home_to_keep_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none" / "token"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    check = doctor.ray_token()
    assert (check.state, str(tmp_path) in check.found) == ("fail", True)


# ------------------------------------------------------------------------------------------------------------ hardware


def test_gpus_are_counted_and_the_reasons_for_none_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.Path, "exists", lambda path: False)
    assert doctor.gpu() == doctor.Check("gpu", "ok", "none; training runs on the CPU")
    monkeypatch.setattr(doctor.Path, "exists", lambda path: str(path) == "/dev/nvidia0")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built for CPUs only" in doctor.gpu().found
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "sees no GPU" in doctor.gpu().found

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    properties = SimpleNamespace(name="Some GPU", total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    assert doctor.gpu() == doctor.Check("gpu", "ok", "2: Some GPU, 80 GiB; NCCL 2.27.3")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    assert (doctor.gpu().state, "no NCCL" in doctor.gpu().found) == ("warn", True)

    def broken(index: int) -> None:
        raise RuntimeError("CUDA error: unknown\nmore")

    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    assert (doctor.gpu().state, doctor.gpu().found.endswith("CUDA error: unknown")) == ("fail", True)


def test_gloo_that_does_not_answer_in_time_is_stopped() -> None:
    check = doctor.gloo(limit_s=0.2)
    assert (check.state, check.found) == ("fail", "two processes could not meet within 0.2 s")
    assert "GLOO_SOCKET_IFNAME" in check.mend
    assert not [child for child in psutil.Process().children() if any("FileStore" in part for part in child.cmdline())]


def test_gloo_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = "import sys, time\nif sys.argv[3] == '1': raise SystemExit('no such interface')\ntime.sleep(60)"
    monkeypatch.setattr(doctor, "_GLOO", fails)
    assert (doctor.gloo().state, doctor.gloo().found) == ("fail", "no such interface")


def test_shared_memory_disk_memory_and_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 * 2**20, 0, 64 * 2**20))
    assert (doctor.shared_memory().state, "--shm-size" in doctor.shared_memory().mend) == ("warn", True)
    assert doctor.disk(tmp_path / "not" / "yet").state == "warn"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 * GIB, 0, 6 * GIB))
    assert doctor.shared_memory().state == "ok"
    assert doctor.disk(tmp_path / "not" / "yet").found == f"6.0 GiB free at {tmp_path}"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert doctor.disk(tmp_path).state == "fail"
    monkeypatch.undo()
    assert doctor.shared_memory(tmp_path / "none").state == "warn"

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=32 * GIB, available=5 * GIB))
    assert (doctor.memory().state, doctor.memory().found.startswith("5.0 of ")) == ("warn", True)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 1024))
    assert doctor.file_descriptors().state == "warn"
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, resource.RLIM_INFINITY))
    assert doctor.file_descriptors() == doctor.Check(
        "file descriptors", "ok", "1024 open files allowed, up to any number on request"
    )


def test_one_core_is_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    assert doctor.processor().state == "warn"


# ----------------------------------------------------------------------------------------------- DeepSpeed's operation


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the operation in an empty cache, on a machine without a GPU."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(extension, "op_needed", lambda: True)
    monkeypatch.setattr(doctor, "op_needed", lambda: True)
    folder = tmp_path / extension.OP
    folder.mkdir()
    return folder


def test_the_cache_is_where_torch_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.cpp_extension import _get_build_directory

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "users"))
    extension.before_loading()
    assert extension.op_library().parent == Path(_get_build_directory(extension.OP, False)).resolve()
    assert extension.op_library().is_relative_to(tmp_path / "users")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ours = extension.op_library()
    assert ours.is_relative_to(tmp_path / "xinv")
    extension.before_loading()
    assert ours.parent == Path(_get_build_directory(extension.OP, False)).resolve() == extension.op_library().parent


def test_two_environments_do_not_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ours = extension.op_library()
    monkeypatch.setattr(extension.sys, "prefix", str(tmp_path / "other-environment"))
    assert extension.op_library() != ours


def test_the_operation_is_missing_foreign_or_built(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (doctor.deepspeed_op().state, doctor.deepspeed_op().mend) == ("warn", "run: xinv doctor --prepare")
    (cache / f"{extension.OP}.so").write_bytes(b"")
    (cache / "build.ninja").write_text("-isystem /elsewhere/torch/include")
    assert "another environment" in doctor.deepspeed_op().found
    (cache / "build.ninja").write_text(f"-isystem {Path(torch.__file__).parent}/include")
    assert doctor.deepspeed_op().state == "ok"
    monkeypatch.setattr(doctor, "op_needed", lambda: False)
    assert doctor.deepspeed_op().found == "not needed here"


def test_a_lock_is_stale_when_nobody_holds_it(cache: Path) -> None:
    lock = cache / "lock"
    assert extension.stale_lock() is None
    with lock.open("w"):
        assert extension.stale_lock() is None
    assert extension.stale_lock() == lock
    assert (doctor.deepspeed_op().state, str(lock) in doctor.deepspeed_op().mend) == ("fail", True)


def test_compiler_and_ninja(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(cache / "no-such-compiler"))
    assert (doctor.compiler().state, "g++" in doctor.compiler().mend) == ("fail", True)
    (cache / f"{extension.OP}.so").write_bytes(b"")
    assert doctor.compiler().state == "warn"  # (the operation is there already)
    assert doctor.ninja().state == "ok"
    monkeypatch.setattr(doctor, "search_path", lambda: str(cache))
    assert doctor.ninja().state == "fail"
    (cache / "ninja").write_text("#!/bin/sh\nexit 3\n")
    (cache / "ninja").chmod(0o755)
    assert (doctor.ninja().state, "does not run" in doctor.ninja().found) == ("fail", True)


def test_preparing_removes_a_stale_lock_and_tells_how_it_goes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[float, float, str]] = []
    (cache / "lock").touch()
    build = f"import pathlib; p = pathlib.Path({str(cache)!r}); assert not (p / 'lock').exists(); (p / 'done').touch()"
    monkeypatch.setattr(extension, "_BUILD", build)
    line = doctor.prepare(lambda done, total, note: calls.append((done, total, note)))
    assert line.startswith("deepspeed_shm_comm is built (")
    assert (cache / "done").exists()
    assert calls[-1][0] == calls[-1][1]
    monkeypatch.setattr(extension, "op_needed", lambda: False)
    assert doctor.prepare() == "deepspeed_shm_comm is not needed here."


def test_a_failed_build_shows_the_compilers_words(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extension, "_BUILD", "print('c++: not found'); raise SystemExit(1)")
    with pytest.raises(WorkError, match=r"install g\+\+(.|\n)*c\+\+: not found"):
        doctor.prepare()
    assert capfd.readouterr() == ("", "")


def test_an_interrupted_build_ends_with_all_its_processes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = f"""
import pathlib, subprocess, time
child = subprocess.Popen(["sleep", "600"])
lock = open({str(cache / "lock")!r}, "w")
pathlib.Path({str(cache / "child")!r}).write_text(str(child.pid))
time.sleep(600)
"""
    monkeypatch.setattr(extension, "_BUILD", build)

    def interrupt(done: float, total: float, note: str) -> None:
        if (cache / "child").exists() and (cache / "child").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        doctor.prepare(interrupt)
    child: Any = int((cache / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert not (cache / "lock").exists()


@pytest.mark.slow
def test_the_real_operation_is_built_once(cache: Path) -> None:
    assert "is built" in doctor.prepare()
    assert doctor.deepspeed_op().state == "ok"
    assert doctor.prepare() == "deepspeed_shm_comm was built already."


def test_the_wandb_key_is_named_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hidden-secret")
    monkeypatch.setenv("WANDB_MODE", "online")
    check = doctor.wandb_key()
    assert check.found == "API key from WANDB_API_KEY; WANDB_MODE=online is not followed, track.mode decides"
    assert "hidden-secret" not in f"{check}"
