"""The report of a search: what was found, how it compares, how the search went. Plain data in, one HTML page out."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xinv.files import aside
from xinv.nets.design import InverterDesign, ReleaseShape
from xinv.progress import clock
from xinv.report import amounts
from xinv.report import search_chart as charts
from xinv.report.design_drawing import drawing
from xinv.report.design_words import nearest, training_words, words
from xinv.report.page import data_line, flat, templates
from xinv.report.rows import explanation_title
from xinv.report.search_chart import Curve, Dot, Named
from xinv.report.search_final import final_gallery, final_table
from xinv.report.search_words import REGIMES, Found, Trial, best_of, called, cautions, presets_of, trial_of, verdict
from xinv.report.tables import Cell, Group, Line, Sheet

SPARED = (
    *("epochs", "validate_every", "patience", "shuffle_window", "memory_mib", "decoders", "deepspeed"),
    *("checkpoint_steps", "recompute", "offload_optimizer", "offload_weights", "nvme", "compile"),
)
"""Training settings that a table of differences leaves out: none of them changes what a trial learns here."""


@dataclass(frozen=True)
class Panel:
    """A chart, and what it shows in words for those who cannot see it."""

    picture: str
    description: str


@dataclass(frozen=True)
class Winner:
    """The best design: drawn, in words, and against the preset that is most like it."""

    name: str
    state: str
    drawing: str
    words: list[str]
    training: list[str]
    nearest: str
    different: list[tuple[str, str, str]]
    trained_otherwise: list[tuple[str, str, str]]


def write_report(found: Found, folder: Path, settings_yaml: str, path: Path) -> None:
    """Write the report of a search to `path`, atomically and for the user alone (mode 600), as one HTML page that
    holds all it shows.

    Args:
        found: as `search.findings.findings`.
        folder: the run folder, in which the pictures of the final comparison are.
        settings_yaml: shown as it is.

    Raises:
        InputError: those pictures are missing or damaged.
    """
    headline, *support = verdict(found)
    named = _named(found)
    content = (
        templates()
        .get_template("search.html.j2")
        .render(
            name=found["name"],
            synthetic=found["data"]["synthetic"],
            data_line=data_line(found),
            explanations=[explanation_title(method) for method in found["release"]],
            headline=headline,
            support=support,
            cautions=cautions(found),
            final=final_table(found["final"]) if found["final"] else None,
            facts=found["final"],
            gallery=final_gallery(found, folder),
            regimes=REGIMES,
            learning=_learning(found, named),
            progress=_progress(found, named),
            importance=found["importance"],
            importance_panel=_importance(found),
            front=_front(found, named),
            front_table=_front_table(found),
            winner=_winner(found),
            asha=found["asha"],
            epochs=found["epochs"],
            trials=_trials_table(found),
            refused=_refused(found),
            spent=_spent(found),
            starts=found["starts"],
            provenance=list(flat({str(number + 1): start for number, start in enumerate(found["starts"])})),
            settings_yaml=settings_yaml,
        )
    )
    with aside(path) as draft:
        draft.touch(mode=0o600)
        draft.write_text(content)


# ---- charts --------------------------------------------------------------------------------------------------------


def _named(found: Found) -> dict[str, Named]:
    """Trials that charts name: the presets and the best."""
    named = {
        trial["id"]: Named(str(trial["title"]), number)
        for number, trial in enumerate(presets_of(found))
        if trial["state"] != "failed" and trial["curve"]
    }
    best = best_of(found)
    if best is not None:
        whole = best["state"] == "finished"
        named[best["id"]] = Named(f"{called(best)} ({'best' if whole else 'best so far'})", None)
    return named


def _learning(found: Found, named: Mapping[str, Named]) -> Panel | None:
    shown = [trial for trial in found["trials"] if trial["curve"]]
    if not shown:
        return None
    curves = [
        Curve(tuple((age, mse) for age, mse in one["curve"]), one["state"] == "finished", named.get(one["id"]))
        for one in shown
    ]
    said = [_said(one) for one in shown if one["id"] in named]
    return Panel(charts.learning_chart(curves, found["epochs"]), "; ".join(said))


def _said(trial: Trial) -> str:
    return f"{called(trial)} {amounts.error(trial['mse'])} at epoch {trial['epoch']}"


def _progress(found: Found, named: Mapping[str, Named]) -> Panel | None:
    if not found["progress"]:
        return None
    lowest, steps = float("inf"), []
    own: dict[str, Dot] = {}
    for one in found["progress"]:
        lowest = min(lowest, one["mse"])
        steps.append((one["flops"], lowest))
        name, ident = named.get(one["trial"]), one["trial"]
        if name and (ident not in own or one["mse"] < own[ident].error):
            own[ident] = Dot(one["flops"], one["mse"], name)
    said = [
        f"{dot.name.title} {amounts.error(dot.error)} at {amounts.flops(dot.cost)}" for dot in own.values() if dot.name
    ]
    return Panel(charts.progress_chart(steps, list(own.values())), "; ".join(said))


def _importance(found: Found) -> Panel | None:
    rows = found["importance"]["rows"]
    if not rows:
        return None
    said = [f"{row['name']} {100 * row['share']:.0f}%" for row in rows]
    return Panel(charts.importance_chart([(row["name"], row["share"], row["chance"]) for row in rows]), "; ".join(said))


def _front(found: Found, named: Mapping[str, Named]) -> Panel | None:
    dots = {
        one["id"]: Dot(float(one["cost"]["flops"]), one["mse"], named.get(one["id"]), str(one["id"]))
        for one in found["trials"]
        if one["state"] == "finished" and one["curve"]
    }
    if not dots:
        return None
    front = [dots[ident] for ident in found["front"]]
    said = [f"{called(trial_of(found, ident))} {amounts.error(dots[ident].error)}" for ident in found["front"]]
    return Panel(charts.front_chart(list(dots.values()), front), "; ".join(said))


# ---- tables --------------------------------------------------------------------------------------------------------


def _line(trial: Trial, *cells: str, parameters: bool = False) -> Line:
    chosen = (trial["parameters"] or {}).items() if parameters else ()
    said = ["preset" if trial["origin"] == "preset" else trial["title"]]
    what = ", ".join(filter(None, [*said, *(f"{name} {_plain(value)}" for name, value in chosen)]))
    return Line(called(trial), what, "", 0, tuple(Cell(text) for text in cells), trial["state"] != "finished")


def _front_table(found: Found) -> Sheet:
    lines = [
        _line(
            one,
            amounts.error(one["mse"]),
            amounts.flops(one["cost"]["flops"]),
            amounts.count(one["cost"]["parameters"]),
            clock(one["seconds"]),
        )
        for one in (trial_of(found, ident) for ident in found["front"])
    ]
    headings = ("Validation MSE", "A step, each image", "Parameters", "Time in training")
    return Sheet(headings, (Group("", tuple(lines)),), ())


def _trials_table(found: Found) -> Sheet:
    best = {ident: place for place, ident in enumerate(found["order"])}
    trials = sorted(found["trials"], key=lambda one: (best.get(one["id"], len(best)), one["id"]))
    lines = []
    for one in trials:
        state = f"{one['state']}: {one['reason']}" if one["state"] == "failed" and one["reason"] else one["state"]
        lines.append(
            _line(
                one,
                state,
                str(one["epoch"]),
                "–" if one["mse"] is None else amounts.error(one["mse"]),
                amounts.count(one["cost"]["parameters"]),
                amounts.flops(one["cost"]["flops"]),
                amounts.flops(one["flops"]) if one["flops"] else "–",
                clock(one["seconds"]),
                parameters=True,
            )
        )
    headings = (
        "State",
        "Epochs",
        "Lowest validation MSE",
        "Parameters",
        "A step, each image",
        "Trained with",
        "Time in training",
    )
    return Sheet(headings, (Group("", tuple(lines)),), ())


def _refused(found: Found) -> list[tuple[int, str, str]]:
    """(count, reason with its numbers left out, an example), the most frequent first."""
    reasons: dict[str, list[str]] = {}
    for one in found["refused"]:
        reasons.setdefault(re.sub(r"\d[\d.,]*(?<![.,])", "…", one["reason"]), []).append(one["reason"])
    counted = [(len(own), reason, own[0]) for reason, own in reasons.items()]
    return sorted(counted, key=lambda one: (-one[0], one[1]))


def _spent(found: Found) -> list[tuple[str, str]]:
    """What the search took, in lines of a list."""
    trials = found["trials"]
    states = Counter(str(trial["state"]) for trial in trials)
    total = sum(trial["flops"] for trial in trials)
    lines = [
        ("Trials", ", ".join(f"{count} {state}" for state, count in states.items()) or "none"),
        ("Refused", f"{len(found['refused'])} candidates, before anything of them was trained"),
        ("Time on trials", f"{clock(found['elapsed'])}, all starts of the search together"),
        ("Time in training", f"{clock(sum(trial['seconds'] for trial in trials))}, trials side by side added up"),
    ]
    if total:
        shares = [
            f"{100 * sum(one['flops'] for one in trials if one['state'] == state) / total:.0f}% {state}"
            for state in states
        ]
        lines.append(("Compute", f"{amounts.flops(total)} of training by the cost model: {', '.join(shares)}"))
    searcher = {"tpe": "Optuna’s tree-structured Parzen estimator", "random": "at random"}[found["searcher"]]
    lines.append(("Proposals", searcher))
    asha = found["asha"]
    halving = (
        f"successive halving: at epoch {asha['grace']} and every age {asha['reduction']} times the one before, the "
        f"best in {asha['reduction']} go on"
        if asha
        else "none: every trial runs to its end"
    )
    return [*lines, ("Ended early by", halving)]


# ---- the best design -----------------------------------------------------------------------------------------------


def _winner(found: Found) -> Winner | None:
    best, task = best_of(found), found["task"]
    if best is None or task is None:
        return None
    design = InverterDesign.model_validate(best["candidate"]["design"])
    release = ReleaseShape(task["classes"], tuple((m, h, w) for m, h, w in task["maps"]))
    channels, size = task["channels"], task["size"]
    name, different = nearest(design)
    return Winner(
        name=called(best),
        state=best["state"],
        drawing=drawing(design, release, channels, size),
        words=words(design, release, channels, size),
        training=training_words(best["candidate"]["training"], best["candidate"].get("loss", {"mse": 1.0})),
        nearest=name,
        different=different,
        trained_otherwise=_trained_otherwise(found, best, name),
    )


def _trained_otherwise(found: Found, best: Trial, preset: str) -> list[tuple[str, str, str]]:
    """(setting, that preset's in this search, the best trial's) of training and loss; none where it was not tried."""
    known = next((one for one in presets_of(found) if one["title"] == preset), None)
    if known is None or known["id"] == best["id"]:
        return []
    rows = []
    for part in ("training", "loss"):
        theirs, own = (dict(one["candidate"].get(part, {})) for one in (known, best))
        rows += [
            (f"{part}.{key}", _plain(theirs.get(key)), _plain(own[key]))
            for key in own
            if key not in SPARED and theirs.get(key) != own[key]
        ]
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(_plain(one) for one in value) if isinstance(value, list) else "–" if value is None else str(value)
