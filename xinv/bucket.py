"""Where a storage is: its URL, opened by fsspec, and whether it can be used from this machine."""

import secrets
import threading
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator

from xinv.errors import InputError
from xinv.files import make_private

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
}
"""Protocols that need a package of their own, and its name."""

CHECK_LIMIT = 60.0  # seconds for `check`


def _plain(url: str) -> str:
    """ValueError for a URL that could not go into resolved.yaml, or that is no place."""
    parts = urlsplit(url)
    if not url.strip() or "::" in url or parts.query or parts.fragment:
        raise ValueError(f"expected one plain URL such as s3://bucket/folder, got {url!r}")
    if "@" in parts.netloc and PACKAGES.get(parts.scheme) != "adlfs":  # abfs://container@account is a place
        raise ValueError(
            "the URL holds credentials, and the run folder shows it to others; give them in the way of the object "
            "store's own client (environment, profile, role)"
        )
    return url


StorageUrl = Annotated[str, AfterValidator(_plain)]


def local_path(url: str) -> Path | None:
    """The folder that a bare path or file: URL names; None for any other."""
    parts = urlsplit(url)
    if parts.scheme in ("file", "local"):
        return Path(parts.netloc + parts.path)
    return None if "://" in url else Path(url).expanduser().absolute()


def open_url(url: str) -> tuple[Any, str]:
    """(fsspec's file system, path of `url` in it). InputError where the protocol is unknown or lacks its package."""
    from fsspec.core import url_to_fs

    path, protocol = local_path(url), urlsplit(url).scheme
    try:
        # What others wrote a moment ago is looked for: no listing is remembered.
        files, root = url_to_fs(url if path is None else str(path), use_listings_cache=False)
    except ImportError as error:
        package = PACKAGES.get(protocol, f"the package for {protocol}")
        raise InputError(f"storage {url} needs a package: pip install {package} on every machine ({error}).") from None
    except ValueError as error:
        raise InputError(f"storage {url} cannot be opened: {error}. Known: {', '.join(['file', *PACKAGES])}.") from None
    return files, root.rstrip("/")


def check(url: str, limit: float = CHECK_LIMIT) -> None:
    """Write, read, list and remove a small object below `url`, from this machine.

    Raises:
        InputError: names what failed: a package or a bucket that is missing, credentials, a permission, or no answer
            within `limit` seconds.
    """
    outcome: list[InputError | None] = []
    thread = threading.Thread(target=lambda: outcome.append(_tried(url)), daemon=True)
    thread.start()
    thread.join(limit)
    if not outcome:
        raise InputError(f"storage {url} does not answer within {limit:.0f} s. Check the URL, endpoint and network.")
    if outcome[0] is not None:
        raise outcome[0]


def _tried(url: str) -> InputError | None:
    """Why `url` cannot be used; None where it can."""
    doing, content = "be opened", secrets.token_bytes(16)
    try:
        files, root = open_url(url)
        path = f"{root}/check-{secrets.token_hex(8)}/probe"
        folder = path.rpartition("/")[0]
        local = local_path(url)
        doing = "be written to"
        if local is not None:
            make_private(local)
            Path(folder).mkdir()
        files.pipe_file(path, content)
        doing = "be read"
        if files.cat_file(path) != content:
            return InputError(f"storage {url} gives back something else than was written to it a moment ago.")
        doing = "be listed"
        if len(files.find(folder)) != 1:
            return InputError(f"storage {url} does not list what was written to it a moment ago.")
        doing = "have objects removed"
        files.rm_file(path)
        if local is not None:
            Path(folder).rmdir()
    except InputError as error:
        return error
    except Exception as error:  # every object store's client has exceptions of its own
        return InputError(f"storage {url} cannot {doing} from this machine: {reason(error)}")
    return None


def reason(error: Exception) -> str:
    """What an exception of fsspec or of a client means, and its own words."""
    own = f"{type(error).__name__}: {error}".splitlines()[0]
    if "credential" in own.lower():
        return f"no credentials are found here, or they are not accepted ({own})."
    if isinstance(error, PermissionError):
        return f"no permission ({own})."
    if isinstance(error, FileNotFoundError):
        return f"no such bucket or container; make it first, xinv makes none ({own})."
    return f"{own}."


def check_nodes(url: str, runs: Path, nodes: int, shared: bool) -> None:
    """InputError where several machines are to work on run folders that they do not share (`shared`: they do).

    Ranks write one checkpoint together, and each worker reads what another has made. A storage keeps what is finished;
    it is no disk that they could do this on.
    """
    if nodes > 1 and not shared:
        raise InputError(
            f"The {nodes} machines of this job do not see one {runs}, and the processes of one run need a disk in "
            f"common beside storage ({url}): name a folder on one as runs, or ask for one machine with all the GPUs."
        )
