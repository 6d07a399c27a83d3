"""The verb `xinv search`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from xinv.console import AsJson, help_text, print_table, screen
from xinv.errors import InputError


class Look(StrEnum):
    """What `xinv search` says of a run folder, in place of running a search."""

    status = "status"
    best = "best"
    report = "report"


SEARCH_HELP = help_text(
    "Search for an inverter that reconstructs better: trials on Ray Tune; the same command continues them. "
    "`xinv search status RUN`, `xinv search best RUN` and `xinv search report RUN` (an HTML page) look at a search, "
    "also while it runs.",
    "xinv search configs/search/digits.yaml budget.trials=20",
)


def search(
    what: Annotated[
        str, typer.Argument(metavar="CONFIG|status|best|report", help="YAML file, such as configs/search/digits.yaml")
    ],
    rest: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...|RUN", help="settings to change, or the run folder to look at"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    from xinv.binding import bind_folder
    from xinv.progress import chatter_into
    from xinv.search import run as searches
    from xinv.search import settings as search_settings

    if what in list(Look):
        _look(Look(what), rest or [], as_json)
        return
    if Path(what).is_dir():
        raise InputError(
            f"{what} is a folder. Give the configuration that the search was started with, or look at it with "
            f"`xinv search status {what}`."
        )
    settings = search_settings.load(Path(what), rest or ())
    base = search_settings.base_audit(settings, what)
    resolved = searches.resolved(settings, base)
    bind_folder(settings.folder, resolved, search_settings.UNBOUND, "this search", base.storage)
    with chatter_into(settings.folder / "log.txt") as terminal:
        if as_json:
            terminal.console.quiet = True
        found = searches.run(settings, terminal.stage, terminal.show)
    if as_json:
        print(json.dumps(found))
    else:
        _look(Look.best, [str(settings.folder)], as_json=False)


def _look(look: Look, rest: list[str], as_json: bool) -> None:
    from xinv.progress import clock
    from xinv.search import best as searches
    from xinv.search.comparison import read_final
    from xinv.search.comparison import rows as comparison_rows

    if len(rest) != 1:
        raise InputError(f"xinv search {look.value} needs one run folder, such as runs/digits-search.")
    folder = Path(rest[0])
    config, past = searches.open_run(folder)
    if look is Look.report:
        from xinv.search.findings import write_report

        page = write_report(config, past, folder)
        print(json.dumps({"report": str(page)}) if as_json else page)
        return
    order = searches.ranked(past)
    shown = list(past.trials.values()) if look is Look.status else searches.pareto(past, config.second) or order[:1]
    found: dict[str, Any] = searches.status(config, past, folder)
    path = searches.write_best(config, past, folder) if look is Look.best else None
    final = read_final(folder) if look is Look.best else None
    if as_json:
        rows = [searches.described(trial) for trial in shown]
        more = {"comparison": final} if final else {}
        print(json.dumps({**found, "trials": rows, "best_file": str(path) if path else None, **more}))
        return
    console = screen()
    if shown:
        print_table(console, searches.rows(shown), words=3)
    states = ", ".join(f"{count} {state}" for state, count in found["states"].items())
    console.print(f"{states or 'no trials yet'}; {found['refused']} candidates refused; {clock(found['elapsed'])}")
    if order:
        console.print(f"Best: {order[0].title or order[0].id}, MSE {order[0].score:.5f} on the attacker's own images")
    if final:
        console.print("\nFinal comparison, on the victims:")
        print_table(console, comparison_rows(final), words=2)
    if found["final"] == "stale":
        console.print(
            f"The final comparison is not of trial {order[0].id}; start the search again, and it is made anew."
        )
    if path:
        console.print(f"Use it: xinv audit CONFIG name=... inverter={path}", soft_wrap=True)
