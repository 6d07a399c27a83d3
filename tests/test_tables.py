"""The tables of further evaluators and of re-identification, from fabricated scores."""

from typing import Any

import pytest
from fabricated import among_people, fabricated, in_subsets, judged_twice, modern, set_leak

from xinv.report.rows import compared
from xinv.report.subsets import shapley
from xinv.report.tables import Cell, groups, leak_lines, opinions, people, subsets


@pytest.fixture
def scores() -> dict[str, Any]:
    return modern(fabricated())


def test_a_single_evaluator_has_no_table_of_opinions(scores: dict[str, Any]) -> None:
    assert opinions(scores) is None and opinions(fabricated()) is None


def test_every_evaluator_stands_beside_the_others(scores: dict[str, Any]) -> None:
    found = opinions(judged_twice(scores))
    assert found is not None
    assert found.headings == (
        "Embedding similarity, residual",
        "Embedding similarity, cnn",
        "Attack accuracy, residual (%)",
        "Attack accuracy, cnn (%)",
        "Same first guess (%)",
        "All right (%)",
    )
    originals, alone, *rest = found.groups[0].lines
    assert [cell.text for cell in originals.cells] == ["–", "–", "91.3", "87.1", "90.2", "90.2"]
    assert alone.title == "Prediction only" and alone.cells[2] == Cell("50.0", "49.8 to 50.1")
    (gradient,) = [line for line in rest if line.title == "Gradient"]
    assert gradient.cells[2] == Cell("60.0", "59.8 to 60.1", shown=True, gain="+10.0 (9.9 to 10.1)")
    assert gradient.cells[3] == Cell("47.7", "47.5 to 47.8", shown=True, gain="+7.8 (5.5 to 10.0)")
    assert gradient.cells[4:] == (Cell("90.2", "88.0 to 92.0"), Cell("40.0", "39.8 to 40.1"))
    assert [line.control for line in rest] == [False, False, True, True]


def test_a_gain_that_was_not_shown_is_not_marked(scores: dict[str, Any]) -> None:
    scores = judged_twice(scores)
    scores["leaks"][0]["metrics"]["attack_accuracy_top1:cnn"]["p_holm"] = 0.2
    (gradient,) = [line for line in opinions(scores).groups[0].lines if line.title == "Gradient"]
    assert not gradient.cells[3].shown and gradient.cells[3].gain == "+7.8 (5.5 to 10.0)"


def test_evaluators_of_different_classes_make_no_same_guess(scores: dict[str, Any]) -> None:
    scores = judged_twice(scores)
    for row in scores["rows"]:
        del row["agreement"]["same_guess"]
    assert opinions(scores).headings[-1] == "All right (%)" and len(opinions(scores).headings) == 5


def test_top_5_accuracy_takes_the_place_of_embedding_similarity(scores: dict[str, Any]) -> None:
    scores = judged_twice(scores)
    for suffix, judge in zip(("", ":cnn"), scores["evaluators"], strict=True):
        for row in scores["rows"]:
            row["metrics"][f"attack_accuracy_top5{suffix}"] = {"mean": 0.8, "low": 0.7, "high": 0.9}
        judge["top5_accuracy_on_originals"] = {"mean": 0.99, "low": 0.98, "high": 1.0}
    found = opinions(scores)
    assert [heading.split(",")[0] for heading in found.headings[:4]] == ["Attack accuracy"] * 2 + ["Top-5 accuracy"] * 2
    assert [cell.text for cell in found.groups[0].lines[0].cells[2:4]] == ["99.0", "99.0"]
    assert found.groups[0].lines[1].cells[3] == Cell("80.0", "70.0 to 90.0")


def test_people_are_tabled_with_chance_ceiling_and_rate(scores: dict[str, Any]) -> None:
    assert people(scores) is None
    found = people(among_people(scores))
    assert found is not None and len(found.groups) == 1 and found.groups[0].title == ""
    assert found.headings == ("Re-identified, rank 1 (%)", "Re-identified, rank 5 (%)", "Verification (%)")
    originals, alone, *_ = found.groups[0].lines
    assert [cell.text for cell in originals.cells] == ["94.0", "95.0", "96.0"]
    assert [cell.text for cell in alone.cells] == ["14.0", "24.0", "34.0"] and alone.cells[0].gain == ""
    (lrp,) = [line for line in found.groups[0].lines if line.title == "LRP-z+"]
    assert lrp.cells[0] == Cell("26.0", "23.9 to 27.9", shown=True, gain="+12.0 (10.1 to 14.1)")
    assert found.notes == (
        "120 people, 600 images in the gallery. By chance alone: 0.8% at rank 1, 4.2% at rank 5.",
        "Verification: the threshold lets strangers pass at a rate of 0.0017, the smallest that 5,950 pairs with "
        "strangers resolve (0.001 was asked for).",
    )


def test_each_evaluator_searches_the_gallery_for_itself(scores: dict[str, Any]) -> None:
    found = people(among_people(judged_twice(scores), ("", ":cnn")))
    assert [group.title for group in found.groups] == ["By the evaluator residual", "By the evaluator cnn"]
    assert len(found.headings) == 3 and all(len(line.cells) == 3 for group in found.groups for line in group.lines)


def test_without_a_rate_that_resolves_there_is_no_verification(scores: dict[str, Any]) -> None:
    scores = among_people(scores)
    scores["reidentification"]["false_accept_rate"] = None
    for row in scores["rows"]:
        del row["metrics"]["verification_tar"]
    for leak in scores["leaks"]:
        del leak["metrics"]["verification_tar"]
    found = people(scores)
    assert found.headings == ("Re-identified, rank 1 (%)", "Re-identified, rank 5 (%)") and len(found.notes) == 1


def test_every_subset_has_a_line_by_size_and_then_by_error() -> None:
    ((title, sheet),) = subsets(in_subsets(fabricated()))
    assert title == "Gradient + LRP-z+ · unet"
    assert sheet.headings == ("Released per image", "MSE", "SSIM", "MSE reduction")
    (group,) = sheet.groups
    names = ["Nothing but the prediction", "LRP-z+", "Gradient", "Gradient + LRP-z+"]
    assert [line.title for line in group.lines] == names
    assert [line.cells[0].text for line in group.lines] == ["43 B", "42 B", "41 B", "40 B"]
    assert [line.cells[1].text for line in group.lines] == ["0.0430", "0.0120", "0.0220", "0.0090"]
    assert group.lines[1].cells[3] == Cell("+0.0280", "0.0271 to 0.0291", shown=True)
    assert [line.control for line in group.lines] == [True, False, False, False]


def test_words_say_what_each_explanation_adds_and_what_sharing_costs() -> None:
    scores = in_subsets(fabricated())
    ((_, sheet),) = subsets(scores)
    assert sheet.notes[0] == (
        "Gradient lowers the MSE by 0.0210 as the only explanation, by 0.0030 beside LRP-z+, and by 0.0120 on "
        "average over the orders in which the explanations can be added (its Shapley value)."
    )
    assert "LRP-z+ lowers the MSE by 0.0310 as the only" in sheet.notes[1] and "by 0.0220 on average" in sheet.notes[1]
    assert "0.0430, “Prediction only” 0.0400: sharing one inverter costs 0.0030 here" in sheet.notes[-1]
    scores["rows"][-1]["metrics"]["mse"]["mean"] = 0.02  # less than with the gradient
    assert "Gradient raises the MSE by 0.0020 as the only explanation, lowers it by 0.0030 beside" in str(
        subsets(scores)[0][1].notes
    )
    set_leak(scores, "unet:nothing", "mse", 0.003, -0.001, 0.007)
    assert "no cost of sharing one inverter was shown" in subsets(scores)[0][1].notes[-1]
    set_leak(scores, "unet:nothing", "mse", -0.003, -0.004, -0.002)
    assert "the baseline is poorly trained" in subsets(scores)[0][1].notes[-1]
    assert subsets(fabricated()) == []


def test_shapley_values_share_out_the_whole_reduction() -> None:
    """Three players with an interaction between two of them, worked out by hand."""
    worth = {"a": 4.0, "b": 2.0, "c": 1.0}
    names = ["", "a", "b", "c", "ab", "ac", "bc", "abc"]
    errors = {
        frozenset(name): 10.0 - sum(worth[one] for one in name) + (3.0 if {"a", "b"} <= set(name) else 0.0)
        for name in names
    }
    found = {name: shapley(errors, "abc", name) for name in "abc"}
    assert found == pytest.approx({"a": 4.0 - 1.5, "b": 2.0 - 1.5, "c": 1.0})
    assert sum(found.values()) == pytest.approx(errors[frozenset()] - errors[frozenset("abc")])


def test_subsets_leave_the_other_tables_as_they_are() -> None:
    """All but the whole release, which is an attack like any other; Holm's correction counts every one of them."""
    scores = modern(in_subsets(fabricated()))
    titles = [line.title for group in groups(scores) for line in group.lines]
    assert titles == [
        "Prediction only",
        "Gradient",
        "LRP-z+",
        "Gradient + LRP-z+",
        "Mean image",
        "Explanation of another image (LRP-z+)",
    ]
    assert [line.title for line in leak_lines(scores)] == titles[1:]
    assert compared(scores) == 5  # gradient, lrp; on the shared inverter both, and each alone
