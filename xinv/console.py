"""What the verbs share: the terminal, their help, tables, and options."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from xinv.progress import Rows, table

AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]


def help_text(what: str, example: str) -> str:
    """One line of what a verb does, then an example of it."""
    return f"{what}\n\nExample: [bold]{example}[/]"


def screen() -> Console:
    """The terminal as it is; a file or a pipe gets lines wide enough for every table."""
    return Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 132)


def print_table(console: Console, rows: Rows, words: int = 1) -> None:
    """One row a dict, headings all equal; `words`: columns that are not numbers."""
    console.print(table(rows, words))
