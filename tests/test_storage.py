"""Folders kept at a URL: whole or not there, believed only if signed, and every trouble of a storage said in words.

Places: memory, a folder, and S3 over HTTP (moto's server in a thread of this process).
"""

import json
import secrets
import shutil
import socket
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from storages import own_key, s3, server

from xinv import storage as storages
from xinv.bucket import check, check_nodes, open_url
from xinv.errors import InputError, WorkError
from xinv.signing import KEY_FILE, key_path
from xinv.stage import MARK, Store
from xinv.storage import KEPT, MARKER, Storage, opened

__all__ = ["own_key", "s3", "server"]  # fixtures

IDENTITY = {"size": 32}
CONTENT = {"network.json": b"{}", "weights/0.safetensors": b"a" * 3000, "weights/1.safetensors": b"b" * 2000}


class PowerCutError(BaseException):
    """Ends an upload or a download as a kill would: nothing catches it."""


@pytest.fixture(params=["memory", "file", "path", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    places: dict[str, Callable[[], str]] = {
        "memory": lambda: f"memory://{secrets.token_hex(8)}",
        "file": lambda: f"file://{tmp_path}/kept/here",
        "path": lambda: f"{tmp_path}/kept",
        "s3": lambda: f"{request.getfixturevalue('s3')}/below/here",
    }
    return places[request.param]()


def work(folder: Path) -> dict[str, int]:
    for path, content in CONTENT.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)
    return {"images": 3}


def never(folder: Path) -> None:
    raise AssertionError("made again")


def store(folder: Path, url: str) -> Store:
    """The stages of one machine; a new process as it were."""
    opened.cache_clear()
    return Store(folder / "stages", opened(url))


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def objects(kept: Storage) -> dict[str, bytes]:
    """All that lies at the URL, by path below it."""
    root = kept._root
    return {path[len(root) + 1 :]: kept._files.cat_file(path) for path in kept._files.find(root)}


def cut_after(kept: Storage, writes: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on the power goes before upload or download number `writes`. Returns the list of those that come."""
    seen: list[str] = []
    lock = threading.Lock()

    def cutting(name: str, real: Callable[..., Any], place: int) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            with lock:
                if len(seen) == writes:
                    raise PowerCutError(name)
                seen.append(str(given[place]))
            return real(*given)

        return call

    monkeypatch.setattr(storages, "WIDTH", 1)  # so that "number 3" is one thing
    for name, place in (("put_file", 1), ("pipe_file", 0), ("get_file", 0)):
        monkeypatch.setattr(kept._files, name, cutting(name, getattr(kept._files, name), place))
    monkeypatch.setattr(storages, "write_atomic", cutting("write_atomic", storages.write_atomic, 0))
    return seen


# ------------------------------------------------------------------------------------------------------------- stages


def test_a_stage_that_one_machine_made_another_fetches(url: str, tmp_path: Path) -> None:
    made = store(tmp_path / "a", url).make("images", IDENTITY, work)
    found = store(tmp_path / "b", url).make("images", IDENTITY, never)
    assert (found.id, found.result, found.fresh) == (made.id, {"images": 3}, False)
    assert content_of(found.folder) == content_of(made.folder)
    assert store(tmp_path / "c", url).finished("images", {"size": 64}) is None
    assert found.folder.stat().st_mode & 0o077 == 0
    assert not list((tmp_path / "b" / "stages").glob("*.fetched"))


def test_the_signed_list_is_written_last_and_an_upload_cut_anywhere_goes_on(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Store(tmp_path / "a" / "stages").make("images", IDENTITY, work)
    writes = len(CONTENT) + 2  # and stage.json, and kept.json
    starts: list[list[str]] = []
    for point in range(writes):
        with monkeypatch.context() as patch:
            here = store(tmp_path / "a", url)
            assert here.storage is not None
            starts.append(cut_after(here.storage, 1, patch))
            if point < writes - 1:
                with pytest.raises(PowerCutError):
                    here.finished("images", IDENTITY)
            else:
                here.finished("images", IDENTITY)
        kept = opened(url)
        assert kept is not None
        whole = kept.read(f"stages/{made.id}") is not None
        assert whole == (point == writes - 1), f"after {point + 1} writes"
    uploaded = [name for start in starts for name in start]
    assert len(uploaded) == len(set(uploaded)) == writes, "each start uploads one file more, and none twice"
    assert store(tmp_path / "b", url).make("images", IDENTITY, never).result == {"images": 3}


def test_a_download_cut_anywhere_leaves_nothing_that_is_believed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store(tmp_path / "a", url).make("images", IDENTITY, work)
    for point in range(len(CONTENT) + 1):
        with monkeypatch.context() as patch:
            there = store(tmp_path / "b", url)
            assert there.storage is not None
            cut_after(there.storage, point, patch)
            with pytest.raises(PowerCutError):
                there.finished("images", IDENTITY)
        assert not (tmp_path / "b" / "stages" / made.id).exists()
    assert content_of(store(tmp_path / "b", url).make("images", IDENTITY, never).folder) == content_of(made.folder)


def test_a_stage_is_put_once_and_again_where_the_storage_is_another(tmp_path: Path) -> None:
    one, other = f"{tmp_path}/one", f"{tmp_path}/other"
    made = store(tmp_path / "a", one).make("images", IDENTITY, work)
    kept = opened(one)
    assert kept is not None
    kept.drop(f"stages/{made.id}")
    assert set(objects(kept)) == {MARKER}
    store(tmp_path / "a", one).finished("images", IDENTITY)
    assert set(objects(kept)) == {MARKER}, "a look-up asks the storage nothing"
    store(tmp_path / "a", other).finished("images", IDENTITY)
    assert store(tmp_path / "b", other).make("images", IDENTITY, never).result == {"images": 3}


def test_a_stage_that_was_removed_and_spoilt_is_made_and_put_again(tmp_path: Path) -> None:
    url = f"{tmp_path}/kept"
    made = store(tmp_path / "a", url).make("images", IDENTITY, work)
    shutil.rmtree(made.folder)
    kept = opened(url)
    assert kept is not None
    spoil(kept, f"stages/{made.id}")
    assert store(tmp_path / "a", url).make("images", IDENTITY, work).fresh
    assert store(tmp_path / "b", url).make("images", IDENTITY, never).result == {"images": 3}


def test_what_is_absent_is_not_asked_for_at_every_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = store(tmp_path / "a", f"{tmp_path}/kept")
    assert here.storage is not None and here.finished("images", IDENTITY) is None
    monkeypatch.setattr(here.storage, "read", never)
    assert here.finished("images", IDENTITY) is None


def test_without_a_storage_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    Store(tmp_path / "stages", opened(None)).make("images", IDENTITY, work)
    assert [path.name for path in tmp_path.iterdir()] == ["stages"]


# --------------------------------------------------------------------------------------------------- what is believed


def forge_file(kept: Storage, name: str) -> None:
    """Other bytes, as many, under the same name."""
    path = next(path for path in kept._files.find(f"{kept._root}/{name}") if path.endswith("/0.safetensors"))
    kept._files.pipe_file(path, b"x" * len(kept._files.cat_file(path)))


def forge_list(kept: Storage, name: str) -> None:
    """A list that names other hashes, its signature left as it was."""
    path = f"{kept._root}/{name}/{KEPT}"
    found = json.loads(kept._files.cat_file(path))
    found["files"]["weights/0.safetensors"][1] = "0" * 64
    kept._files.pipe_file(path, json.dumps(found).encode())


def forge_signature(kept: Storage, name: str) -> None:
    """A whole folder signed with another key."""
    path = f"{kept._root}/{name}/{KEPT}"
    found = json.loads(kept._files.cat_file(path))
    found["hmac"] = storages.signature(b"y" * 64, {"name": name, "files": found["files"]})
    kept._files.pipe_file(path, json.dumps(found).encode())


def transplant(kept: Storage, name: str) -> None:
    """A folder that was truly signed, under the name of another."""
    kept.put("stages/another", {"network.json": key_path()})
    for path in kept._files.find(f"{kept._root}/stages/another"):
        kept._files.pipe_file(path.replace("stages/another", name), kept._files.cat_file(path))


def spoil(kept: Storage, name: str) -> None:
    """No JSON at all."""
    kept._files.pipe_file(f"{kept._root}/{name}/{KEPT}", b"\x80\x04pickled")


def lose(kept: Storage, name: str) -> None:
    """One file is gone."""
    kept._files.rm_file(
        next(path for path in kept._files.find(f"{kept._root}/{name}") if path.endswith(".safetensors"))
    )


@pytest.mark.parametrize("forge", [forge_file, forge_list, forge_signature, transplant, spoil, lose])
def test_what_is_not_signed_is_ignored_in_a_line_and_made_again(
    forge: Callable[[Storage, str], None], s3: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = store(tmp_path / "a", s3).make("images", IDENTITY, work)
    kept = opened(s3)
    assert kept is not None
    forge(kept, f"stages/{made.id}")
    again = store(tmp_path / "b", s3).make("images", IDENTITY, work)
    assert again.fresh and content_of(again.folder).items() >= CONTENT.items()
    said = capfd.readouterr().err
    assert f"stages/{made.id}" in said and "ignored, and made again" in said
    assert store(tmp_path / "c", s3).make("images", IDENTITY, never).result == {"images": 3}, "and is whole again"


def test_another_key_is_refused_before_any_work(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path / "a", url)
    assert key_path().stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "somebody else"))
    with pytest.raises(InputError, match=r"begun with another key .*there is none in .*Copy the key"):
        store(tmp_path / "b", url)
    assert not key_path().exists(), "a key that nothing was begun with helps nobody"
    other = tmp_path / "other.key"
    other.write_text("z" * 64)
    other.chmod(0o600)
    monkeypatch.setenv(KEY_FILE, str(other))
    with pytest.raises(InputError, match=f"the one in {other}"):
        store(tmp_path / "b", url)


@pytest.mark.parametrize(
    ("mode", "text", "words"), [(0o644, "k" * 64, "chmod 600"), (0o600, "short", "no key"), (None, "", "is missing")]
)
def test_a_key_that_cannot_be_used(
    mode: int | None, text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "named.key"
    if mode is not None:
        path.write_text(text)
        path.chmod(mode)
    monkeypatch.setenv(KEY_FILE, str(path))
    with pytest.raises(InputError, match=words):
        opened(f"memory://{secrets.token_hex(8)}")


# ------------------------------------------------------------------------------------------------------------ trouble


def test_check_leaves_nothing_behind(url: str, tmp_path: Path) -> None:
    check(url)
    files, root = open_url(url)
    assert files.find(root) == []


def test_a_bucket_that_is_missing_is_not_made(s3: str) -> None:
    with pytest.raises(InputError, match=r"cannot be written to .*no such bucket .*make it first"):
        check("s3://nobody-has-this-one/below")


def test_no_credentials(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match=r"cannot be written to .*no credentials"):
        check(s3)


def test_no_permission(s3: str, server: Any) -> None:
    host, port = server.get_host_and_port()

    def allow(requests: int) -> None:  # moto: so many are let through without a look at who asks
        address, words = f"http://{host}:{port}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(address, str(requests).encode(), words)).close()

    allow(0)
    try:
        with pytest.raises(InputError, match=r"cannot be written to .*no permission"):
            check(s3)
    finally:
        allow(10**9)


def test_no_answer(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        S3FileSystem.clear_instance_cache()
        with pytest.raises(InputError, match="does not answer within 1 s"):
            check(s3, limit=1.0)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(InputError, match="pip install gcsfs"):
        check("gs://bucket/folder")
    with pytest.raises(InputError, match="Known: file, s3"):
        check("s4://bucket/folder")


def test_a_read_only_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written to from this machine"):
        check(f"{tmp_path}/file/below")


def test_what_passes_is_tried_again_and_what_does_not_ends_in_one_error_with_the_stage_safe(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = store(tmp_path / "a", url)
    assert here.storage is not None
    real, failures = here.storage._files.put_file, [OSError("reset by peer")] * 3

    def failing(*given: Any) -> None:
        if failures:
            raise failures.pop()
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(here.storage._files, "put_file", failing)
        here.make("images", IDENTITY, work)
        failures += [OSError("reset by peer")] * 1000
        with pytest.raises(WorkError, match=r"could not take files: .*reset by peer.*is safe.*same command"):
            here.make("images", {"size": 64}, lambda folder: work(folder) and {"images": 64})
    assert store(tmp_path / "a", url).make("images", {"size": 64}, never).result == {"images": 64}
    assert store(tmp_path / "b", url).make("images", {"size": 64}, never).result == {"images": 64}


def test_a_server_that_is_away_for_a_moment(
    s3: str, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storages, "FIRST_WAIT", 0.5)
    here = store(tmp_path / "a", s3)
    _, server._port = server.get_host_and_port()
    server.stop()
    back = threading.Timer(1.0, server.start)
    back.start()
    try:
        here.make("images", IDENTITY, work)
    finally:
        back.join()
    assert store(tmp_path / "b", s3).make("images", IDENTITY, never).result == {"images": 3}


def test_a_refusal_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = store(tmp_path / "a", f"memory://{secrets.token_hex(8)}")
    assert here.storage is not None
    tried = []

    def refuse(*given: Any) -> None:
        tried.append(given)
        raise PermissionError("quota")

    monkeypatch.setattr(storages, "WIDTH", 1)
    monkeypatch.setattr(here.storage._files, "put_file", refuse)
    with pytest.raises(WorkError, match="no permission"):
        here.make("images", IDENTITY, work)
    assert len(tried) == 1 and (tmp_path / "a" / "stages").glob(f"*/{MARK}")


def test_machines_without_a_common_disk_are_refused() -> None:
    check_nodes("s3://bucket", Path("runs"), nodes=1, shared=False)
    check_nodes("s3://bucket", Path("runs"), nodes=4, shared=True)
    with pytest.raises(InputError, match=r"4 machines .* do not see one runs"):
        check_nodes("s3://bucket", Path("runs"), nodes=4, shared=False)
