"""What the verbs share: the terminal, their help, tables, and options."""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]


def help_text(what: str, example: str) -> str:
    """One line of what a verb does, then an example of it."""
    return f"{what}\n\nExample: [bold]{example}[/]"


def screen() -> Console:
    """The terminal as it is; a file or a pipe gets lines wide enough for every table."""
    return Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 132)


def print_table(console: Console, rows: list[dict[str, str]], words: int = 1) -> None:
    """One row a dict, headings all equal; `words`: columns that are not numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for place, heading in enumerate(rows[0]):
        table.add_column(str(heading), justify="left" if place < words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
