"""Configurations of searches, what a cluster must have for them, and what is said of one that ran."""

import json
from pathlib import Path

import pytest
from searches import Cost, Play, load

from xinv.cli import run as command
from xinv.errors import InputError
from xinv.overrides import dump_yaml
from xinv.search import settings as searches
from xinv.search.best import open_run, pareto, ranked, write_best
from xinv.search.offer import offer
from xinv.search.preflight import room_for
from xinv.search.record import read
from xinv.search.run import resolved
from xinv.train.recipe import load_recipe

SHIPPED = sorted((Path(__file__).parent.parent / "configs" / "search").glob("*.yaml"))
GIB = 1 << 30


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_search_stands_on_the_audit_of_its_name(path: Path) -> None:
    config = searches.load(path)
    base = searches.base_audit(config)
    assert base.name == f"{path.stem}-search" and base.attack.images == 3000
    assert (path.parent.parent / path.name).exists()
    training = searches.training_of(config, base)
    assert (training.epochs, training.patience) == (18, 0), "nobody but the search ends a trial"
    assert {"gradient", "grad_cam", "lrp_zplus"} <= set(base.release.methods)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("searcher=pbt", "population based training is not offered"),
        ("objective=accuracy", "objective"),
        ("second=memory", "second"),
        ("asha.grace=9", "asha.grace is 9, and a trial has 4 epochs"),
        ("release=[occlusion]", "release names 'occlusion', and the base releases gradient, grad_cam"),
        ("release=[gradient, gradient]", "twice"),
        ("overrides={attack.training.validate_every: 2}", "Make grace a multiple"),
        ("overrides={attack.trainings: 2}", "attack.trainings"),
        ("budget.trails=3", "budget.trails"),
        ("place={workers: 2, gpus: 0.5}", "2 workers of one trial cannot share a GPU"),
        ("warm_start=[nowhere]", "warm_start: nowhere holds no search"),
        ("space={prediction: none, reading: none, encoder: none}", "The space is empty"),
    ],
)
def test_a_wrong_search_is_one_clear_error_before_any_work(override: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        config = load(tmp_path, override)
        offer(config, searches.base_audit(config))
    assert words in str(caught.value), caught.value


def test_a_search_is_kept_where_it_says_or_where_its_base_is(tmp_path: Path) -> None:
    assert searches.base_audit(load(tmp_path)).storage is None
    of_base = load(tmp_path, "overrides={storage: /kept/base}")
    assert searches.base_audit(of_base).storage == "/kept/base"
    own = load(tmp_path, "overrides={storage: /kept/base}", "storage=/kept/own")
    assert searches.base_audit(own).storage == "/kept/own"


def test_room_is_worked_out_and_told(tmp_path: Path) -> None:
    config = load(tmp_path, "place={cpus: 2}", "budget.trials=100")
    have = {"CPU": 16.0, "memory": 10.0 * GIB}
    found = room_for(config, have, memory_bytes=GIB)
    assert found.width == 4, "10 GiB hold four processes of 2.2 GiB"
    assert "16 CPU at 2 a trial: room for 8; 10.0 GiB at 2.2 GiB a trial: room for 4" in found.words
    assert room_for(load(tmp_path, "place={at_once: 3}"), have, GIB).width == 3
    gpus = room_for(load(tmp_path, "place={gpus: 0.5}", "budget.trials=100"), {**have, "GPU": 2.0}, 50 * GIB)
    assert gpus.width == 4, "a candidate's memory is on its GPU"
    ranks = room_for(
        load(tmp_path, "place={cpus: 2, workers: 3, gpus: 1}"), {"CPU": 64, "GPU": 8, "memory": 90 * GIB}, 0
    )
    assert ranks.width == 2 and "8 GPU at 3 x 1 a trial: room for 2" in ranks.words
    assert "64 CPU at 3 x 2 a trial: room for 10; 90.0 GiB at 5.8 GiB a trial: room for 15" in ranks.words


@pytest.mark.parametrize(
    ("place", "have", "words"),
    [
        ("{cpus: 4}", {"CPU": 2.0, "memory": 64.0 * GIB}, "2 CPU at 4 a trial: room for 0"),
        ("{}", {"CPU": 2.0, "memory": 1.0 * GIB}, "1.0 GiB at 1.2 GiB a trial: room for 0"),
        ("{gpus: 1}", {"CPU": 2.0, "memory": 64.0 * GIB}, "0 GPU at 1 a trial: room for 0"),
        ("{workers: 3}", {"CPU": 2.0, "memory": 64.0 * GIB}, "2 CPU at 3 x 1 a trial: room for 0"),
        ("{at_once: 3}", {"CPU": 2.0, "memory": 64.0 * GIB}, "place.at_once is 3, and the cluster has room for 2"),
    ],
)
def test_a_cluster_too_small_is_refused_with_the_arithmetic(
    place: str, have: dict[str, float], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        room_for(load(tmp_path, f"place={place}"), have, 0)
    assert words in str(caught.value)


def test_the_best_is_one_that_went_to_its_end_and_becomes_a_recipe(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    config = load(tmp_path, "budget.trials=12")
    trials = Play(config).to_the_end()
    (config.folder / "resolved.yaml").write_text(dump_yaml(resolved(config, searches.base_audit(config))))
    again, past = open_run(config.folder)
    best = ranked(past)[0]
    assert best.score == min(trial.score for trial in trials if trial.state == "finished")
    path = write_best(again, past, config.folder)
    assert path is not None
    recipe = load_recipe(path)
    assert recipe.design.model_dump(mode="json") == best.candidate["design"]
    assert recipe.training.model_dump(mode="json") == best.candidate["training"]
    assert (recipe.name, recipe.release, recipe.maps) == ("tiny", ("gradient",), ((1, 32, 32),))
    front = pareto(past)
    assert best.score == front[-1].score
    assert [one.cost["flops"] for one in front] == sorted(one.cost["flops"] for one in front)
    assert command(["search", "status", str(config.folder)]) == 0
    path.unlink()
    moved = config.folder.rename(tmp_path / "elsewhere")
    assert command(["search", "best", str(moved)]) == 0 and (moved / "best.yaml").exists()


@pytest.mark.parametrize("second", ["flops", "parameters"])
def test_the_front_is_of_the_second_objective_that_was_chosen(
    second: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Designs that take many FLOPs for few parameters: the fronts of the two differ."""
    pytest.importorskip("optuna")
    monkeypatch.setattr("searches.price", lambda one: Cost(parameters=13 - one.design.width, flops=7, memory_bytes=1))
    config = load(tmp_path, "budget.trials=20", "asha=null", "presets=false", f"second={second}")
    Play(config).to_the_end()
    past = read(config.folder)
    (config.folder / "resolved.yaml").write_text(dump_yaml(resolved(config, searches.base_audit(config))))
    assert command(["search", "best", str(config.folder), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    front = [row["trial"] for row in said["trials"]]
    best = min(past.trials.values(), key=lambda trial: trial.score)
    assert said["second"] == second and front[-1] == best.id
    assert (len(front) == 1) == (second == "flops"), "all take as many FLOPs"
    assert load_recipe(Path(said["best_file"])).design.model_dump(mode="json") == best.candidate["design"]


def test_a_folder_that_is_no_search_and_a_search_that_is_a_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["search", "best", str(tmp_path)]) == 2
    assert command(["search", str(tmp_path)]) == 2
    assert command(["search", "status"]) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert "no folder of a search" in said and "is a folder" in said and "needs one run folder" in said
