"""From the scores of every victim to scores.json: rows, leaks, risk, with intervals.

Axes: N victims, S training seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xinv.errors import WorkError
from xinv.files import aside
from xinv.leak.attack import ORIGINALS, PARTITION, Attack, ScoreSettings
from xinv.leak.metrics import metric_of
from xinv.leak.risk import by_identity, removed_error, risk
from xinv.leak.statistics import Difference, bootstrap_mean, detectable_effect, holm, paired_difference

Results = Mapping[str, Mapping[str, Any]]
"""Attack id -> what `Scorer` returned, its arrays (N,), or (S, N) where `by_attack` joined trainings; and ORIGINALS."""


def by_attack(tasks: Sequence[Attack], found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What `Scorer` returned for `tasks`, by attack id: trainings that differ by their seed alone become one, with
    arrays (S, N) in the order of the tasks and the pictures of the first.
    """
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for task, result in zip(tasks, found, strict=True):
        grouped.setdefault(task.id, []).append(result)
    return {ident: dict(results[0]) if len(results) == 1 else _joined(results) for ident, results in grouped.items()}


def _joined(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    stacked = {
        kind: {name: np.stack([result[kind][name] for result in results]) for name in results[0].get(kind, {})}
        for kind in ("metrics", "agreement")
    }
    return {**results[0], **stacked}


@dataclass
class Tables:
    """The part of scores.json that follows from the scores of every victim. `all` makes it.

    Args:
        attacks: all but the originals; those of one id, trained with different seeds, count as one.
        results: attack id -> what `Scorer` returned (`by_attack`); ORIGINALS -> the originals.
        baseline: id of the prediction-only attack. A leak is score(attack) - score(baseline), paired by image.
        released: bytes that the target gives out for one image with these explanations (`release.formats`).
    """

    attacks: Sequence[Attack]
    results: Results
    baseline: str
    settings: ScoreSettings
    seed: int
    released: Callable[[Sequence[str]], float]

    def __post_init__(self) -> None:
        self.attacks = list({one.id: one for one in self.attacks}.values())
        self.originals = self.results[ORIGINALS]
        self.identity = np.asarray(self.originals["identity"])
        self.cluster_N = np.unique(self.identity, return_inverse=True)[1]
        self.count = len(self.identity)

    def all(self) -> dict[str, Any]:
        """{"level", "resamples", "images", "identities", "rows", "leaks", "evaluators", "target"}, and "evaluator" (the
        accuracy of the first one, unless it reads attributes), "risk" and "reidentification" where there is something
        to say; intervals by a bootstrap over identities, and over seeds where there are several.
        """
        evaluators = self.evaluators()
        found = {
            "level": self.settings.level,
            "resamples": self.settings.resamples,
            "images": self.count,
            "identities": int(self.cluster_N.max()) + 1,
            "rows": [self.row(attack) for attack in self.attacks],
            "leaks": self.leaks(),
            "evaluators": evaluators,
            "target": {"accuracy": self.interval(self.originals["target_right"], (0.0, 1.0))},
        }
        if evaluators[0]["predicts"] != "attributes":
            found["evaluator"] = {name: evaluators[0][name] for name in ("accuracy_on_originals", "chance")}
        return found | self.risk() | self.reidentification()

    def interval(self, values: Any, bounds: tuple[float, float] | None = None) -> dict[str, float]:
        settings = self.settings
        found = bootstrap_mean(values, self.cluster_N, self.seed, settings.resamples, settings.level, bounds)
        return found._asdict()

    def row(self, attack: Attack) -> dict[str, Any]:
        """One attack's means."""
        result = self.results[attack.id]
        metrics = result["metrics"]
        row = {
            "attack": attack.id,
            "kind": attack.kind,
            "release": list(attack.methods),
            "inverter": attack.inverter,
            "partition": PARTITION,
            "n": self.count,
            "seeds": self.seeds(attack),
            "released_bytes": None if attack.control == "mean_image" else self.released(attack.methods),
            "metrics": {name: self.interval(values, metric_of(name).range) for name, values in metrics.items()},
        }
        if attack.title:
            row["title"] = attack.title
        if attack.group and not attack.control:
            row["group"] = list(attack.group)
        if over_chance := self.over_chance(metrics):
            row["over_chance"] = over_chance
        if "without_partner" in result:
            row["without_partner"] = result["without_partner"]
        if result.get("agreement"):
            row["agreement"] = self.agreement(result["agreement"])
        return row

    def over_chance(self, metrics: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """What an attack recovers of attributes beyond what blind guesses get right, image by image."""
        settings, found = self.settings, {}
        for name, guessed_N in self.originals.get("guessed", {}).items():
            if metric_of(name).attribute:
                continue
            gain = paired_difference(
                metrics[name], guessed_N, self.cluster_N, self.seed, settings.resamples, settings.level
            )
            found[name] = {"mean": gain.mean, "low": gain.low, "high": gain.high}
        return found

    def seeds(self, attack: Attack) -> int:
        """Trainings behind a row."""
        return int(np.atleast_2d(next(iter(self.results[attack.id]["metrics"].values()))).shape[0])

    def agreement(self, found: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
        return {name: self.interval(values, (0.0, 1.0)) for name, values in found.items()}

    def leaks(self) -> list[dict[str, Any]]:
        """What each attack adds to its baseline; p-values of attacks adjusted over those of one metric and baseline.

        The subsets of a release that one inverter is scored on are of that family, like releases with inverters of
        their own: each is a release that could be called leaking, so each is a chance of calling one so by accident.
        Holm's correction allows for tests as dependent as these; it costs power, which `mde` counts in. The empty
        subset is a control and in no family.
        """
        found: list[dict[str, Any]] = []
        differences: dict[tuple[str, str], Difference] = {}
        for attack in self.attacks:
            if attack.id == self.baseline:
                continue
            baseline = attack.baseline or self.baseline
            for name in self.results[attack.id]["metrics"]:
                differences[attack.id, name] = self.difference(attack.id, baseline, name)
            found.append({"attack": attack.id, "baseline": baseline, "n": self.count, "metrics": {}})
        controls = {attack.id for attack in self.attacks if attack.kind == "control"}
        for leak in found:
            for name in self.results[leak["attack"]]["metrics"]:
                family = [
                    other["attack"]
                    for other in found
                    if other["baseline"] == leak["baseline"]
                    and other["attack"] not in controls
                    and (other["attack"], name) in differences
                ]
                leak["metrics"][name] = self.leak(leak["attack"], name, family, differences)
        return found

    def difference(self, attack: str, baseline: str, name: str) -> Difference:
        own, base = (self.results[ident]["metrics"][name] for ident in (attack, baseline))
        if np.ndim(own) == 2 and np.ndim(base) == 2 and len(own) != len(base):
            raise WorkError(f"{attack} was trained {len(own)} times and its baseline {baseline} {len(base)} times.")
        return paired_difference(own, base, self.cluster_N, self.seed, self.settings.resamples, self.settings.level)

    def leak(
        self, attack: str, name: str, family: list[str], differences: Mapping[tuple[str, str], Difference]
    ) -> dict[str, float]:
        """One attack's leak in one metric. A control is no finding: it is tested alone, and has no adjusted p."""
        own = differences[attack, name]
        tests = len(family) if attack in family else 1
        found = {
            "difference": own.mean,
            "low": own.low,
            "high": own.high,
            "p": own.p,
            "mde": detectable_effect(own.standard_error, self.settings.level, tests=tests),
        }
        if attack in family:
            adjusted = holm([differences[other, name].p for other in family])
            found["p_holm"] = adjusted[family.index(attack)]
        return found

    def evaluators(self) -> list[dict[str, Any]]:
        """What is known of every evaluator, its accuracy on the originals being the ceiling of attack accuracy."""
        found = []
        for one in self.originals["evaluators"]:
            own = self.originals["metrics"]
            if one["predicts"] == "attributes":
                found.append(self.reader(one))
                continue
            right = own[f"attack_accuracy_top1{one['suffix']}"]
            accuracy = self.interval(right, (0.0, 1.0))
            found.append({**one, "chance": 1.0 / one["classes"], "accuracy_on_originals": accuracy})
            if f"attack_accuracy_top5{one['suffix']}" in own:
                among_five = self.interval(own[f"attack_accuracy_top5{one['suffix']}"], (0.0, 1.0))
                found[-1]["top5_accuracy_on_originals"] = among_five
        if self.originals["agreement"]:
            found[0]["agreement_on_originals"] = self.agreement(self.originals["agreement"])
        return found

    def reader(self, one: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of an evaluator of attributes: of all and of each one the ceiling, what it reads right on the
        originals, the chance, and how many victims have a value that the gallery does not show.
        """
        own, guessed, unseen = (self.originals[kind] for kind in ("metrics", "guessed", "unseen"))

        def bounds(name: str) -> dict[str, Any]:
            return {
                "chance": float(guessed[name].mean()),
                "accuracy_on_originals": self.interval(own[name], (0.0, 1.0)),
            }

        each = []
        for attribute in one["attributes"]:
            name = f"attribute:{attribute['name']}{one['suffix']}"
            each.append({**attribute, **bounds(name), "unseen": int(unseen[name].sum())})
        return {**one, **bounds(f"attributes_recovered{one['suffix']}"), "attributes": each}

    def reidentification(self) -> dict[str, Any]:
        """What people were searched in, and how often the originals themselves are found: the ceiling."""
        facts = self.originals["reidentification"]
        if not facts:
            return {}
        ceiling = {
            name: self.interval(values, (0.0, 1.0))
            for name, values in self.originals["metrics"].items()
            if metric_of(name).about == "person"
        }
        return {"reidentification": {**facts, "originals": ceiling}}

    def risk(self) -> dict[str, Any]:
        """Who is at risk, from the share of the baseline's squared error that each attack removes."""
        repeated, settings = by_identity(self.identity), self.settings
        told = []
        for attack in self.attacks:
            baseline = attack.baseline or self.baseline
            if attack.kind == "control" or attack.id == self.baseline:
                continue
            own, base = (self.results[ident]["metrics"]["mse"] for ident in (attack.id, baseline))
            gain_U = removed_error(own, base, self.identity if repeated else None)
            facts = risk(gain_U, settings.exposure, self.seed, settings.resamples, settings.level)
            told.append({"attack": attack.id, "baseline": baseline, "units": len(gain_U), **facts})
        if not told:
            return {}
        by = "identity" if repeated else "image"
        return {"risk": {"by": by, "metric": "mse", "threshold": settings.exposure, "attacks": told}}


def save_samples(folder: Path, attacks: Sequence[Attack], results: Results) -> None:
    """Write samples.npz, every metric of every victim, and pictures.npz, what the report shows."""
    originals = results[ORIGINALS]
    samples = {"key": np.array(originals["key"]), "identity": np.array(originals["identity"])}
    pictures = {"key": np.array(originals["shown"]), "original": originals["pictures"]}
    pictures |= {f"map:{name}": maps for name, maps in originals["maps"].items()}
    for ident in dict.fromkeys(attack.id for attack in attacks):
        samples |= {f"{ident}/{name}": values for name, values in results[ident]["metrics"].items()}
        if "pictures" in results[ident]:
            pictures[f"reconstruction:{ident}"] = results[ident]["pictures"]
    for name, arrays in (("samples.npz", samples), ("pictures.npz", pictures)):
        with aside(folder / name) as draft, draft.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
