"""Addresses, tokens, and what is said where a Ray cluster does not answer as it should."""

import functools
import http.server
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import ray_client
from launch.ray_client import RaySite, checked_address, client, dashboard_of, token_of
from xinv import parallel
from xinv.errors import InputError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No token of the tester's own. That of this process stays: Ray reads it once."""
    parallel.secure()
    monkeypatch.setattr(ray_client, "MADE", {os.environ.get("RAY_AUTH_TOKEN")})
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a web server that is no dashboard."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("on", ["http://head:8265", "https://ray.example.org/cluster", "ray://10.0.0.1:10001"])
def test_addresses(on: str) -> None:
    assert checked_address(f"{on}/") == on


@pytest.mark.parametrize("on", ["http://", "http://:8265", "http://head:port", "http://head:99999", "ray://head?x=1"])
def test_what_is_no_address(on: str) -> None:
    with pytest.raises(InputError, match="no address of a Ray cluster"):
        checked_address(on)


def test_an_address_holds_no_password() -> None:
    with pytest.raises(InputError, match="would be recorded") as refused:
        checked_address("http://me:pa55@head:8265")
    assert "pa55" not in str(refused.value)


def test_where_the_token_comes_from(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_of(RaySite()) is None
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("of Ray's own place\n")
    assert token_of(RaySite()) == "of Ray's own place"
    (home / "site").write_text("of the site\n")
    site = RaySite(token=Path("~/site"))
    assert token_of(site) == "of the site"
    (home / "named").write_text("of the named file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "named"))
    assert token_of(site) == "of the named file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the environment")
    assert token_of(site) == "of the environment"
    monkeypatch.setattr(ray_client, "MADE", {"of the environment"})
    assert token_of(site) == "of the named file", "a token for clusters of our own is no other cluster's"


def test_a_token_file_that_is_missing(home: Path) -> None:
    with pytest.raises(InputError, match=r"is to be in .*nowhere, which cannot be read \(No such file"):
        token_of(RaySite(token=home / "nowhere"))


def test_nobody_answers() -> None:
    with pytest.raises(InputError, match=r"No Ray cluster answers at http://127\.0\.0\.1:9 \(Connection refused\)"):
        client("http://127.0.0.1:9", RaySite())


def test_somebody_takes_the_connection_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_client, "ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(InputError, match="does not answer in time"):
        client(f"http://127.0.0.1:{mute.getsockname()[1]}", RaySite())


def test_what_answers_is_no_dashboard(web: str) -> None:
    with pytest.raises(InputError, match="is no dashboard of Ray"):
        client(web, RaySite())


def test_tls_where_there_is_none(web: str) -> None:
    with pytest.raises(InputError, match=r"No safe connection to https://.*wrong version number"):
        client(web.replace("http", "https"), RaySite())


def test_certificates_that_are_not_there(home: Path) -> None:
    with pytest.raises(InputError, match=r"ray\.verify of the site file"):
        client("https://127.0.0.1:9", RaySite(verify=home / "ca.pem"))


def test_the_token_makes_way_for_what_a_proxy_wants() -> None:
    headers = ray_client._authorization("t0", RaySite(headers={"authorization": "Basic eA=="}))
    assert headers == {"X-Ray-Authorization": "Bearer t0"}
    assert ray_client._authorization("t0", RaySite()) == {"Authorization": "Bearer t0"}
    assert ray_client._authorization(None, RaySite()) == {}


def learned(monkeypatch: pytest.MonkeyPatch, **answer: Any) -> None:
    """What the program says that asks behind ray://."""
    outcome = {"returncode": 0, "stdout": "", "stderr": "", **answer}
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(**outcome))
    dashboard_of.cache_clear()


def test_a_dashboard_behind_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    learned(monkeypatch, stdout="10.0.0.1:8265\n")
    assert dashboard_of("ray://head:10001", None) == "http://10.0.0.1:8265"
    learned(monkeypatch, stdout="127.0.0.1:8265\n")
    with pytest.raises(InputError, match=r"listens on its own machine alone.*ssh -L 8265"):
        dashboard_of("ray://head:10001", None)
    assert dashboard_of("ray://127.0.0.1:10001", None) == "http://127.0.0.1:8265"
    learned(monkeypatch, returncode=1, stderr="...\nConnectionError: ray client connection timeout\n")
    with pytest.raises(InputError, match=r"connection timeout\)\. Name the dashboard itself: --on http://head:8265"):
        dashboard_of("ray://head:10001", None)
