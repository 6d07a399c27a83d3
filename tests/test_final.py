"""The final comparison of a search: who is in it, for how long each is trained, what is said, and when it is stale."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from searches import Play, TinySpace, load, price, search

from xinv.attacks import inverters
from xinv.cli import run as command
from xinv.errors import InputError
from xinv.nets.design import PRESETS, InverterDesign, ReleaseShape
from xinv.overrides import dump_yaml
from xinv.search import settings as searches
from xinv.search.best import ranked, status, write_best
from xinv.search.comparison import FINAL, discard_stale, epochs_for, read_final, rows, write_final
from xinv.search.cost import cost
from xinv.search.final import Final
from xinv.search.record import Past, read
from xinv.search.run import resolved
from xinv.stage import Finished

pytest.importorskip("optuna")

SMALL = "attack.designs.small={encoder: cnn, width: 4, hidden: 8, bottleneck: 16}"
"""As the preset "inside" of the tiny space."""
WIDE = "attack.designs.wide={encoder: cnn, width: 12, hidden: 8, bottleneck: 16}"
NARROW = WIDE.replace("wide", "narrow").replace("12", "2")
OVERRIDES = f"overrides=['{SMALL}', '{WIDE}', '{NARROW}']"


NOBODY: Any = SimpleNamespace(event=lambda kind, **fields: None)
"""A recorder that does not listen."""


def opened(play: Play, space: Any = None) -> Final:
    config, base = play.config, searches.base_audit(play.config)
    return Final(config, base, play.course.task, space or play.course.space, price, NOBODY)


def played(folder: Path, *options: str) -> tuple[Play, Final]:
    play = Play(load(folder, "budget.trials=10", *options))
    play.to_the_end()
    return play, opened(play)


def trained(final: Final, entrants: list[Any]) -> dict[str, Finished]:
    """Finished trainings, whose validation error is that of nobody else."""
    labels = [one.label for entrant in entrants for one in final.trainings(entrant)]
    summaries = {label: {"parameters": 7, "validation": {"mse": 1.0 + place}} for place, label in enumerate(labels)}
    return {label: Finished(label, Path(label), summary, fresh=False) for label, summary in summaries.items()}


def samples_of(entrants: list[Any], error: dict[tuple[str, str], float], seeds: int = 2) -> dict[str, np.ndarray]:
    """Four victims; each entrant has a constant times the same errors."""
    hard_SN = np.array([[1.0, 2.0, 3.0, 4.0], [1.5, 1.5, 4.5, 3.5]])[:seeds]
    found = {"key": np.array(["a", "b", "c", "d"]), "identity": np.array(["a", "b", "c", "d"])}
    for one in entrants:
        factor = error[one.contender.title, one.regime]
        found |= {f"{one.title}/mse": factor * hard_SN, f"{one.title}/ssim": 1 - hard_SN / 10}
    return found


def test_epochs_are_whole_and_nearest_to_the_flops() -> None:
    assert [epochs_for(flops, 100) for flops in (1, 149, 151, 100, 1000)] == [1, 1, 2, 1, 10]


def test_equal_images_and_equal_flops(tmp_path: Path) -> None:
    play, final = played(tmp_path, OVERRIDES, "final={presets: [narrow, wide], seeds: 2}", "presets=false")
    contenders = final.contenders(play.record.past)
    best = ranked(play.record.past)[0]
    assert [(one.title, one.trial) for one in contenders] == [("found", best.id), ("narrow", None), ("wide", None)]
    assert contenders[1].training == searches.training_of(play.config, searches.base_audit(play.config))
    entrants = final.entrants(contenders)
    width = best.candidate["design"]["width"]
    per_epoch = [1000 * side**2 * 90 for side in (width, 2, 12)]
    target = 4 * per_epoch[0]
    epochs = [max(1, round(target / one)) for one in per_epoch]
    assert 1 == epochs[2] < epochs[0] == 4 < epochs[1], "the tiny search finds a width between the two"
    assert [(one.regime, one.epochs) for one in entrants] == [
        *(("samples", 4) for _ in range(3)),
        *(("flops", one) for one in epochs),
    ]
    assert [one.flops for one in entrants[3:]] == [each * one for each, one in zip(per_epoch, epochs, strict=True)]
    short = entrants[5].training(("gradient",), 1)
    assert (short.training.epochs, short.repeat) == (epochs[2], 1), "its learning rate follows its own epochs"


def test_what_is_written_down(tmp_path: Path) -> None:
    play, final = played(tmp_path, OVERRIDES, "final={presets: [narrow], seeds: 2}", "presets=false")
    entrants = final.entrants(final.contenders(play.record.past))
    factors = {
        ("found", "samples"): 1.0,
        ("found", "flops"): 1.0,
        ("narrow", "samples"): 2.0,
        ("narrow", "flops"): 1.25,
    }
    stages = trained(final, entrants)
    content = final.content(entrants, stages, samples_of(entrants, factors))
    assert list(content) == ["seeds", "samples", "flops", "victims", "entries", "ratios", "pictures"]
    assert (content["seeds"], content["samples"], content["victims"]) == (2, 90 * 4, 4)
    assert content["flops"] == entrants[0].flops == content["entries"][0]["flops"]
    assert content["pictures"] == {"images": "final/images.safetensors", "regime": "samples"}
    assert len(content["entries"]) == 8
    first, last = content["entries"][0], content["entries"][-1]
    assert (first["design"], first["regime"], first["seed"]) == ("found", "samples", 0)
    assert first["trial"] == ranked(play.record.past)[0].id and last["trial"] is None
    assert (first["mse"], first["ssim"], first["parameters"]) == (2.5, pytest.approx(0.75), 7)
    assert (last["design"], last["regime"], last["seed"], last["mse"]) == ("narrow", "flops", 1, 1.25 * 2.75)
    assert last["samples"] == 90 * last["epochs"] and last["flops"] == 1000 * 2**2 * last["samples"]
    assert last["validation_mse"] == stages[entrants[3].training((), 1).label].result["validation"]["mse"]
    ratios = [(one["regime"], one["design"], one["to"]) for one in content["ratios"]]
    assert ratios == [("samples", "found", "narrow"), ("flops", "found", "narrow")]
    for one, value in zip(content["ratios"], (0.5, 0.8), strict=True):
        assert (one["mse"], one["low"], one["high"]) == pytest.approx((value, value, value))
    table = rows(json.loads(json.dumps(content)))
    assert [row["design"] for row in table] == [f"found (trial {first['trial']})", "narrow"] * 2
    assert table[0]["victim MSE"] == "2.62500" and table[1]["found / this"] == "0.500 (0.500 to 0.500)"


def test_a_known_design_that_wins_is_not_trained_twice(tmp_path: Path) -> None:
    play = Play(load(tmp_path, OVERRIDES, "budget.trials=1", "final={presets: [wide, small], seeds: 2}"))
    play.to_the_end()
    final = opened(play)
    contenders = final.contenders(play.record.past)
    assert [(one.title, one.trial) for one in contenders] == [("small", "0000"), ("wide", None)]
    entrants = final.entrants(contenders)
    factors = {(one.contender.title, one.regime): 1.0 for one in entrants}
    content = final.content(entrants, trained(final, entrants), samples_of(entrants, factors))
    assert {(one["design"], one["to"]) for one in content["ratios"]} == {("small", "wide")}


def test_several_best_designs(tmp_path: Path) -> None:
    play, final = played(tmp_path, OVERRIDES, "final={presets: [wide], best: 2}", "presets=false")
    contenders = final.contenders(play.record.past)
    order = ranked(play.record.past)
    assert [(one.title, one.trial) for one in contenders] == [
        ("found", order[0].id),
        ("found-2", order[1].id),
        ("wide", None),
    ]


def test_what_is_compared_where_nothing_is_named(tmp_path: Path) -> None:
    class Offering(TinySpace):
        def presets(self) -> list[tuple[str, Any]]:
            (_, known), _ = super().presets()
            return [("unet", known), ("film_unet", known)]

    play = Play(load(tmp_path, "final={}"))
    final = opened(play, Offering(searches.training_of(play.config, searches.base_audit(play.config))))
    assert [(one.title, one.design) for one in final.rivals] == [("film_unet", PRESETS["film_unet"])]
    assert (final.settings.seeds, final.settings.best, final.settings.pictures) == (3, 1, 8)


def test_a_known_design_that_does_not_fit_is_refused_before_any_trial(tmp_path: Path) -> None:
    play = Play(load(tmp_path, "final={presets: [gnime_expmi]}"))

    def refusing(candidate: Any) -> Any:
        return cost(candidate.design, ReleaseShape(10, ((1, 32, 32),)), 1, 2048, 2)

    with pytest.raises(InputError, match="inverse_size"):
        Final(play.config, searches.base_audit(play.config), play.course.task, play.course.space, refusing, NOBODY)


def test_trainings_are_the_stages_of_an_audit(tmp_path: Path) -> None:
    """A design of the audit's own, trained for as many epochs, is not trained again by `xinv audit`, nor by this."""
    options = (f"overrides=['{SMALL}', 'attack.training.epochs=4', 'attack.inverters=[small]', 'attack.seeds=2']",)
    _, final = played(tmp_path, *options, "final={presets: [small], seeds: 2}", "presets=false")
    identities: list[dict[str, Any]] = []

    def stage(kind: str, title: str, identity: dict[str, Any], work: Any) -> Finished:
        identities.append(identity)
        return Finished(kind, Path(kind), None, fresh=False)

    audit: Any = SimpleNamespace(config=final.base, stage=stage)
    inverters(audit, final.task.images, final.task.releases)
    rival = final.entrants([final.known["small"]])[0]
    asked = [one.identity(final.base, final.task.images, final.task.releases) for one in final.trainings(rival)]
    assert asked == [one for one in identities if one["methods"] == ["gradient"]]


def test_a_comparison_of_another_best_is_told_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (OVERRIDES, "final={presets: [small], seeds: 2}", "presets=false", "searcher=random")
    config = load(tmp_path, "budget.trials=3", *options)
    play = Play(config)
    play.to_the_end()
    (config.folder / "resolved.yaml").write_text(dump_yaml(resolved(config, searches.base_audit(config))))
    final = opened(play)
    entrants = final.entrants(final.contenders(play.record.past))
    factors = {(one.contender.title, one.regime): 1.0 for one in entrants}
    write_final(config.folder, final.content(entrants, trained(final, entrants), samples_of(entrants, factors)))
    order = ranked(play.record.past)
    assert status(config, play.record.past, config.folder)["final"] == "made"
    discard_stale(config.folder, order)
    assert (config.folder / FINAL).exists()
    assert command(["search", "best", str(config.folder)]) == 0
    said = capsys.readouterr().out
    assert "Final comparison" in said and "1.000 (1.000 to 1.000)" in said and "start the search again" not in said
    play.record.close()

    later = Play(load(tmp_path, "budget.trials=30", *options))
    later.to_the_end()
    assert ranked(later.record.past)[0].id != order[0].id, "among ten times as many there is a better one"
    assert status(config, later.record.past, config.folder)["final"] == "stale"
    for look in ("best", "status"):
        assert command(["search", look, str(config.folder)]) == 0
        assert f"not of trial {ranked(later.record.past)[0].id}" in capsys.readouterr().out.replace("\n", " ")
    discard_stale(config.folder, ranked(later.record.past))
    assert not (config.folder / FINAL).exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{presets: [gnime]}", "final.presets names 'gnime'"),
        ("{presets: [unet, unet]}", "twice"),
        ("{presets: [found]}", "no inverter design is called so"),
        ("{seeds: 0}", "final.seeds"),
    ],
)
def test_a_wrong_comparison_is_refused_before_anything(settings: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        searches.base_audit(load(tmp_path, f"final={settings}", "overrides={attack.designs.found: {encoder: cnn}}"))
    assert words in str(caught.value), caught.value


def marks(runs: Path, kind: str) -> dict[Path, int]:
    """When each finished stage of a kind was finished."""
    return {path: path.stat().st_mtime_ns for path in (runs / "stages").glob(f"{kind}-*/stage.json")}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_ends_in_its_comparison_and_goes_on_where_that_was_cut_off(tmp_path: Path) -> None:
    options = (OVERRIDES, "epochs=2", "asha=null", "budget.trials=2", "presets=false")
    options = (*options, "final={presets: [small], seeds: 2, pictures: 3}", "place={cpus: 1}")
    config = load(tmp_path, *options)
    first = search(tmp_path, *options)
    log = config.folder / "log.txt"
    assert first.returncode == 0, first.stderr[-3000:] + (log.read_text()[-3000:] if log.exists() else "")
    past: Past = read(config.folder)
    final = read_final(config.folder)
    assert final is not None
    check_final(config, past, final)
    images = load_file(config.folder / "final" / "images.safetensors")
    assert set(images) == {"truth", "found", "small"}
    assert {(image.shape, image.dtype) for image in images.values()} == {((3, 32, 32, 1), np.dtype(np.uint8))}
    assert (config.folder / "final" / "images.safetensors").stat().st_mode & 0o777 == 0o600

    before = marks(config.runs, "inverter")
    distinct = {(one["design"], one["epochs"], one["seed"]) for one in final["entries"]}
    assert len(before) == len(distinct)
    lost = min(before).parent
    shutil.rmtree(lost)
    (config.folder / FINAL).unlink()
    again = search(tmp_path, *options)
    assert again.returncode == 0, again.stderr[-3000:]
    after = marks(config.runs, "inverter")
    assert after.keys() == before.keys()
    assert {path for path in after if after[path] != before[path]} == {lost / "stage.json"}
    assert read_final(config.folder) == final, "the same trainings, the same victims"


def check_final(config: searches.SearchConfig, past: Past, final: dict[str, Any]) -> None:
    """Against the record, and against best.yaml, which is there."""
    best = ranked(past)[0]
    assert write_best(config, past, config.folder) == config.folder / "best.yaml"
    assert final["victims"] == 24 and final["samples"] == 2 * 90
    assert {one["trial"] for one in final["entries"] if one["design"] == "found"} == {best.id}
    assert len(final["entries"]) == 8 and len(final["ratios"]) == 2
    design = InverterDesign.model_validate(best.candidate["design"])
    assert design != searches.base_audit(config).attack.designs["small"]
    for one in final["entries"]:
        assert 0 < one["mse"] < 1 and 0 < one["validation_mse"] < 1 and one["parameters"] > 0
    for ratio in final["ratios"]:
        assert ratio["low"] <= ratio["mse"] <= ratio["high"]
    shares = {one["regime"]: one["mse"] for one in final["ratios"]}
    means = {
        (one["regime"], one["design"]): np.mean(
            [
                other["mse"]
                for other in final["entries"]
                if (other["regime"], other["design"]) == (one["regime"], one["design"])
            ]
        )
        for one in final["entries"]
    }
    for regime, share in shares.items():
        assert share == pytest.approx(means[regime, "found"] / means[regime, "small"])
