"""The report of a search, from records without any training and a final comparison made by hand."""

import itertools
import json
import math
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, accent_pixels
from pages import pictured, visible
from safetensors.numpy import save_file
from searches import Play, load

from xinv.cli import run as command
from xinv.errors import InputError
from xinv.overrides import dump_yaml
from xinv.report import amounts
from xinv.report.search_chart import round_numbers
from xinv.search.best import ranked
from xinv.search.findings import findings, note_start, write_report
from xinv.search.record import Past, read
from xinv.search.run import resolved
from xinv.search.settings import SearchConfig, base_audit
from xinv.track import Tracker, TrackSettings

pytest.importorskip("optuna")


def begun(folder: Path, *overrides: str) -> Play:
    """A search that has begun, with the files of its start."""
    config = load(folder, *overrides)
    play = Play(config)
    (config.folder / "resolved.yaml").write_text(dump_yaml(resolved(config, base_audit(config))))
    return play


def report(play: Play) -> str:
    return write_report(play.config, read(play.config.folder), play.config.folder).read_text()


def found_by(play: Play) -> dict[str, Any]:
    return findings(play.config, play.record.past, play.config.folder)


def compare(config: SearchConfig, past: Past) -> dict[str, Any]:
    """A final comparison by hand: the best trial against two presets, three seeds, with pictures."""
    best = ranked(past)[0].id
    entries = [
        {
            "design": design,
            "trial": best if design == "found" else None,
            "regime": regime,
            "seed": seed,
            "epochs": 4 if regime == "samples" else 6,
            "samples": 360,
            "flops": 1.3e9,
            "parameters": 5341825,
            "validation_mse": 0.01 * factor,
            "mse": factor * (0.011 + 0.001 * seed),
            "ssim": 0.9 - 0.1 * factor,
        }
        for regime in ("samples", "flops")
        for design, factor in (("gnime_expmi", 3.0), ("film_unet", 1.25), ("found", 1.0))
        for seed in range(3)
    ]
    ratios = [
        {"regime": regime, "design": "found", "to": to, "mse": ratio, "low": ratio - 0.05, "high": ratio + 0.06}
        for regime in ("samples", "flops")
        for to, ratio in (("gnime_expmi", 0.33), ("film_unet", 0.96))
    ]
    generator = np.random.default_rng(0)
    pictures = {
        name: generator.integers(0, 256, (4, 32, 32, 1), dtype=np.uint8)
        for name in ("truth", "found", "gnime_expmi", "film_unet")
    }
    (config.folder / "final").mkdir(exist_ok=True)
    save_file(pictures, config.folder / "final" / "images.safetensors")
    final = {"seeds": 3, "samples": 360, "flops": 1.3e9, "victims": 24, "entries": entries, "ratios": ratios}
    final["pictures"] = {"images": "final/images.safetensors", "regime": "samples"}
    (config.folder / "final.json").write_text(json.dumps(final))
    return final


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Play:
    """A search of forty trials at its end, with a final comparison."""
    play = begun(tmp_path_factory.mktemp("search"), "budget.trials=40", "seed=1")
    play.to_the_end()
    with Tracker(play.config.folder, TrackSettings(mode="disabled"), "tiny", {}) as tracker:
        note_start(tracker)
    compare(play.config, play.record.past)
    return play


@pytest.fixture(scope="module")
def page(whole: Play) -> str:
    return report(whole)


def test_the_page_says_what_the_record_says(whole: Play, page: str) -> None:
    text, past = visible(page), whole.record.past
    best = ranked(past)[0]
    presets = [trial for trial in past.trials.values() if trial.origin == "preset"]
    known = min((trial for trial in presets if trial.state == "finished"), key=lambda trial: trial.score)
    share = 100 * (1 - best.score / known.score)
    assert best.state == "finished" and best.origin == "proposal" and 1 < share < 9.9
    assert (
        f"The best design found, trial {best.id}, leaves a validation MSE of {best.score:.5f}: {share:.1f}% lower than "
        f"the {known.score:.5f} of {known.title}, the best preset in this search, after the same 4 epochs."
    ) in text
    for trial in past.trials.values():
        assert f" {trial.state} {trial.epoch} {amounts.error(trial.score)} {trial.cost['parameters']:,} " in text
    spent = sum(trial.flops for trial in past.trials.values())
    assert f"{amounts.flops(spent)} of training by the cost model" in text
    states = [sum(trial.state == state for trial in past.trials.values()) for state in ("finished", "stopped")]
    assert f"{states[0]} finished" in text and f"{states[1]} stopped" in text
    assert f"Refused {len(past.refused)} candidates" in text
    above = sum("is above" in str(line["reason"]) for line in past.refused)
    assert above and f"{above} × width … is above …." in text
    assert "1.versions.torch" in text and "1.versions.optuna" in text and "cores" in text


def test_the_final_comparison_is_in_the_headline_the_table_and_the_pictures(page: str) -> None:
    text = visible(page)
    assert (
        "Trained anew with 3 seeds and scored on 24 victim images, its MSE is at equal images seen 0.33 × "
        "gnime_expmi’s (0.28 to 0.39) and 0.96 × film_unet’s (0.91 to 1.02); at equal training FLOPs 0.33 ×"
    ) in text
    assert "gnime_expmi preset 3 4 1.3 GFLOP 360 images seen 5.34 M 0.03000 0.03000 to 0.03000 0.03600" in text
    assert page.count('alt="Original, victim') == page.count('alt="found, victim') == 4
    strips = re.findall(r'alt="(\w+), victim 1"', page)
    assert strips == ["Original", "film_unet", "gnime_expmi", "found"]
    cells = re.findall(r'<td( class="shown")?><span class="number">0\.(?:33|96)<', page)
    assert cells == [' class="shown"', "", ' class="shown"', ""], "an interval that reaches 1 is not coloured"


def test_a_comparison_of_another_trial_is_said_to_be(whole: Play, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(whole.config.folder, folder)
    final = json.loads((folder / "final.json").read_text())
    for entry in final["entries"]:
        entry["trial"] = entry["trial"] and "0001"
    (folder / "final.json").write_text(json.dumps(final))
    text = visible(write_report(whole.config, read(folder), folder).read_text())
    assert "The final comparison is of trial 0001" in text and "victim images, trial 0001’s MSE is" in text
    (folder / "final" / "images.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"images\.safetensors is damaged"):
        write_report(whole.config, read(folder), folder)
    (folder / "final.json").write_text("{}")
    with pytest.raises(InputError, match=r"final\.json has no entries"):
        write_report(whole.config, read(folder), folder)


def test_the_best_so_far_and_the_front_are_those_of_the_record(whole: Play) -> None:
    found, past = found_by(whole), whole.record.past
    steps = found["progress"]
    assert len(steps) == sum(len(trial.reports) for trial in past.trials.values())
    assert steps[-1]["flops"] == sum(trial.flops for trial in past.trials.values())
    assert [one["flops"] for one in steps] == sorted(one["flops"] for one in steps)
    front = [past.trials[ident] for ident in found["front"]]
    assert front[-1].score == min(trial.score for trial in past.trials.values() if trial.state == "finished")
    assert [trial.cost["flops"] for trial in front] == sorted(trial.cost["flops"] for trial in front)


def test_importance_is_refused_below_twenty_trials(tmp_path: Path) -> None:
    few = begun(tmp_path, "budget.trials=12")
    few.to_the_end()
    text = visible(report(few))
    assert re.search(r"No importance of parameters is given: \d+ trials with parameters .* below 20", text)


def test_importance_finds_what_the_error_is_made_of(tmp_path: Path) -> None:
    many = begun(tmp_path, "name=many", "budget.trials=40", "asha=null", "searcher=random")
    many.to_the_end()
    found = found_by(many)["importance"]
    assert (found["trials"], found["epoch"]) == (39, 4), "the preset that the space does not hold is not compared"
    assert found["rows"][0]["name"] == "rate" and found["rows"][0]["share"] > found["rows"][0]["chance"]
    assert found["rows"] == found_by(many)["importance"]["rows"], "the same again"
    assert sum(row["share"] for row in found["rows"]) == pytest.approx(1)


def test_importance_where_halving_left_few_trials_whole_is_that_of_an_earlier_age(whole: Play, page: str) -> None:
    early = found_by(whole)["importance"]
    assert early["epoch"] < 4 and early["trials"] >= 20
    assert f"{early['trials']} trials, compared after epoch {early['epoch']} of 4" in visible(page)


def test_a_search_says_no_more_than_it_has(tmp_path: Path) -> None:
    nothing = begun(tmp_path, "name=nothing")
    assert "No trial has been validated: there is nothing to compare yet." in visible(report(nothing))
    play = begun(tmp_path, "name=young", "asha=null")
    first = play.course.next()
    assert first is not None
    play.trial(first, until=2)
    text = visible(report(play))
    assert f"No trial has come to its end: the lowest validation MSE so far is {first.score:.5f}, of inside" in text
    assert "1 of 1 trials had not come to their end" in text and "There is no final comparison yet" in text
    assert "No trial has come to its end, so none can be compared by cost." in text
    play.trial(first)
    assert "No design better than the preset inside was found" in visible(report(play))
    alone = begun(tmp_path, "name=alone", "presets=false", "budget.trials=1")
    alone.to_the_end()
    assert "no preset was trained here to compare it with" in visible(report(alone))
    presets = begun(tmp_path, "name=presets", "budget.trials=2", "asha=null")
    one, other = presets.to_the_end()
    text = visible(report(presets))
    assert f"No design better than the preset {ranked(presets.record.past)[0].title} was found" in text
    assert one.score == other.score and "no trial but presets went to its end" in text


def test_presets_that_were_stopped_are_compared_at_their_age(tmp_path: Path) -> None:
    play = begun(tmp_path, "budget.trials=3", "asha=null")
    for epochs in (2, 1):
        preset = play.course.next()
        assert preset is not None
        play.trial(preset, until=epochs)
        play.course.end(preset.id, "stopped", "halved")
    found = play.course.next()
    assert found is not None
    play.trial(found)
    text, preset = visible(report(play)), play.record.past.trials["0000"]
    assert (
        f"No preset went to its end; after 2 epochs, where inside stood at {preset.score:.5f}, it had "
        f"{found.score_at(2):.5f}"
    ) in text
    assert "Halving stopped inside and outside early" in text


def test_the_page_holds_all_it_shows_and_is_for_the_user_alone(whole: Play, page: str) -> None:
    class Strict(HTMLParser):
        open: list[str] = []  # noqa: RUF012 (one parser)

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            for name, value in attrs:
                assert name not in ("src", "href") or (value or "").startswith(("data:", "#")), value
            if tag not in ("meta", "img", "br", "i"):
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag or tag == "i", tag

    parser = Strict()
    parser.feed(page)
    assert parser.open == []
    assert len(pictured(page)) == 5, "curves, compute, importance, front, design"
    for picture in pictured(page):
        ET.fromstring(picture)
    assert (whole.config.folder / "report.html").stat().st_mode & 0o777 == 0o600


def test_the_verb_writes_it(whole: Play, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = whole.config.folder / "report.html"
    path.unlink(missing_ok=True)
    assert command(["search", "report", str(whole.config.folder)]) == 0
    assert capsys.readouterr().out.strip() == str(path) and path.exists()
    assert command(["search", "report", str(whole.config.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(path)}
    assert command(["search", "report", str(tmp_path)]) == 2


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_browser_shows_it(page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page)
    assert accent_pixels(tmp_path / "report.html", 6000) > 2000, "charts in the accent colour"


@pytest.mark.parametrize(
    ("low", "high", "first"),
    [(0.002, 0.9, 0.002), (3e6, 2e9, 1e7), (0.0099, 0.0101, 0.01), (8.6e8, 1.16e9, 9e8), (7.4e7, 1.9e8, 7.5e7)],
)
def test_a_logarithmic_axis_has_round_ticks_however_short(low: float, high: float, first: float) -> None:
    ticks = round_numbers(low, high)
    assert ticks[0] == pytest.approx(first, rel=0.01) and 1 <= len(ticks) <= 8 and ticks == sorted(ticks)
    assert all(math.log(right / left) > 0.1 * math.log(high / low) for left, right in itertools.pairwise(ticks))
