"""Pages of reports as their readers have them."""

import base64
import html
import re
from pathlib import Path
from typing import Any

from xinv.report.page import write_report


def render(scores: dict[str, Any], pictures: Path, settings: str = "audit: tiny\n") -> str:
    """The report of an audit, written beside its pictures."""
    path = pictures.with_name("report.html")
    write_report(scores, pictures, settings, path)
    return path.read_text()


def visible(page: str) -> str:
    """The text of the page, without markup."""
    body = re.sub(r"<style>.*?</style>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def pictured(page: str) -> list[str]:
    """The SVG pictures of a page, or of one URI."""
    found = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page)
    return [base64.b64decode(one).decode() for one in found]
