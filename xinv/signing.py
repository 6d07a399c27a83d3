"""The key that signs what a storage keeps (storage.py says why), in a file of the user's own.

Every machine that reads or writes the storage needs this file. It is made at its first use; a copy of it goes wherever
the user's jobs run, by a shared home, a Kubernetes Secret or by hand. It is a secret like an SSH key: who has it can
make this user's runs believe, and so execute, what they have put into the storage.
"""

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

from xinv.errors import InputError
from xinv.files import aside, make_private

KEY_FILE = "XINV_STORAGE_KEY_FILE"


def key_path() -> Path:
    """Where this user's key is: XINV_STORAGE_KEY_FILE, else xinv/storage.key in the folder of the user's settings."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(os.environ.get(KEY_FILE) or home / "xinv" / "storage.key")


def make_key() -> bytes:
    """The key; a new one where there is none. InputError as `read_key`, and for a named file that is missing."""
    path = key_path()
    if not path.exists() and KEY_FILE not in os.environ:
        make_private(path.parent)
        with aside(path) as draft:
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_hex(32) + "\n")
    key = read_key()
    assert key is not None, "it was there, or has been made"
    return key


def read_key() -> bytes | None:
    """The key; None where this machine has none. InputError: others could read it, it is no key, or a file that is
    named by XINV_STORAGE_KEY_FILE is missing."""
    path = key_path()
    if not path.exists():
        if KEY_FILE in os.environ:
            raise InputError(f"{KEY_FILE} names {path}, which is missing. Put the key there, or unset {KEY_FILE}.")
        return None
    status = path.stat()
    # What root has put there (a mounted Secret) is as root wants it.
    if status.st_uid == os.getuid() and status.st_mode & 0o077:
        raise InputError(f"{path} signs what your storage keeps, and others may read it; chmod 600 {path}.")
    key = path.read_bytes().strip()
    if len(key) < 32:
        raise InputError(f"{path} is no key of a storage: expected 32 characters at least, as xinv makes it.")
    return key


def signature(key: bytes, content: Any) -> str:
    """HMAC-SHA256 of a JSON value, in hexadecimal."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, b"xinv storage 1\n" + text.encode(), hashlib.sha256).hexdigest()


def fingerprint(key: bytes) -> str:
    """What may be shown of a key: it tells two apart, and nothing else."""
    return signature(key, "fingerprint")[:16]


def agrees(one: str, other: str) -> bool:
    """Whether two signatures are equal; takes as long wherever they differ."""
    return hmac.compare_digest(one.encode(), other.encode())
