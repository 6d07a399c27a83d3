"""From scores of every victim to rows, leaks, risk: against numbers worked out apart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xinv.errors import WorkError
from xinv.leak.attack import ORIGINALS, Attack, ScoreSettings, with_controls
from xinv.leak.statistics import detectable_effect, holm, paired_difference
from xinv.leak.table import Tables, by_attack, save_samples

COUNT = 40
BASELINE = Attack(id="prediction_only", kind="attack", inverter="prediction_only")
GRADIENT = Attack(id="unet:gradient", kind="attack", inverter="unet", methods=("gradient",))
CAM = Attack(id="unet:grad_cam", kind="attack", inverter="unet", methods=("grad_cam",))
ATTACKS = with_controls([BASELINE, GRADIENT, CAM], ["mean_image", "other_image"])
SETTINGS = ScoreSettings(resamples=400)


def scored(mse: float, seed: int) -> dict[str, Any]:
    """Result of an attack: errors around `mse`, and an accuracy by each of two evaluators."""
    random = np.random.default_rng(seed)
    return {
        "metrics": {
            "mse": mse * random.uniform(0.5, 1.5, COUNT),
            "attack_accuracy_top1": (random.random(COUNT) < 0.7).astype(float),
            "attack_accuracy_top1:cnn": (random.random(COUNT) < 0.6).astype(float),
        },
        "agreement": {"all_right": (random.random(COUNT) < 0.5).astype(float)},
        "pictures": np.full((2, 4, 4, 1), seed, np.uint8),
    }


@pytest.fixture
def results() -> dict[str, Any]:
    mse = {"prediction_only": 0.04, "unet:gradient": 0.01, "unet:grad_cam": 0.038, "mean_image": 0.07}
    found: dict[str, Any] = {
        attack.id: scored(mse.get(attack.id, 0.05), number) for number, attack in enumerate(ATTACKS)
    }
    right = np.r_[np.ones(COUNT - 4), np.zeros(4)]
    found[ORIGINALS] = {
        "key": [f"{number:03d}" for number in range(COUNT)],
        "identity": [f"person {number // 2:02d}" for number in range(COUNT)],
        "label": [0] * COUNT,
        "target_right": right.tolist(),
        "metrics": {"attack_accuracy_top1": right, "attack_accuracy_top1:cnn": np.ones(COUNT)},
        "agreement": {"all_right": right},
        "evaluators": [
            {"name": "residual", "suffix": "", "predicts": "label", "classes": 4},
            {"name": "cnn", "suffix": ":cnn", "predicts": "label", "classes": 4},
        ],
        "reidentification": {},
        "shown": ["000", "001"],
        "pictures": np.zeros((2, 4, 4, 1), np.uint8),
        "maps": {"gradient": np.zeros((2, 1, 8, 8), np.float32)},
    }
    return found


def made(results: dict[str, Any], attacks: list[Attack] = ATTACKS) -> dict[str, Any]:
    found = Tables(attacks, results, BASELINE.id, SETTINGS, 0, lambda methods: 16.0 + 256 * len(methods)).all()
    json.dumps(found, allow_nan=False)  # plain numbers alone
    return found


def test_rows_hold_means_sizes_and_agreement(results: dict[str, Any]) -> None:
    found = made(results)
    assert [row["attack"] for row in found["rows"]] == [attack.id for attack in ATTACKS]
    rows = {row["attack"]: row for row in found["rows"]}
    assert rows["unet:gradient"]["released_bytes"] == 16 + 256 and rows["mean_image"]["released_bytes"] is None
    for attack, row in rows.items():
        assert row["n"] == COUNT and row["seeds"] == 1
        for name, value in row["metrics"].items():
            assert value["mean"] == pytest.approx(results[attack]["metrics"][name].mean())
            assert value["low"] < value["mean"] < value["high"]
        assert row["agreement"]["all_right"]["mean"] == pytest.approx(results[attack]["agreement"]["all_right"].mean())
    assert found["images"] == COUNT and found["identities"] == 20


def test_evaluators_have_a_ceiling_each_and_the_first_is_the_principal_one(results: dict[str, Any]) -> None:
    found = made(results)
    assert [one["accuracy_on_originals"]["mean"] for one in found["evaluators"]] == [0.9, 1.0]
    assert found["evaluator"] == {
        "accuracy_on_originals": found["evaluators"][0]["accuracy_on_originals"],
        "chance": 0.25,
    }
    assert found["evaluators"][0]["agreement_on_originals"]["all_right"]["mean"] == 0.9
    assert found["target"]["accuracy"]["mean"] == 0.9


def test_leaks_are_adjusted_over_the_explanations_of_a_metric(results: dict[str, Any]) -> None:
    leaks = {leak["attack"]: leak["metrics"] for leak in made(results)["leaks"]}
    clusters_N = np.arange(COUNT) // 2
    for name in ("mse", "attack_accuracy_top1", "attack_accuracy_top1:cnn"):
        differences = [
            paired_difference(
                results[attack]["metrics"][name], results["prediction_only"]["metrics"][name], clusters_N, 0, 400
            )
            for attack in ("unet:gradient", "unet:grad_cam")
        ]
        adjusted = holm([one.p for one in differences])
        for attack, difference, p_holm in zip(("unet:gradient", "unet:grad_cam"), differences, adjusted, strict=True):
            leak = leaks[attack][name]
            assert leak["difference"] == difference.mean and (leak["low"], leak["high"]) == difference[1:3]
            assert leak["p"] == difference.p and leak["p_holm"] == p_holm
            assert leak["mde"] == detectable_effect(difference.standard_error, tests=2)
    assert leaks["unet:gradient"]["mse"]["p_holm"] == 2 / 401  # two explanations, whatever the number of controls
    assert leaks["unet:gradient"]["mse"]["mde"] < 0.01
    assert "p_holm" not in leaks["mean_image"]["mse"] and leaks["mean_image"]["mse"]["p"] == 1 / 401


def test_an_attack_can_have_a_baseline_and_a_title_of_its_own(results: dict[str, Any]) -> None:
    joint = Attack(id="joint", kind="attack", inverter="unet", baseline="unet:grad_cam", title="Imagined")
    results["joint"] = scored(0.02, 99)
    found = made(results, [*ATTACKS, joint])
    leak = found["leaks"][-1]
    assert (leak["attack"], leak["baseline"]) == ("joint", "unet:grad_cam")
    expected = results["joint"]["metrics"]["mse"].mean() - results["unet:grad_cam"]["metrics"]["mse"].mean()
    assert leak["metrics"]["mse"]["difference"] == pytest.approx(expected)
    assert leak["metrics"]["mse"]["p_holm"] == leak["metrics"]["mse"]["p"]  # the only one against that baseline
    assert found["rows"][-1]["title"] == "Imagined"
    assert found["risk"]["attacks"][-1]["baseline"] == "unet:grad_cam"


def test_risk_is_by_identity_where_identities_repeat(results: dict[str, Any]) -> None:
    risk = made(results)["risk"]
    assert risk["by"] == "identity" and risk["threshold"] == 0.5
    assert [one["attack"] for one in risk["attacks"]] == ["unet:gradient", "unet:grad_cam"]  # no controls
    own, base = (
        results[attack]["metrics"]["mse"].reshape(20, 2).mean(axis=1) for attack in ("unet:gradient", "prediction_only")
    )
    gain_U = 1 - own / base
    assert risk["attacks"][0]["units"] == 20
    assert risk["attacks"][0]["worst_decile"]["mean"] == pytest.approx(np.sort(gain_U)[-2:].mean())
    assert risk["attacks"][0]["above"]["mean"] == (gain_U > 0.5).mean()
    results[ORIGINALS]["identity"] = results[ORIGINALS]["key"]
    risk = made(results)["risk"]
    assert risk["by"] == "image" and risk["attacks"][0]["units"] == COUNT
    assert "risk" not in made(results, [BASELINE])


def test_several_trainings_of_an_attack_are_one_row(results: dict[str, Any], tmp_path: Path) -> None:
    trained = [BASELINE, *(one.model_copy(update={"seed": seed}) for seed in range(3) for one in (BASELINE, GRADIENT))]
    tasks = with_controls(trained[1:], ["mean_image"])
    found = [scored(0.04 if task.id == BASELINE.id else 0.01, 10 * task.seed + len(task.id)) for task in tasks]
    joined = by_attack(tasks, found)
    assert joined["unet:gradient"]["metrics"]["mse"].shape == (3, COUNT)
    assert joined["mean_image"]["metrics"]["mse"].shape == (COUNT,)
    assert joined["unet:gradient"]["pictures"][0, 0, 0, 0] == len("unet:gradient")
    joined[ORIGINALS] = results[ORIGINALS]
    scores = made(joined, tasks)
    assert [(row["attack"], row["seeds"]) for row in scores["rows"]] == [
        ("prediction_only", 3),
        ("unet:gradient", 3),
        ("mean_image", 1),
    ]
    means = [one["metrics"]["mse"].mean() for task, one in zip(tasks, found, strict=True) if task.id == GRADIENT.id]
    assert scores["rows"][1]["metrics"]["mse"]["mean"] == pytest.approx(np.mean(means))
    assert [leak["attack"] for leak in scores["leaks"]] == ["unet:gradient", "mean_image"]
    save_samples(tmp_path, tasks, joined)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as samples:
        assert samples["unet:gradient/mse"].shape == (3, COUNT)
    uneven = by_attack(tasks[:-2], found[:-2])
    with pytest.raises(WorkError, match="trained 2 times and its baseline prediction_only 3 times"):
        made({**uneven, ORIGINALS: results[ORIGINALS]}, tasks[:-2])


def test_reidentification_has_its_ceiling(results: dict[str, Any]) -> None:
    results[ORIGINALS]["reidentification"] = {"identities": 20, "false_accept_rate": 0.013}
    results[ORIGINALS]["metrics"] |= {"reidentification_rank1": np.ones(COUNT), "embedding_similarity": np.ones(COUNT)}
    told = made(results)["reidentification"]
    assert told["identities"] == 20 and list(told["originals"]) == ["reidentification_rank1"]
    assert told["originals"]["reidentification_rank1"]["low"] == pytest.approx(0.025 ** (1 / 20))
    del results[ORIGINALS]["metrics"]["reidentification_rank1"]
    results[ORIGINALS]["reidentification"] = {}
    assert "reidentification" not in made(results)


def reading(results: dict[str, Any], suffix: str) -> dict[str, Any]:
    """`results` with an evaluator that reads glasses and beard."""
    random = np.random.default_rng(5)
    names = [f"attribute:glasses{suffix}", f"attribute:beard{suffix}"]

    def drawn(share: float) -> dict[str, np.ndarray]:
        each = {name: (random.random(COUNT) < share).astype(float) for name in names}
        return {f"attributes_recovered{suffix}": sum(each.values()) / 2, **each}

    for attack in ATTACKS:
        results[attack.id]["metrics"] |= drawn(0.7)
    originals = results[ORIGINALS]
    originals["metrics"] |= drawn(0.95)
    originals["guessed"] = drawn(0.6)
    originals["unseen"] = {names[0]: np.r_[1.0, 1.0, np.zeros(COUNT - 2)], names[1]: np.zeros(COUNT)}
    told = [{"name": name, "values": [0, 1], "counts": [6, 4]} for name in ("glasses", "beard")]
    described = {"name": suffix[1:] or "reader", "suffix": suffix, "predicts": "attributes", "left_out": {}}
    originals["evaluators"].append({**described, "attributes": told})
    return results


def test_attributes_have_their_ceiling_their_chance_and_what_lies_over_it(results: dict[str, Any]) -> None:
    found = made(reading(results, ":reader"))
    originals = results[ORIGINALS]
    reader = found["evaluators"][2]
    assert reader["chance"] == pytest.approx(originals["guessed"]["attributes_recovered:reader"].mean())
    ceiling = originals["metrics"]["attributes_recovered:reader"].mean()
    assert reader["accuracy_on_originals"]["mean"] == pytest.approx(ceiling)
    glasses, beard = reader["attributes"]
    assert glasses["chance"] == originals["guessed"]["attribute:glasses:reader"].mean()
    assert (glasses["unseen"], beard["unseen"]) == (2, 0)
    for row in found["rows"]:
        own = results[row["attack"]]["metrics"]["attributes_recovered:reader"]
        assert row["over_chance"].keys() == {"attributes_recovered:reader"}
        over = row["over_chance"]["attributes_recovered:reader"]
        assert (
            over["mean"] == pytest.approx(own.mean() - reader["chance"]) and over["low"] < over["mean"] < over["high"]
        )
    leak = next(leak for leak in found["leaks"] if leak["attack"] == "unet:gradient")
    assert {"p_holm", "mde"} <= leak["metrics"]["attribute:glasses:reader"].keys()
    assert found["evaluator"]["chance"] == 0.25  # of the first evaluator still


def test_an_evaluator_of_attributes_may_be_the_principal_one(results: dict[str, Any]) -> None:
    for attack in ATTACKS:
        results[attack.id]["metrics"] = {"mse": results[attack.id]["metrics"]["mse"]}
        results[attack.id]["agreement"] = {}
    results[ORIGINALS] |= {"metrics": {}, "agreement": {}, "evaluators": []}
    found = made(reading(results, ""))
    assert "evaluator" not in found and [one["predicts"] for one in found["evaluators"]] == ["attributes"]
    names = {"mse", "attributes_recovered", "attribute:glasses", "attribute:beard"}
    assert all(row["metrics"].keys() == names for row in found["rows"])
