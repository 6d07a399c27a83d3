"""Storages for tests: a key of the test's own, and an S3 server in a thread of the test process."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xinv import storage as storages
from xinv.signing import KEY_FILE
from xinv.storage import opened


@pytest.fixture(autouse=True)
def own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A key of the test's own, no storage remembered, and no long waits."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.delenv(KEY_FILE, raising=False)
    monkeypatch.setattr(storages, "FIRST_WAIT", 0.01)
    opened.cache_clear()
    yield
    opened.cache_clear()


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """An S3 server that has no bucket yet."""
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def s3(server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a bucket that exists, with credentials for it in the environment."""
    import boto3
    from s3fs import S3FileSystem

    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    S3FileSystem.clear_instance_cache()
    bucket = f"tests-{secrets.token_hex(4)}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"
