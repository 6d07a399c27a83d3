"""Files that hold what must be rendered, to the letter."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


def check_golden(name: str, text: str) -> None:
    """Compare `text` with tests/golden/`name`; XINV_UPDATE_GOLDEN=1 writes it there instead."""
    path = FOLDER / name
    if os.environ.get("XINV_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    expected = path.read_text() if path.exists() else ""
    assert text == expected, (
        f"what is rendered differs from {path}. Where that is meant, run this test with XINV_UPDATE_GOLDEN=1, and look "
        "at what changed with git diff"
    )
