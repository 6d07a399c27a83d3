"""What a report says first: the verdict, its cautions and the rows of the terminal, from fabricated scores."""

import copy
from pathlib import Path
from typing import Any

from fabricated import among_people, judged_twice, leak_of, modern, set_leak, with_row
from pages import render, visible

from xinv.report.measures import METRICS
from xinv.report.summary import cautions, summary_rows, verdict


def test_the_verdict_names_the_strongest_leak_with_its_numbers(scores: dict[str, Any], pictures: Path) -> None:
    said = verdict(scores)
    assert said.startswith("LRP-z+ leaks most: with it the attack reconstructs the images with 75% less squared error")
    assert "MSE lower by 0.0300, 95% interval 0.0291 to 0.0311" in said
    assert "0.0100 in place of 0.0400" in said and "Gradient (50%) also lowers the error" in said
    assert "lower bound of the risk" in said
    assert "not settled" not in said
    assert said.split(". ")[0] in visible(render(scores, pictures))


def test_overlapping_intervals_leave_the_order_open(scores: dict[str, Any]) -> None:
    set_leak(scores, "gradient", "mse", -0.0295, -0.0310, -0.0280)
    assert "The interval of Gradient overlaps with that of LRP-z+: their order is not settled." in verdict(scores)


def test_intervals_that_include_zero_are_no_leak(scores: dict[str, Any], pictures: Path) -> None:
    for leak in scores["leaks"]:
        for key in scores["leaks"][0]["metrics"]:
            set_leak(scores, leak["attack"], key, METRICS[key].sign * 0.0004, -0.001, 0.002)
    said = verdict(scores)
    assert said.startswith(
        "No leak was shown: with any of the 2 explanations no metric improves on the prediction alone"
    )
    assert "interval of the reduction −0.0020 to 0.0010" in said and "leaks" not in said
    text = visible(render(scores, pictures))
    assert "None shown" in text and "0 of 2" in text
    assert 'class="shown"' not in render(scores, pictures)


def test_an_end_at_exactly_zero_is_no_leak(scores: dict[str, Any]) -> None:
    for attack in ("gradient", "lrp"):
        for key in scores["leaks"][0]["metrics"]:
            set_leak(scores, attack, key, METRICS[key].sign * 0.01, *sorted((0.0, METRICS[key].sign * 0.02)))
    assert verdict(scores).startswith("No leak was shown")


def test_a_leak_in_another_metric_alone_is_said_as_such(scores: dict[str, Any]) -> None:
    for leak in scores["leaks"]:
        for key in scores["leaks"][0]["metrics"]:
            set_leak(scores, leak["attack"], key, 0.0, -0.01, 0.01)
    set_leak(scores, "gradient", "ssim", 0.05, 0.04, 0.06)
    said = verdict(scores)
    assert said.startswith("No explanation lowers the squared error")
    assert "with Gradient the SSIM is higher by 0.050 (95% interval 0.040 to 0.060)" in said
    assert "weak evidence" in said


def test_an_attack_that_got_worse_is_no_protection(scores: dict[str, Any]) -> None:
    set_leak(scores, "gradient", "mse", 0.01, 0.008, 0.012)
    said = verdict(scores)
    assert said.startswith("LRP-z+ leaks most") and "With Gradient the attack did measurably worse" in said
    assert "not of protection" in said


def test_without_explanations_nothing_was_measured(scores: dict[str, Any], pictures: Path) -> None:
    scores["leaks"] = []
    assert "No leak was measured" in verdict(scores)
    assert "No leak was measured" in visible(render(scores, pictures))


def test_a_control_that_succeeds_is_pointed_out(scores: dict[str, Any], pictures: Path) -> None:
    assert cautions(scores) == []
    set_leak(scores, "other_image:lrp", "mse", -0.01, -0.012, -0.008)
    assert "The control “Explanation of another image (LRP-z+)” also beats the prediction alone" in cautions(scores)[0]
    assert "It ought not to" in visible(render(scores, pictures))


def test_a_floor_may_succeed_and_an_untrained_target_is_compared(scores: dict[str, Any]) -> None:
    with_row(scores, "ridge:lrp_zplus", 0.03, kind="control", title="Ridge regression (LRP-z+)")
    with_row(scores, "nearest_neighbour:lrp_zplus", 0.03, kind="control")
    assert cautions(scores) == []
    with_row(scores, "random_target:lrp", 0.025, kind="control")
    (found,) = cautions(scores)
    assert found.startswith(
        "An untrained network's explanation leaks too: “Explanation of an untrained target (LRP-z+)” lowers the MSE by "
        "0.0150 (0.0141 to 0.0161), 50% of what “LRP-z+” does."
    )
    set_leak(scores, "random_target:lrp", "mse", -0.031, -0.032, -0.030)
    assert "as much as “LRP-z+” does." in cautions(scores)[0]
    set_leak(scores, "random_target:lrp", "mse", -0.001, -0.003, 0.001)
    assert cautions(scores) == []


def test_a_poor_baseline_evaluator_or_sample_is_pointed_out(scores: dict[str, Any]) -> None:
    poor = copy.deepcopy(scores)
    set_leak(poor, "mean_image", "mse", -0.001, -0.003, 0.001)
    assert cautions(poor) == []
    set_leak(poor, "mean_image", "mse", -0.01, -0.012, -0.008)
    assert "the baseline is poorly trained" in cautions(poor)[0]
    poor = copy.deepcopy(scores)
    poor["evaluator"]["accuracy_on_originals"]["mean"] = 0.15
    assert "right on only 15.0%" in cautions(poor)[0]
    poor = copy.deepcopy(scores)
    poor["rows"][0]["metrics"]["attack_accuracy_top1"]["mean"] = 0.9
    assert "saturated" in cautions(poor)[0]
    poor = copy.deepcopy(scores)
    poor["rows"][0]["n"] = 20
    assert "Only 20 images" in cautions(poor)[0]


def test_a_leak_that_does_not_survive_the_correction_is_not_shown(scores: dict[str, Any], pictures: Path) -> None:
    scores = modern(scores)
    assert "2 of 2" in visible(render(scores, pictures))
    gradient = scores["leaks"][0]["metrics"]["mse"]
    gradient |= {"p": 0.03, "p_holm": 0.06}  # its interval excludes zero
    said = verdict(scores)
    assert said.startswith("LRP-z+ leaks most") and "For Gradient no leak was shown." in said
    page = render(scores, pictures)
    assert "1 of 2" in visible(page) and "after Holm's correction for 2 attacks" in visible(page)
    gradient["p_holm"] = 0.05
    assert "2 of 2" in visible(render(scores, pictures))


def test_too_few_resamples_for_the_correction_are_pointed_out(scores: dict[str, Any]) -> None:
    scores = modern(scores)
    assert cautions(scores) == []
    scores["resamples"] = 30
    assert "30 resamples are too few for 2 attacks" in cautions(scores)[0] and "of 80 or more" in cautions(scores)[0]


def test_the_effect_that_would_have_been_found_is_said(scores: dict[str, Any], pictures: Path) -> None:
    scores = modern(scores)
    scores["leaks"][1]["metrics"]["mse"]["mde"] = 0.0042
    text = visible(render(scores, pictures))
    assert "after the correction (80% power): MSE 0.0042, PSNR 0.17 dB, SSIM 0.017, " in text
    assert "Attack accuracy 170.0 points." in text
    for leak in scores["leaks"]:
        for key in leak["metrics"]:
            set_leak(scores, leak["attack"], key, 0.0, -0.001, 0.001)
    assert "A reduction of the MSE by 0.0017 would have been found in four of five such audits" in verdict(scores)


def test_people_found_again_are_in_the_verdict_and_the_cards(scores: dict[str, Any], pictures: Path) -> None:
    scores = among_people(modern(scores))
    said = verdict(scores)
    assert (
        "Among 120 people, 26.0% of the reconstructions lead to the right one with LRP-z+, 14.0% with the prediction "
        "alone (12.0 points more, 95% interval 10.1 to 14.1)." in said
    )
    text = visible(render(scores, pictures))
    assert "26.0% highest re-identification, rank 1 LRP-z+, 23.9 to 27.9; prediction only 14.0%" in text
    assert "Re-identified, rank 1 gain (points)" in text  # a chart
    assert "Only 19 people" in cautions(scores | {"identities": 19})[0]


def test_an_imagined_explanation_is_no_released_one(scores: dict[str, Any], pictures: Path) -> None:
    """The surrogate attack sees the prediction alone; it neither tops the released ones nor counts among them."""
    untaught = copy.deepcopy(scores["rows"][0]) | {
        "attack": "surrogate_same_capacity:gradient", "kind": "control", "title": "Untaught Gradient",
    }  # fmt: skip
    joint = copy.deepcopy(scores["rows"][0]) | {"attack": "surrogate_joint:gradient", "title": "Imagined Gradient"}
    untaught["metrics"]["mse"]["mean"], joint["metrics"]["mse"]["mean"] = 0.04, 0.001
    scores["rows"] += [joint, untaught]
    scores["leaks"] += [leak_of(joint, untaught), leak_of(untaught, scores["rows"][0])]
    scores = modern(scores)
    said = verdict(scores)
    assert said.startswith("LRP-z+ leaks most")
    assert "“Imagined Gradient” reconstructs with 98% less squared error than “Untaught Gradient”." in said
    text = visible(render(scores, pictures))
    assert "2 of 2 explanations shown to leak" in text and "Imagined Gradient against Untaught Gradient" in text
    assert "Same network, untaught" in text and "control: Untaught Gradient" in str(summary_rows(scores))
    set_leak(scores, "surrogate_joint:gradient", "mse", 0.0, -0.001, 0.002)
    assert "An imagined explanation was not shown to help: “Imagined Gradient” against" in verdict(scores)


def test_evaluators_that_part_ways_are_pointed_out(scores: dict[str, Any]) -> None:
    scores = judged_twice(modern(scores))
    assert cautions(scores) == []
    for row in scores["rows"]:
        row["agreement"]["same_guess"] = {"mean": 0.61, "low": 0.6, "high": 0.62}
    assert "The evaluators agree on 61.0% of the reconstructions of “LRP-z+” and on 90.2%" in cautions(scores)[0]


def test_rows_of_the_terminal(scores: dict[str, Any]) -> None:
    scores["rows"].reverse()  # the order of the file is not the order of the table
    table = summary_rows(scores)
    names = ["Prediction only", "LRP-z+", "Gradient", "control: mean image", "control: other's LRP-z+"]
    assert sorted(row["Attack"] for row in table) == sorted(names)
    assert [row["Attack"].startswith("control") for row in table] == [False] * 3 + [True] * 2
    assert table[0] | {"Error change": ""} == table[0] and table[0]["MSE"] == "0.0400" and table[0]["Top-1"] == "50.0%"
    assert len({tuple(row) for row in table}) == 1
    change = {row["Attack"]: row["Error change"] for row in table}
    assert change["LRP-z+"] == "−75% (−78 to −73)"
    assert change["control: other's LRP-z+"] == "+50% (+47 to +52)"
    assert all(isinstance(value, str) for row in table for value in row.values())
