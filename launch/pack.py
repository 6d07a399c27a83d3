"""The working tree in one zip file, for a cluster that has not got it: the code, without runs, data and secrets.

In a git checkout that is what git tracks, and what it does not ignore; elsewhere every file below the folder but hidden
folders, virtual environments and the like. Of the same files the zip is the same, byte for byte: a cluster that has it
is not sent it again.
"""

import os
import re
import subprocess
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from xinv.errors import InputError

MIB = 2**20
FILES = 10_000
"""Files in a package at most: more of them are no code."""

SKIPPED = ("wandb", "node_modules", "__pycache__", "*.egg-info")
"""Folders that hold no code of the user's."""

SECRET = (
    ".env", ".env.*", "*.env", ".netrc", "_netrc", ".pypirc", ".npmrc", ".pgpass", ".git-credentials", ".htpasswd",
    "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.asc", "*.gpg", "kubeconfig",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".aws", ".ssh", ".gnupg", ".kube", ".docker", ".azure",
)  # fmt: skip
"""Names of files and folders that hold secrets."""

TELLING = re.compile(
    r"(?<![a-z])(api[_-]?keys?|(auth)?tokens?|secrets?|credentials?|passwords?|passwd|service[_-]?accounts?)(?![a-z])"
)
"""Words in the path of a file that holds a secret, unless it is code or prose."""

PLAIN = (".py", ".pyi", ".pyx", ".c", ".cc", ".cpp", ".cu", ".h", ".hpp", ".js", ".html", ".css", ".j2", ".md", ".rst")
"""Endings of code and prose."""


@dataclass(frozen=True)
class Tree:
    """The files to pack."""

    root: Path
    files: tuple[str, ...]  # relative to the root, with slashes, in order
    size: int  # bytes of all
    secrets: tuple[str, ...]  # left out for their names

    def __contains__(self, path: object) -> bool:
        return path in self.files

    def words(self) -> str:
        count = len(self.files)
        return f"{count:,} {'file' if count == 1 else 'files'}, {size_words(self.size)}, of {self.root}"


def tree_of(root: Path, without: Iterable[Path] = (), exclude: Iterable[str] = (), limit: int = 100 * MIB) -> Tree:
    """What to pack of `root`; nothing where it holds no Python.

    Args:
        root: absolute path of the folder whose code is wanted elsewhere.
        without: absolute paths of files and folders that are not packed: runs, data. Python files in `without` are.
        exclude: more of them, as patterns of their paths below the root: scratch/*, *.bin.
        limit: bytes of all files together.

    Raises:
        InputError: the files are too many or too large; git refuses to list them.
    """
    apart, patterns = tuple(without), tuple(exclude)
    files, secrets, sizes = [], [], {}
    for name in sorted(_listed(root)):
        path = root / name
        if _is_apart(path, apart) or any(fnmatch(name, pattern) for pattern in patterns) or not _is_inside(path, root):
            continue
        if is_secret(name):
            secrets.append(name)
            continue
        files.append(name)
        sizes[name] = path.stat().st_size
    if not any(name.endswith(".py") for name in files):
        return Tree(root, (), 0, tuple(secrets))
    tree = Tree(root, tuple(files), sum(sizes.values()), tuple(secrets))
    if len(files) > FILES or tree.size > limit:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
        raise InputError(
            f"The code to send would be {tree.words()}; the limit is {FILES:,} files and {size_words(limit)}. The "
            f"largest are {', '.join(f'{name} ({size_words(sizes[name])})' for name in largest)}. Move data elsewhere, "
            "have git ignore it, or name it in the site file (ray: {exclude: ['data/*']})."
        )
    return tree


def write_zip(tree: Tree, path: Path) -> None:
    """Write the files to a zip file. OSError where one of them has gone meanwhile."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in tree.files:
            source = tree.root / name
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o700 if os.access(source, os.X_OK) else 0o600) << 16
            archive.writestr(entry, source.read_bytes())


def is_secret(name: str) -> bool:
    """Whether a path below the root looks as if it held a secret."""
    parts = PurePosixPath(name.lower()).parts
    if any(fnmatch(part, pattern) for part in parts for pattern in SECRET):
        return True
    return not name.lower().endswith(PLAIN) and any(TELLING.search(part) for part in parts)


def size_words(size: int) -> str:
    """1.3 MB, 12.0 kB, 140 bytes."""
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _is_apart(path: Path, apart: tuple[Path, ...]) -> bool:
    return path.suffix != ".py" and any(path.is_relative_to(one) for one in apart)


def _is_inside(path: Path, root: Path) -> bool:
    """A file that is there, and where links lead to, too: a link to data elsewhere would pack the data."""
    return path.is_file() and path.resolve().is_relative_to(root.resolve())


def _listed(root: Path) -> Iterator[str]:
    """Files below the root that may be packed."""
    names = set(_listed_by_git(root) or _walked(root))  # nothing: a folder that git ignores
    environments = tuple(name.removesuffix("pyvenv.cfg") for name in names if name.endswith("/pyvenv.cfg"))
    for name in names:
        folders = name.split("/")[:-1]
        if not name.startswith(environments) and not any(fnmatch(one, skip) for one in folders for skip in SKIPPED):
            yield name


def _listed_by_git(root: Path) -> list[str] | None:
    """None outside a checkout."""
    git = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        environment = {**os.environ, "LC_ALL": "C"}  # for the one message that is read below
        done = subprocess.run(git, capture_output=True, text=True, timeout=60, check=False, env=environment)
    except FileNotFoundError:
        return None
    if done.returncode != 0:
        if "not a git repository" in done.stderr:
            return None
        raise InputError(f"git does not list the files of {root}: {done.stderr.strip().splitlines()[0]}")
    found = []
    for name in filter(None, done.stdout.split("\0")):
        path = root / name
        if not path.is_dir():
            found.append(name)
        elif not path.is_symlink():  # a repository within, of which git tells the name alone
            found += [f"{name.rstrip('/')}/{inner}" for inner in _listed_by_git(path) or ()]
    return found


def _walked(root: Path) -> Iterator[str]:
    count = 0
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = [one for one in folders if one[0] != "." and not (here / one / "pyvenv.cfg").exists()]
        for name in names:
            count += 1
            if count > 10 * FILES:
                raise InputError(
                    f"{root} holds more than {10 * FILES:,} files: too many to be a project's folder. Submit from the "
                    "folder that holds your code."
                )
            yield (here / name).relative_to(root).as_posix()
