"""The verbs. Each calls one function of the project; here its answer becomes text and its errors exit codes.

0 done, 1 the work failed, 2 the input was wrong, 130 interrupted.
"""

import errno
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from launch.cli import SUBMIT_HELP, jobs, submit
from launch.plan import PLAN_HELP, plan
from xinv.console import AsJson, help_text, print_table, screen
from xinv.errors import InputError, WorkError
from xinv.search.verb import SEARCH_HELP, search

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
config_verbs = typer.Typer(no_args_is_help=True, help="Print a configuration resolved, or its JSON schema.")
shards_verbs = typer.Typer(no_args_is_help=True, help="Check or look at a set of shards.")
app.add_typer(config_verbs, name="config")
data_verbs = typer.Typer(no_args_is_help=True, help="Get public data sets, checked by their hashes.")
app.add_typer(shards_verbs, name="shards")
app.add_typer(data_verbs, name="data")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as configs/demo.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="settings to change, such as seed=1 or attack.training.epochs=5"),
]
ShardFolder = Annotated[Path, typer.Argument(metavar="DIR", help="folder that holds an index.json")]


class Until(StrEnum):
    """The stages of an audit in order."""

    images = "images"
    target = "target"
    releases = "releases"
    inverters = "inverters"
    scores = "scores"
    report = "report"


app.command("search", help=SEARCH_HELP)(search)
app.command("submit", help=SUBMIT_HELP)(submit)
app.command("plan", help=PLAN_HELP)(plan)
app.add_typer(jobs, name="jobs")


@app.callback(help="Measure what an explainable image model leaks about the private images behind its decisions.")
def _root() -> None:
    """Holds the program's help."""


@app.command(
    help=help_text(
        "Run an audit: images, target, explanations, inverters, scores, report.",
        "xinv audit configs/demo.yaml seed=1 name=second",
    ),
)
def audit(
    config: ConfigFile,
    overrides: Overrides = None,
    until: Annotated[Until, typer.Option(help="the last stage wanted")] = Until.report,
    as_json: AsJson = False,
) -> None:
    from xinv import audit as audits
    from xinv import config as configs
    from xinv.binding import bind
    from xinv.files import make_private
    from xinv.progress import chatter_into

    settings = configs.load(config, overrides or ())
    bind(settings)
    with chatter_into(make_private(settings.folder) / "log.txt") as terminal:
        if as_json:
            terminal.console.quiet = True
        scores = audits.run(settings, terminal.stage, until.value)
    if as_json:
        print(json.dumps(scores))
    elif scores:
        _print_scores(scores, settings.folder)


def _print_scores(scores: dict[str, Any], folder: Path) -> None:
    from xinv.report.summary import summary_rows, verdict

    console = screen()
    console.print()
    print_table(console, summary_rows(scores))
    console.print()
    console.print(verdict(scores), markup=False)
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True, markup=False)


@app.command(
    help=help_text(
        "Run an analysis of factors: a base audit, varied one setting at a time, with one report for all.",
        "xinv factors configs/factors.yaml trials.at_once=2",
    ),
)
def factors(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as configs/factors.yaml")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="settings to change, such as overrides.attack.training.epochs=5"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    from xinv.binding import bind_folder
    from xinv.factors import run as analyses
    from xinv.factors import settings as analysis_settings
    from xinv.factors.trial import trials_of
    from xinv.progress import chatter_into

    settings = analysis_settings.load(config, overrides or ())
    expanded = trials_of(settings, str(config))
    resolved, kept = analyses.resolved(settings, expanded), expanded.base.storage
    bind_folder(settings.folder, resolved, analyses.UNBOUND, "this analysis", kept)
    with chatter_into(settings.folder / "log.txt") as terminal:
        if as_json:
            terminal.console.quiet = True
        found = analyses.run(settings, terminal.stage)
    if as_json:
        print(json.dumps(found))
    else:
        _print_factors(found, settings.folder)


def _print_factors(found: dict[str, Any], folder: Path) -> None:
    from xinv.report.factors import sentence, summary_rows

    console = screen()
    console.print()
    print_table(console, summary_rows(found), words=4)
    for factor in found["factors"]:
        console.print()
        console.print(f"{factor['title']}: {sentence(factor, found)}", markup=False)
    console.print()
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True, markup=False)


@config_verbs.command(
    "show",
    help=help_text(
        "Print the configuration with every default and override.", "xinv config show configs/demo.yaml seed=1"
    ),
)
def config_show(config: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    from xinv import config as configs

    settings = configs.load(config, overrides or ())
    print(settings.model_dump_json(indent=1) if as_json else configs.dump(settings), end="" if not as_json else "\n")


@config_verbs.command(
    "schema",
    help=help_text(
        "Print the JSON schema of configuration files, for editors.", "xinv config schema > xinv.schema.json"
    ),
)
def config_schema() -> None:
    from xinv import config as configs

    print(configs.schema())


@shards_verbs.command(
    "verify",
    help=help_text(
        "Check every shard against the index: counts, bytes, hashes, schema.",
        "xinv shards verify runs/stages/images-0123456789ab",
    ),
)
def shards_verify(folder: ShardFolder, as_json: AsJson = False) -> None:
    from xinv.data.index import Index
    from xinv.data.shards import verify
    from xinv.progress import Terminal

    terminal = Terminal()
    terminal.console.quiet = as_json
    index = Index.load(folder)
    with terminal.stage(f"Verify {folder.name}") as progress:
        problems = verify(folder, progress)
        progress(1, 1, f"{len(problems)} problems")
    if as_json:
        print(json.dumps({"folder": str(folder), "problems": problems}))
    if problems:
        raise InputError(
            "\n".join([*problems, f"{folder} is not sound. Remove it, and the audit that made it makes it again."])
        )
    if not as_json:
        shards = sum(len(entries) for entries in index.partitions.values())
        print(f"{folder}: {shards} shards, {sum(map(index.samples, index.partitions))} samples, all as the index says.")


@shards_verbs.command(
    "show",
    help=help_text(
        "Print counts and schema, and draw a contact sheet (PNG).",
        "xinv shards show runs/stages/images-0123456789ab --sheet sheet.png",
    ),
)
def shards_show(
    folder: ShardFolder,
    sheet: Annotated[
        Path | None, typer.Option(help="where the contact sheet goes (default: DIR/contact_sheet.png)")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=64, help="rows of the contact sheet")] = 8,
    as_json: AsJson = False,
) -> None:
    from xinv.data.shards import describe
    from xinv.data.sheet import contact_sheet

    found = describe(folder)
    path = sheet or folder / "contact_sheet.png"
    contact_sheet(folder, path, rows)
    if as_json:
        print(json.dumps({**found, "contact_sheet": str(path)}))
        return
    console = screen()
    table = Table("partition", box=None, header_style="bold", pad_edge=False)
    for heading in ("shards", "samples", "bytes"):
        table.add_column(heading, justify="right")
    for name, part in found["partitions"].items():
        table.add_row(name, *(f"{part[key]:,}" for key in ("shards", "samples", "bytes")))
    console.print(table)
    fields = Table("field", "dtype", "shape", "units", box=None, header_style="bold", pad_edge=False)
    for name, field in found["fields"].items():
        fields.add_row(name, field["dtype"], str(tuple(field["shape"])), field["units"])
    console.print(fields)
    console.print(f"Contact sheet: {path}", soft_wrap=True, markup=False)


@data_verbs.command(
    "fetch",
    help=help_text(
        "Download mnist or fashion_mnist, or copy it, and check its files.", "xinv data fetch mnist data/mnist"
    ),
)
def data_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="mnist or fashion_mnist")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where the files go")],
    source: Annotated[Path | None, typer.Option("--from", help="copy from this folder; nothing is downloaded")] = None,
) -> None:
    from xinv.data.fetch import fetch
    from xinv.progress import Terminal

    with Terminal().stage(f"Fetch {name}") as progress:
        fetch(name, folder, source, progress)
        progress(1, 1, str(folder))


@app.command(
    help=help_text("Look at what works on this machine, and how to mend what does not.", "xinv doctor --prepare"),
)
def doctor(
    prepare: Annotated[bool, typer.Option(help="also build ahead what the first training would build")] = False,
    as_json: AsJson = False,
) -> None:
    from dataclasses import asdict

    from xinv import doctor as doctors

    console = screen()
    if prepare:
        line = doctors.prepare(lambda done, total, note: None)
        if not as_json:
            console.print(line)
    checks = doctors.diagnose()
    if as_json:
        print(json.dumps([asdict(check) for check in checks]))
    else:
        table = Table("", "check", "found", "mend", box=None, header_style="bold", pad_edge=False)
        marks = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}
        for check in checks:
            table.add_row(marks[check.state], check.name, check.found, check.mend)
        console.print(table)
    failed = [check.name for check in checks if check.state == "fail"]
    if failed:
        raise WorkError(f"{', '.join(failed)}: xinv will not work here until this is mended.")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and where it was not done, what there is to say."""

    code: int
    kind: str = ""
    message: str = ""


def outcome(arguments: Callable[[], Sequence[str] | None]) -> Ended:
    """Run the command line that `arguments` returns; errors (also its own) become an exit code and a message."""
    try:
        found = arguments()
        app(args=None if found is None else list(found))
    except SystemExit as end:  # typer's own: help, a usage error it has printed, or Ctrl-C
        if end.code == 130:
            return Ended(130, "interrupted", "the same command continues where this one stopped.")
        return Ended(end.code if isinstance(end.code, int) else 0)
    except InputError as error:
        return Ended(2, "error", str(error))
    except WorkError as error:
        return Ended(1, "failed", str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        advice = "Free some space or choose another place (runs=...); the same command then continues."
        return Ended(2, "error", f"{error}. {advice}")
    return Ended(0)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors become one message on stderr."""
    ended = outcome(lambda: arguments)
    if ended.message:
        console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
        console.print(f"[bold red]{ended.kind}:[/]", end=" ")
        console.print(ended.message, markup=False)
    return ended.code


def main() -> None:
    """Entry point of the `xinv` command."""
    sys.exit(run())


if __name__ == "__main__":
    main()
