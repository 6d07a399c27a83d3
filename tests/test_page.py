"""The report from fabricated scores: numbers, sections, safety, and how it looks in a browser."""

import copy
import html
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM
from fabricated import (
    among_people,
    fabricated,
    in_subsets,
    judged_twice,
    leak_of,
    modern,
    set_leak,
    with_row,
)
from pages import render, visible
from PIL import Image

from xinv.errors import InputError
from xinv.report.measures import METRICS
from xinv.report.page import summary_rows, verdict
from xinv.report.rows import EXPLANATION_TITLES
from xinv.report.summary import cautions


def test_every_number_of_the_scores_is_in_the_page(scores: dict[str, Any], pictures: Path) -> None:
    text = visible(render(scores, pictures))
    for row in scores["rows"]:
        for key, value in row["metrics"].items():
            shown = METRICS[key].format
            assert f"{shown(value['mean'])} {shown(value['low'])} to {shown(value['high'])}" in text, (
                row["attack"],
                key,
            )
    for leak in scores["leaks"]:
        for key, value in leak["metrics"].items():
            metric = METRICS[key]
            gain, ends = (
                metric.sign * value["difference"],
                sorted([metric.sign * value["low"], metric.sign * value["high"]]),
            )
            plus = "+" if gain > 0 else ""
            assert f"{plus}{metric.format(gain)} {metric.format(ends[0])} to {metric.format(ends[1])}" in text, (
                leak,
                key,
            )
    for text_of in (
        "91.3%",
        "88.3%",
        "90.1 to 92.7",
        "87.1 to 89.7",
        "chance 10.0%",
        "4,136 B",
        "abc1234",
        "2.13.0",
        "0, 1",
    ):
        assert text_of in text
    for key, metric in METRICS.items():
        assert (metric.meaning in text) == (key in scores["rows"][0]["metrics"])


def test_the_page_loads_nothing(scores: dict[str, Any], pictures: Path) -> None:
    page = render(scores, pictures)
    sources = re.findall(r"""\b(?:src|href|srcset|action|data|poster)\s*=\s*["']?([^"'\s>]*)""", page, flags=re.I)
    assert len(sources) > 40
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.findall(r"url\(|@import", page)
    assert "<script" not in page and "<link" not in page and "<iframe" not in page
    assert "default-src 'none'; img-src data:" in page


def test_markup_in_names_and_settings_stays_text(scores: dict[str, Any], pictures: Path) -> None:
    hostile = "\"><img src=https://evil.example/x onerror=alert(1)><script>alert('x')</script>"
    scores["audit"] = hostile
    scores["rows"][1]["title"] = hostile
    scores["provenance"]["git"] = hostile
    page = render(scores, pictures, settings=hostile)
    assert "<script" not in page and "<img src=https" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert hostile.split("<")[2].split(">")[1] in visible(page)  # it is shown, harmlessly


def test_every_control_says_what_it_shows(scores: dict[str, Any], pictures: Path) -> None:
    control: dict[str, Any] = {"kind": "control"}
    with_row(scores, "same_class_image:lrp", 0.055, without_partner=3, **control)
    with_row(scores, "random_target:lrp", 0.025, **control)
    with_row(scores, "nearest_neighbour:lrp_zplus", 0.03, inverter="nearest neighbour", **control)
    title = {"title": "Nearest neighbour (Prediction only)", "release": [], "inverter": "nearest neighbour"}
    with_row(scores, "nearest_neighbour", 0.06, **title, **control)
    title = {"title": "Ridge regression (LRP-z+)", "inverter": "ridge regression"}
    with_row(scores, "ridge:lrp_zplus", 0.03, **title, **control)
    with_row(
        scores, "quotient:gradient+gradient_input", 0.0, inverter="quotient", release=["gradient", "gradient_input"]
    )
    text = visible(render(scores, pictures))
    for sentence in (
        "Explanation of another image of the same label : the same inverter, fed the explanation of a different image "
        "of the same label: what remains is what explanations of a label have in common (3 of 500 images have no other "
        "of their label and took one of another label).",
        "Explanation of an untrained target : an inverter trained and fed with",
        "and what the target's own explanation gains beyond it is what training added.",
        "Nearest neighbour : the attacker's own image with the most similar release: what a look-up achieves",
        "Ridge regression : the best linear map from release to image",
        "Quotient : no network at all, released gradient × input divided by released gradient",
    ):
        assert sentence in text, sentence
    assert text.count("Nearest neighbour : ") == 1
    assert "Explanation of an untrained target (LRP-z+)" in text and "Nearest neighbour (Prediction only)" in text
    shown = {row["Attack"] for row in summary_rows(scores)}
    assert {"control: same label's LRP-z+", "control: untrained LRP-z+", "control: nearest neighbour LRP-z+"} <= shown
    assert "control: Nearest neighbour (Prediction only)" in shown
    assert verdict(scores).startswith("Gradient + Gradient × input leaks most: with it the attack reconstructs")


def test_sections_appear_only_where_there_is_data(scores: dict[str, Any], pictures: Path) -> None:
    def headings(found: dict[str, Any]) -> list[str]:
        return [html.unescape(heading.strip()) for heading in re.findall(r"<h2>(.*?)</h2>", render(found, pictures))]

    usual = ["What each explanation adds", "What the attacker gets", "All scores", "How to read this"]
    assert headings(scores)[:4] == usual and "Smallest effect" not in visible(render(scores, pictures))
    assert headings(modern(scores))[:4] == usual
    assert headings(judged_twice(modern(fabricated())))[3] == "What each evaluator says"
    assert headings(among_people(modern(fabricated())))[1] == "Who is found again"


def test_risk_is_drawn_with_its_numbers(scores: dict[str, Any], pictures: Path) -> None:
    assert "Error removed" not in visible(render(scores, pictures))
    page = render(modern(scores), pictures)
    text = visible(page)
    assert "Error removed, image by image" in text
    strongest_first = text.index(
        "LRP-z+ : 81.0% in the worst-off tenth (69.0 to 73.0); above 50% for 41.0% of the images"
    )
    assert strongest_first < text.index("Gradient : 71.0% in the worst-off tenth")
    assert "Error removed, person by person" in visible(render(among_people(modern(fabricated())), pictures))


def test_more_explanations_than_colours_draw_the_strongest(scores: dict[str, Any], pictures: Path) -> None:
    row = scores["rows"][2]
    for number in range(7):
        more = copy.deepcopy(row) | {"attack": f"more{number}", "release": [f"method_{number}"]}
        more["metrics"]["mse"]["mean"] = 0.011 + number / 1000
        scores["rows"].append(more)
        scores["leaks"].append(leak_of(more, scores["rows"][0]))
    page = visible(render(modern(scores), pictures))
    assert page.count("in the worst-off tenth") == 5 and "method 3 : " in page and "method 4 : " not in page


def test_several_trainings_are_said(scores: dict[str, Any], pictures: Path) -> None:
    assert "Training again with other seeds is not part of it." in visible(render(scores, pictures))
    for row in scores["rows"][:3]:
        row["seeds"] = 5
    text = visible(render(scores, pictures))
    assert "over 5 trainings of each attack" in text and "is not part of it" not in text
    assert "Mean over the victim images and 5 trainings of each attack" in text


def test_synthetic_data_is_labelled_everywhere(scores: dict[str, Any], pictures: Path) -> None:
    assert "synthetic" not in visible(render(scores, pictures)).replace("synthetic False", "").lower()
    scores["data"]["synthetic"] = True
    page = render(scores, pictures)
    assert verdict(scores).startswith("On synthetic data: ")
    assert "(synthetic data)</title>" in page
    sections = re.findall(r"<h2>(.*?)</h2>", page)
    assert [bool(re.search("synthetic data", heading)) for heading in sections[:3]] == [True] * 3
    assert len(re.findall(r"<figcaption>synthetic data</figcaption>", page)) == 5


def test_titles_of_explanations_agree_with_the_methods() -> None:
    from xinv.release.methods import METHODS  # torch and captum: for this test alone

    assert {name: method.title for name, method in METHODS.items()} == EXPLANATION_TITLES


def test_every_subset_has_a_section_of_its_own(scores: dict[str, Any], pictures: Path) -> None:
    before = summary_rows(scores)
    page = render(in_subsets(scores), pictures)
    text = visible(page)
    assert "Every subset of the release One inverter, trained with each explanation withheld" in text
    assert "Gradient + LRP-z+ · unet Released Released per image MSE SSIM MSE reduction Nothing but the" in text
    assert "on average over the orders in which the explanations can be added (its Shapley value)." in text
    assert "withheld)" not in text, "pictures were kept of none of them"
    assert len(summary_rows(scores)) == len(before) + 1
    set_leak(scores, "unet:nothing", "mse", -0.003, -0.004, -0.002)
    assert "“Nothing (Gradient + LRP-z+ withheld)” has less error than “Prediction only”" in cautions(scores)[0]
    with np.load(pictures) as kept:
        arrays = dict(kept)
    np.savez(pictures, **arrays, **{"reconstruction:unet:gradient": arrays["original"]})
    assert "Reconstruction Gradient (LRP-z+ withheld) · unet" in visible(render(scores, pictures))


def test_several_inverters_are_grouped_by_explanation(scores: dict[str, Any], pictures: Path) -> None:
    second = copy.deepcopy(scores["rows"][2]) | {"attack": "lrp_unet", "inverter": "unet"}
    second["metrics"]["mse"]["mean"] = 0.005
    scores["rows"].insert(0, second)
    scores["leaks"].append(leak_of(second, scores["rows"][1]))
    assert "Gradient (50%) also lowers" in verdict(scores)  # LRP counts once, by its strongest attack
    assert "88% less squared error" in verdict(scores)
    text = visible(render(scores, pictures))
    assert "LRP-z+ · unet" in text and "LRP-z+ · flatten_unet" in text
    assert re.search(r"LRP-z\+ unet 4,136 B .* flatten_unet 4,136 B", text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores: scores.update(schema=2), "schema 2, this version reads 1"),
        (lambda scores: scores.pop("rows"), "lack rows"),
        (lambda scores: scores["leaks"][0].update(attack="ghost"), "'ghost', which has no row"),
        (lambda scores: scores["rows"][0]["metrics"].update(lpips={"mean": 0, "low": 0, "high": 0}), "'lpips'"),
    ],
)
def test_scores_it_cannot_read_are_refused(scores: dict[str, Any], pictures: Path, change: Any, message: str) -> None:
    change(scores)
    with pytest.raises(InputError, match=re.escape(message)):
        render(scores, pictures)


def test_damaged_pictures_are_refused(scores: dict[str, Any], pictures: Path) -> None:
    content = pictures.read_bytes()
    pictures.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="damaged"):
        render(scores, pictures)
    np.savez(pictures, key=np.array([{"a": 1}], dtype=object), original=np.zeros((1, 2, 2, 1), np.uint8))
    with pytest.raises(InputError, match="damaged"):  # a pickle, which is never loaded
        render(scores, pictures)
    np.savez(pictures, key=np.array(["a"]), original=np.zeros((2, 2, 2, 1), np.uint8))
    with pytest.raises(InputError, match="'original' has 2 rows, 1 expected"):
        render(scores, pictures)
    pictures.unlink()
    with pytest.raises(InputError, match="is missing"):
        render(scores, pictures)


def test_colour_pictures_and_the_same_bytes_twice(scores: dict[str, Any], pictures: Path) -> None:
    random = np.random.default_rng(0)
    big = random.integers(0, 256, (2, 600, 600, 3)).astype(np.uint8)
    np.savez(pictures, key=np.array(["a", "b"]), original=big, **{"reconstruction:lrp": big})
    first = render(scores, pictures)
    assert len(first) < 2_000_000  # reduced: four such pictures would weigh 4 MB
    assert render(scores, pictures) == first


def test_large_pictures_lie_beside_the_page_in_full_size(scores: dict[str, Any], pictures: Path) -> None:
    random = np.random.default_rng(0)
    big, small = random.integers(0, 256, (2, 300, 300, 3)).astype(np.uint8), np.zeros((2, 256, 256, 3), np.uint8)
    lrp = np.ones((2, 1, 300, 300), np.float32)
    cam = np.ones((2, 1, 8, 8), np.float32)
    maps = {"map:gradient": cam, "map:lrp_zplus": lrp}
    np.savez(pictures, key=np.array(["a/1", "b"]), original=big, **maps, **{"reconstruction:lrp": big[::-1]})
    page, beside = render(scores, pictures), pictures.with_name("pictures")
    links = re.findall(r'<a href="(pictures/[^"]+)">', page)
    assert sorted(links) == sorted(f"pictures/{path.name}" for path in beside.iterdir())
    assert len(links) == 6, "originals, LRP maps and reconstructions; an 8-px map is in the page as it is"
    assert np.array_equal(np.asarray(Image.open(beside / "original-a-1.png")), big[0])
    assert np.array_equal(np.asarray(Image.open(beside / "lrp-b.png")), big[0])
    assert beside.stat().st_mode & 0o777 == 0o700
    assert "Pictures are reduced here" in page
    np.savez(pictures, key=np.array(["a", "b"]), original=small)
    assert "pictures/" not in render(scores, pictures) and not beside.exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to open the report in")
def test_a_browser_shows_it(scores: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    render(among_people(judged_twice(modern(scores)), ("", ":cnn")), pictures)
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        f"--disable-component-update --disable-sync --user-data-dir={tmp_path / 'profile'} --window-size=1200,2600 "
        f"--virtual-time-budget=5000 --screenshot={tmp_path / 'shot.png'} --dump-dom file://{tmp_path / 'report.html'}"
    )
    done = subprocess.run([str(CHROMIUM), *flags.split()], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "LRP-z+ leaks most" in done.stdout and "Content Security Policy" not in done.stderr
    if not (tmp_path / "shot.png").exists():  # some versions do one of the two
        shot = [str(CHROMIUM), *flags.replace("--dump-dom ", "").split()]
        subprocess.run(shot, capture_output=True, timeout=120, check=True)
    pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    assert pixels.shape[1] == 1200
    accent = (np.abs(pixels - [0x1F, 0x4E, 0x79]).max(axis=2) < 8).sum()
    ink = (pixels.max(axis=2) < 90).sum()
    assert accent > 5000 and ink > 20_000  # bars were drawn, text and pictures too
    assert (pixels.min(axis=2) > 240).mean() > 0.4  # on a white page
