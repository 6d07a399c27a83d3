"""Attributes recovered in the report, from fabricated scores: chance and ceiling beside every figure."""

import html
import re
from pathlib import Path
from typing import Any

import pytest
from fabricated import draw_pictures, fabricated, modern

from xinv.report.attributes import by_attribute, cautions, key_figure, overview, sentences
from xinv.report.measures import metric_of, metrics_of
from xinv.report.page import summary_rows, write_report
from xinv.report.summary import verdict
from xinv.report.tables import Cell, leak_metrics, opinions

CHANCE = {"glasses": 0.85, "hair": 0.15}
CEILING = {"glasses": 0.9, "hair": 0.7}
GAIN = {"gradient": 0.05, "lrp": 0.2, "other_image:lrp": -0.01, "mean_image": 0.0}  # over the prediction alone


def around(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.03}


def reading(suffix: str = ":reader") -> dict[str, Any]:
    """`modern` scores with an evaluator of glasses (which explanations do not show) and hair (which they do)."""
    scores = modern(fabricated())
    together = f"attributes_recovered{suffix}"
    names = {name: f"attribute:{name}{suffix}" for name in CHANCE}
    alone = {together: 0.52, names["glasses"]: 0.85, names["hair"]: 0.19}
    for row in scores["rows"]:
        gain = GAIN.get(row["attack"], 0.0)
        means = {together: 0.52 + gain, names["glasses"]: 0.85, names["hair"]: 0.19 + 2 * gain}
        row["metrics"] |= {key: around(mean) for key, mean in means.items()}
        row["over_chance"] = {together: around(means[together] - 0.5)}
    for leak in scores["leaks"]:
        row = next(row for row in scores["rows"] if row["attack"] == leak["attack"])
        for key, base in alone.items():
            difference = row["metrics"][key]["mean"] - base
            ends = {"difference": difference, "low": difference - 0.03, "high": difference + 0.03}
            leak["metrics"][key] = {**ends, "p": 1 / 2001, "mde": 0.04}
            if "image" not in leak["attack"]:
                leak["metrics"][key]["p_holm"] = 0.001
    told = [
        {
            "name": name,
            "values": [0, 1] if name == "glasses" else ["bald", "bun", "long"],
            "counts": [85, 15] if name == "glasses" else [30, 30, 40],
            "chance": CHANCE[name],
            "accuracy_on_originals": around(CEILING[name]),
            "unseen": 0,
        }
        for name in CHANCE
    ]
    reader = {"name": "reader", "suffix": suffix, "predicts": "attributes", "attributes": told}
    reader |= {"left_out": {"yaw": "it is decimal"}, "chance": 0.5, "accuracy_on_originals": around(0.8)}
    if suffix:
        scores["evaluators"].append(reader)
    else:
        scores["evaluators"] = [reader]
        del scores["evaluator"]
        for entry in (*scores["rows"], *scores["leaks"]):
            del entry["metrics"]["attack_accuracy_top1"]
    return scores


@pytest.mark.parametrize("suffix", [":reader", ""])
def test_every_attack_stands_between_chance_and_ceiling(suffix: str) -> None:
    found = overview(reading(suffix))
    assert found is not None and found.headings == ("Attributes recovered (%)", "Over guessing (points)")
    (group,) = found.groups
    lines = {line.title: line.cells for line in group.lines}
    assert lines["The originals themselves"] == (Cell("80.0", "78.0 to 83.0"), Cell("–"))
    assert lines["Guessing the commonest value"] == (Cell("50.0"), Cell("–"))
    assert lines["Prediction only"] == (Cell("52.0", "50.0 to 55.0"), Cell("+2.0", "0.0 to 5.0"))
    assert lines["LRP-z+"] == (
        Cell("72.0", "70.0 to 75.0", shown=True, gain="+20.0 (17.0 to 23.0)"),
        Cell("+22.0", "20.0 to 25.0"),
    )
    assert found.notes == (
        "The evaluator reader reads glasses (0, 1), hair (bald, bun, long).",
        "It was not asked to read yaw: it is decimal.",
    )


def test_the_attributes_that_are_given_away_come_first() -> None:
    (found,) = by_attribute(reading())
    assert found.headings == (
        "By guessing (%)",
        "On the originals (%)",
        "Prediction only (%)",
        "LRP-z+ (%)",
        "Over guessing (points)",
    )
    hair, glasses = found.groups[0].lines
    assert (hair.title, glasses.title) == ("hair", "glasses")
    assert [cell.text for cell in hair.cells] == ["15.0", "70.0", "19.0", "59.0", "+44.0"] and hair.cells[3].shown
    assert [cell.text for cell in glasses.cells] == ["85.0", "90.0", "85.0", "85.0", "0.0"]
    assert not glasses.cells[3].shown and glasses.cells[3].gain == "0.0 (−3.0 to 3.0)"
    assert found.notes == ("What is shown is corrected for the number of attacks, not for that of attributes.",)


def test_what_is_not_read_on_the_originals_and_unknown_values_are_pointed_out() -> None:
    scores = reading()
    glasses, hair = scores["evaluators"][1]["attributes"]
    glasses["accuracy_on_originals"] = around(0.86)
    hair["unseen"] = 3
    (found,) = by_attribute(scores)
    assert "guessing on the originals themselves: glasses." in found.notes[1]
    assert found.notes[2].endswith("does not show, counted as not recovered: hair 3.")
    assert cautions(scores) == []
    scores["evaluators"][1]["accuracy_on_originals"] = around(0.6)
    (caution,) = cautions(scores)
    assert "right on 60.0% of the originals, where guessing gets 50.0%" in caution


def test_without_an_explanation_only_the_prediction_is_tabled() -> None:
    scores = reading()
    scores["rows"], scores["leaks"] = scores["rows"][:1], []
    (found,) = by_attribute(scores)
    assert found.headings == ("By guessing (%)", "On the originals (%)", "Prediction only (%)")
    assert [line.title for line in found.groups[0].lines] == ["glasses", "hair"]  # as the evaluator has them
    assert sentences(scores) == []


def test_the_verdict_says_chance_and_ceiling() -> None:
    (sentence,) = sentences(reading())
    assert sentence in verdict(reading())
    assert sentence == (
        "Attributes that the target never predicts (glasses, hair) are read right in 72.0% of cases with LRP-z+, 52.0% "
        "with the prediction alone, 50.0% by guessing and 80.0% on the originals (20.0 points more, 95% interval 17.0 "
        "to 23.0)."
    )
    scores = reading()
    by_name = {row["attack"]: row for row in scores["rows"]}
    by_name["lrp"]["over_chance"]["attributes_recovered:reader"][
        "low"
    ] = -0.01  # better than a baseline worse than that
    assert sentences(scores)[0].endswith("17.0 to 23.0); more than anybody would guess was not shown.")
    for leak in scores["leaks"]:
        leak["metrics"]["attributes_recovered:reader"]["p_holm"] = 0.2
    assert sentences(scores)[0].endswith("no gain from the explanation was shown.")


def test_a_single_attribute_alone_is_no_finding() -> None:
    scores = reading()
    for leak in scores["leaks"]:
        for key, value in leak["metrics"].items():
            if key != "attribute:hair:reader":
                value |= {"low": -0.01, "high": 0.01, "difference": 0.0, "p_holm": 1.0}
    assert verdict(scores).startswith("No leak was shown")


@pytest.mark.parametrize("suffix", [":reader", ""])
def test_the_page_has_the_section_and_the_main_tables_do_not(suffix: str, tmp_path: Path) -> None:
    scores = reading(suffix)
    path = tmp_path / "report.html"
    write_report(scores, draw_pictures(tmp_path), "audit: tiny\n", path)
    page = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", path.read_text())))
    assert "Attributes recovered" in page and "most attributes recovered" in page and "Over guessing (points)" in page
    assert not [metric for metric in leak_metrics(scores) if metric.about == "attributes"]
    assert "Attrib" not in summary_rows(scores)[0]
    assert (opinions(scores) is None) == (suffix == "")
    write_report(modern(fabricated()), draw_pictures(tmp_path), "audit: tiny\n", path)
    assert "Attributes recovered" not in path.read_text()
    assert key_figure(modern(fabricated())) is None and overview(fabricated()) is None


def test_names_of_scores_say_attribute_and_evaluator() -> None:
    found = metric_of("attribute:Wearing_Hat:cnn")
    assert (found.attribute, found.evaluator, found.about) == ("Wearing_Hat", "cnn", "attributes")
    assert metric_of("attribute:cnn").evaluator == "" and metric_of("attributes_recovered:cnn").attribute == ""
    keys = ["attribute:b:cnn", "attribute:b", "attribute:a", "attributes_recovered", "mse"]
    assert [one.key for one in metrics_of([dict.fromkeys(keys)])] == [*keys[:2:-1], *keys[1:3], keys[0]]
