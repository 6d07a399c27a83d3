"""A report opened in Chromium, where the machine has one."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ACCENT = (0x1F, 0x4E, 0x79)


def accent_pixels(page: Path, height: int) -> int:
    """How many pixels of a page, 1200 px wide and `height` px high, have the accent colour of charts and links."""
    picture = page.with_name("page.png")
    subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={picture}",
         f"--window-size=1200,{height}", f"file://{page}"],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return int((np.abs(pixels.astype(int) - ACCENT).sum(1) < 12).sum())
