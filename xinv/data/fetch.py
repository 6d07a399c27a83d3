"""Downloading MNIST and Fashion-MNIST: public mirrors, pinned SHA-256, resumable, and an offline road.

The SHA-256 sums and sizes are of files whose MD5 sums equal the published ones: MNIST f68b3c2d..., d53e105e...,
9fb629c4..., ec29112d... (as torchvision pins them), Fashion-MNIST 8d4fb7e6..., 25c81989..., bef4ecab..., bb300cfd...
(as its README lists them), each in the order training images, training labels, test images, test labels.
"""

import contextlib
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from xinv.errors import InputError, WorkError
from xinv.files import aside, make_private
from xinv.progress import Progress, silent

TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 18  # bytes read at once
NETWORK_ERRORS = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)


@dataclass(frozen=True)
class PublishedFile:
    """One file as it was published."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class PublishedSet:
    """A set of images that may be fetched: where from, and what must arrive."""

    mirrors: tuple[str, ...]  # addresses that a file's name is put behind; tried in this order
    files: dict[str, PublishedFile]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


SETS: dict[str, PublishedSet] = {
    "mnist": PublishedSet(
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        files={
            "train-images-idx3-ubyte.gz": PublishedFile(
                9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
            ),
            "train-labels-idx1-ubyte.gz": PublishedFile(
                28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
            ),
            "t10k-images-idx3-ubyte.gz": PublishedFile(
                1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
            ),
            "t10k-labels-idx1-ubyte.gz": PublishedFile(
                4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
            ),
        },
    ),
    "fashion_mnist": PublishedSet(
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        files={
            "train-images-idx3-ubyte.gz": PublishedFile(
                26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
            ),
            "train-labels-idx1-ubyte.gz": PublishedFile(
                29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
            ),
            "t10k-images-idx3-ubyte.gz": PublishedFile(
                4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
            ),
            "t10k-labels-idx1-ubyte.gz": PublishedFile(
                5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
            ),
        },
    ),
}


def fetch(name: str, folder: Path, source: Path | None = None, progress: Progress = silent) -> list[Path]:
    """Put the files of the set `name` into `folder`, checked, and return their paths.

    A file that is there and right is kept; one that was cut off is continued from where it ended. With `source`, a
    folder that holds the files already, nothing is downloaded: they are checked and copied. Every file appears under
    its name by a rename, after its SHA-256 was found right. `progress` counts bytes.

    Raises:
        InputError: unknown name; another file of that name is in `folder`; `source` lacks a file or holds another.
        WorkError: no mirror could be reached, or none gave the published file.
        OSError: the disk.
    """
    if name not in SETS:
        raise InputError(f"no set is called {name!r}; known are {', '.join(SETS)}.")
    published = SETS[name]
    make_private(folder)
    paths, done = [], 0
    for file_name, file in published.files.items():
        path = folder / file_name

        def advance(count: int, start: int = done, note: str = file_name) -> None:
            progress(start + count, published.bytes, note)

        if path.exists():
            _keep(path, file)
        elif source is not None:
            _copy(source.expanduser() / file_name, path, file)
        else:
            _download(name, published.mirrors, path, file, advance)
        done += file.bytes
        progress(done, published.bytes, file_name)
        paths.append(path)
    return paths


def _keep(path: Path, file: PublishedFile) -> None:
    if not _is(path, file):
        raise InputError(f"{path} is there and is not the published file; move it away and fetch again.")


def _is(path: Path, file: PublishedFile) -> bool:
    """Whether `path` holds the published bytes."""
    if path.stat().st_size != file.bytes:
        return False
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest() == file.sha256


def _copy(origin: Path, path: Path, file: PublishedFile) -> None:
    if not origin.is_file():
        raise InputError(f"{origin} is missing; the folder given as source must hold the files as they were published.")
    with aside(path) as draft:
        draft.write_bytes(origin.read_bytes())
        if not _is(draft, file):
            raise InputError(
                f"{origin} is not the published file: expected {file.bytes:,} bytes with SHA-256 {file.sha256}, "
                f"got {origin.stat().st_size:,} bytes; get it again."
            )


def _download(
    name: str, mirrors: tuple[str, ...], path: Path, file: PublishedFile, advance: Callable[[int], None]
) -> None:
    """Fill a file beside `path` from the first mirror that gives the right bytes, then rename it to `path`."""
    draft = path.with_name(f".{path.name}.partial")  # kept when the connection breaks: the next try continues it
    problems = []
    for mirror in mirrors:
        for _ in range(2):  # a second time from the beginning, where what an earlier run had left was wrong
            continued = draft.exists()
            try:
                _continue(mirror + path.name, draft, file.bytes, advance)
            except NETWORK_ERRORS as error:
                problems.append(f"{mirror}: {getattr(error, 'reason', None) or error}")
                break
            if _is(draft, file):
                draft.replace(path)
                return
            draft.unlink()
            if not continued:
                problems.append(f"{mirror}: gave other bytes than were published")
                break
    raise WorkError(
        f"{path.name} could not be fetched ({'; '.join(problems)}). Where there is no internet, copy the four files of "
        f"{name} from another machine and run: xinv data fetch {name} {path.parent} --from FOLDER"
    )


def _continue(address: str, draft: Path, size: int, advance: Callable[[int], None]) -> None:
    """Append to `draft` what it lacks of the file at `address`. One of NETWORK_ERRORS, or OSError: the disk."""
    have = draft.stat().st_size if draft.exists() else 0
    if have >= size:
        draft.unlink()
        have = 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    with contextlib.closing(urllib.request.urlopen(request, timeout=TIMEOUT)) as answer:
        resumed = have > 0 and getattr(answer, "status", None) == 206  # a server that cannot resume sends all again
        have = have if resumed else 0
        with draft.open("ab" if resumed else "wb") as stream:
            while have <= size and (block := answer.read(BLOCK)):
                stream.write(block)
                have += len(block)
                advance(min(have, size))
    if have < size:
        raise ConnectionError(f"the connection ended after {have:,} of {size:,} bytes")
