import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from trees import shared

from xinv.data import fetch as fetching
from xinv.data.fetch import SETS, PublishedFile, PublishedSet, fetch
from xinv.errors import InputError, WorkError

CONTENTS = {"one.gz": b"0123456789" * 5000, "two.gz": b"labels"}
FILES = {name: PublishedFile(len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENTS.items()}


class Mirror(ThreadingHTTPServer):
    """A mirror on this machine that notes what it was asked for."""

    def __init__(self, contents: dict[str, bytes], resumes: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents, self.resumes, self.asked = contents, resumes, list[tuple[str, str | None]]()
        self.breaks_after: int | None = None
        self.address = f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        name, wanted = self.path.lstrip("/"), self.headers["Range"]
        self.server.asked.append((name, wanted))
        if name not in self.server.contents:
            self.send_error(404)
            return
        data, start = self.server.contents[name], 0
        if wanted and self.server.resumes:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : self.server.breaks_after])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator:
    started: list[Mirror] = []

    def start(contents: dict[str, bytes] = CONTENTS, **more: bool) -> Mirror:
        mirror = Mirror(contents, **more)
        threading.Thread(target=mirror.serve_forever, daemon=True).start()
        started.append(mirror)
        return mirror

    yield start
    for mirror in started:
        mirror.shutdown()
        mirror.server_close()


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch):
    """Let the set `tiny` be published at these addresses, and let no proxy come between."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return lambda *addresses: monkeypatch.setitem(SETS, "tiny", PublishedSet(addresses, FILES))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_arrive_whole_and_once(tmp_path, serve, publish):
    mirror, seen = serve(), []
    publish(mirror.address)
    paths = fetch("tiny", tmp_path / "a" / "b", progress=lambda done, total, note: seen.append((done, total)))
    assert contents(tmp_path / "a" / "b") == CONTENTS
    assert [path.name for path in paths] == list(CONTENTS)
    assert seen == sorted(seen) and seen[-1] == (50_006, 50_006)
    fetch("tiny", tmp_path / "a" / "b")
    assert len(mirror.asked) == 2


@pytest.mark.parametrize("resumes", [True, False])
def test_a_broken_download_is_continued(tmp_path, serve, publish, resumes):
    mirror = serve(resumes=resumes)
    publish(mirror.address)
    mirror.breaks_after = 20_000
    with pytest.raises(WorkError, match="ended after 20,000 of 50,000 bytes"):
        fetch("tiny", tmp_path)
    assert not (tmp_path / "one.gz").exists()
    mirror.breaks_after = None
    fetch("tiny", tmp_path)
    assert contents(tmp_path) == CONTENTS
    assert [wanted for name, wanted in mirror.asked if name == "one.gz"] == [None, "bytes=20000-"]


def test_a_wrong_beginning_is_thrown_away(tmp_path, serve, publish):
    mirror = serve()
    publish(mirror.address)
    (tmp_path / ".one.gz.partial").write_bytes(b"x" * 20_000)
    (tmp_path / ".two.gz.partial").write_bytes(b"longer than the file is")
    fetch("tiny", tmp_path)
    assert contents(tmp_path) == CONTENTS
    assert [wanted for name, wanted in mirror.asked if name == "one.gz"] == ["bytes=20000-", None]


def test_the_next_mirror_is_tried(tmp_path, serve, publish):
    wrong, good = serve({name: data[::-1] for name, data in CONTENTS.items()}), serve()
    publish("http://127.0.0.1:9/", serve({}).address, wrong.address, good.address)
    fetch("tiny", tmp_path)
    assert contents(tmp_path) == CONTENTS and len(wrong.asked) == 2


def test_without_a_mirror_the_message_names_the_offline_road(tmp_path, serve, publish):
    publish("http://127.0.0.1:9/", serve(dict.fromkeys(CONTENTS, b"other")).address)
    with pytest.raises(WorkError) as caught:
        fetch("tiny", tmp_path)
    message = str(caught.value)
    assert "one.gz could not be fetched" in message and "refused" in message and "ended after 5 of 50,000" in message
    assert f"xinv data fetch tiny {tmp_path} --from FOLDER" in message
    assert not (tmp_path / "one.gz").exists()


def test_a_mirror_may_be_a_folder(tmp_path, publish):
    for name, data in CONTENTS.items():
        (tmp_path / name).write_bytes(data)
    publish(f"{tmp_path.as_uri()}/")
    fetch("tiny", tmp_path / "copy")
    assert contents(tmp_path / "copy") == CONTENTS


def test_a_full_disk_is_no_fault_of_the_network(tmp_path, serve, publish, monkeypatch):
    publish(serve().address)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching, "_continue", full)
    with pytest.raises(OSError, match="No space left"):
        fetch("tiny", tmp_path)


def test_from_a_folder_files_are_checked_and_copied(tmp_path, publish):
    publish("http://127.0.0.1:9/")
    (tmp_path / "usb").mkdir()
    (tmp_path / "usb" / "one.gz").write_bytes(CONTENTS["one.gz"])
    with pytest.raises(InputError, match=r"usb/two\.gz is missing"):
        fetch("tiny", tmp_path / "set", tmp_path / "usb")
    (tmp_path / "usb" / "two.gz").write_bytes(b"labelz")
    with pytest.raises(InputError, match=r"usb/two\.gz is not the published file: expected 6 bytes with SHA-256"):
        fetch("tiny", tmp_path / "set", tmp_path / "usb")
    assert list(contents(tmp_path / "set")) == ["one.gz"]
    (tmp_path / "usb" / "two.gz").write_bytes(CONTENTS["two.gz"])
    fetch("tiny", tmp_path / "set", tmp_path / "usb")
    assert contents(tmp_path / "set") == CONTENTS


def test_another_file_of_the_name_is_left_alone(tmp_path, serve, publish):
    publish(serve().address)
    (tmp_path / "one.gz").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"one\.gz is there and is not the published file; move it away"):
        fetch("tiny", tmp_path)
    assert (tmp_path / "one.gz").read_bytes() == b"mine"


def test_unknown_sets_list_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="no set is called 'cifar'; known are mnist, fashion_mnist"):
        fetch("cifar", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_sums_are_those_of_the_published_files(name, tmp_path):
    fetch(name, tmp_path / name, shared(name))
    assert len(contents(tmp_path / name)) == 4
