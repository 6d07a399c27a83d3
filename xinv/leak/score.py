"""Every attack's reconstructions of the victims, measured image by image. The only reader of the `victim` partition.

Axes: B images, C channels, H rows, W columns, K classes, M map channels, N all victims.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from xinv.data.loader import Batch, Reader
from xinv.files import aside
from xinv.leak.controls import mean_image, other_image
from xinv.leak.metrics import METRICS, evaluator_metrics, image_metrics
from xinv.leak.statistics import bootstrap_mean, paired_difference
from xinv.nets.classifier import Classifier
from xinv.nets.inverter import Inverter

PARTITION = "victim"
ORIGINALS = "originals"


class ScoreSettings(BaseModel):
    """How the victims are scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resamples: int = Field(2000, ge=100, description="bootstrap resamples behind each interval")
    level: float = Field(0.95, gt=0, lt=1, description="confidence level of the intervals")
    pictures: int = Field(10, ge=1, le=64, description="victims shown in the report")
    batch_size: int = Field(125, ge=2, description="images reconstructed at once")


class Attack(BaseModel):
    """One way to reconstruct, as the scorer carries it out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    kind: Literal["attack", "control", "originals"]
    inverter: str = Field("", description="name of the inverter's design, for the tables")
    folder: Path | None = Field(None, description="its trained network")
    methods: tuple[str, ...] = Field((), description="explanations it sees, beside the prediction")
    control: Literal["", "mean_image", "other_image"] = ""


class Scorer:
    """Carries out one attack after another on the victims of one audit. Lives in a worker process; loads files alone.

    Args:
        images, releases: the sets that hold the victim partition.
        attack_partition: the attacker's own part, for the mean image.
        evaluator: folder of the evaluator.
        load_classifier, load_inverter: readers of network folders.
    """

    def __init__(
        self,
        images: Path,
        releases: Path,
        evaluator: Path,
        settings: ScoreSettings,
        seed: int,
        load_classifier: Callable[[Path], Classifier],
        load_inverter: Callable[[Path], Inverter],
    ) -> None:
        self._images, self._releases, self._settings, self._seed = images, releases, settings, seed
        self._device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        self._load_inverter = load_inverter
        self._evaluator = load_classifier(evaluator).to(self._device)
        self._shown = self._choose()

    def __call__(self, attack: Attack) -> dict[str, Any]:
        """Reconstruct every victim once.

        Returns:
            "metrics": name -> float64 array (N,) in index order; "pictures": uint8 array (n, H, W, C). For the
            originals instead "key", "identity", "label", "target_right", "evaluator_right" of all victims, and the
            pictures and maps of the shown ones.
        """
        if attack.kind == "originals":
            return self._originals(attack)
        reader = self._reader(attack.methods)
        reconstruct = self._reconstruct(attack)
        values: dict[str, list[Tensor]] = {}
        pictures: dict[int, np.ndarray] = {}
        position = 0
        for batch in reader.once(chunk(reader.samples, self._settings.batch_size)):
            image_BCHW, label_B = batch.image_BCHW.to(self._device), batch.label_B.to(self._device)
            found_BCHW = reconstruct(batch, position).float()
            scores = image_metrics(found_BCHW, image_BCHW)
            scores |= evaluator_metrics(self._evaluator, found_BCHW, image_BCHW, label_B)
            for name, value_B in scores.items():
                values.setdefault(name, []).append(value_B.double().cpu())
            self._keep(pictures, found_BCHW, position)
            position += len(batch.key)
        metrics = {name: torch.cat(parts).numpy() for name, parts in values.items()}
        return {"metrics": metrics, "pictures": np.stack([pictures[place] for place in self._shown])}

    def _reader(self, methods: Sequence[str]) -> Reader:
        return Reader(self._images, PARTITION, self._releases, tuple(methods))

    def _choose(self) -> list[int]:
        """Positions of the victims to show: the first of every label in turn, so that no label fills the page."""
        by_label: dict[int, list[int]] = {}
        position = 0
        for batch in self._reader(()).once(self._settings.batch_size):
            for label in batch.label_B.tolist():
                by_label.setdefault(label, []).append(position)
                position += 1
            if position >= 50 * self._settings.pictures:
                break
        rounds = max(len(places) for places in by_label.values())
        turns = [
            by_label[label][turn] for turn in range(rounds) for label in sorted(by_label) if turn < len(by_label[label])
        ]
        return turns[: self._settings.pictures]

    def _keep(self, pictures: dict[int, np.ndarray], image_BCHW: Tensor, position: int) -> None:
        for place in self._shown:
            if position <= place < position + len(image_BCHW):
                image_CHW = image_BCHW[place - position].clamp(0, 1).mul(255).round().to(torch.uint8)
                pictures[place] = image_CHW.permute(1, 2, 0).cpu().numpy()

    def _reconstruct(self, attack: Attack) -> Callable[[Batch, int], Tensor]:
        if attack.control == "mean_image":
            reader = Reader(self._images, "attack")
            mean_CHW = mean_image(
                (batch.image_BCHW, batch.weight_B) for batch in reader.once(self._settings.batch_size)
            )
            return lambda batch, position: mean_CHW.to(self._device).expand(len(batch.key), -1, -1, -1)
        assert attack.folder is not None
        network = self._load_inverter(attack.folder).to(self._device)

        def run(batch: Batch, position: int) -> Tensor:
            assert batch.prediction_BK is not None
            maps = [map_BMHW.to(self._device) for map_BMHW in batch.maps.values()]
            if attack.control == "other_image":
                # Within the batch, so that memory stays bounded at any resolution; every batch has its own seed.
                order = torch.from_numpy(other_image(len(batch.key), self._seed + position))
                maps = [map_BMHW[order.to(self._device)] for map_BMHW in maps]
            with torch.no_grad():
                return network(batch.prediction_BK.to(self._device), maps)

        return run

    def _originals(self, attack: Attack) -> dict[str, Any]:
        """The victims themselves: what the evaluator makes of them is the ceiling of attack accuracy."""
        reader = self._reader(attack.methods)
        seen: dict[str, list[Any]] = {"key": [], "identity": [], "label": [], "target_right": [], "evaluator_right": []}
        pictures: dict[int, np.ndarray] = {}
        maps: dict[str, dict[int, np.ndarray]] = {name: {} for name in attack.methods}
        position = 0
        for batch in reader.once(self._settings.batch_size):
            assert batch.prediction_BK is not None
            with torch.no_grad():
                guess_B = self._evaluator(batch.image_BCHW.to(self._device)).argmax(1).cpu()
            seen["key"] += batch.key
            seen["identity"] += batch.identity
            seen["label"] += batch.label_B.tolist()
            seen["evaluator_right"] += (guess_B == batch.label_B).double().tolist()
            seen["target_right"] += (batch.prediction_BK.argmax(1) == batch.label_B).double().tolist()
            self._keep(pictures, batch.image_BCHW, position)
            for name, map_BMHW in batch.maps.items():
                for place in self._shown:
                    if position <= place < position + len(batch.key):
                        maps[name][place] = map_BMHW[place - position].numpy()
            position += len(batch.key)
        shown = {name: np.stack([found[place] for place in self._shown]) for name, found in maps.items()}
        keys = [seen["key"][place] for place in self._shown]
        return {
            **seen,
            "pictures": np.stack([pictures[place] for place in self._shown]),
            "maps": shown,
            "shown": keys,
            "map_shapes": {name: list(shape) for name, shape in reader.map_shapes.items()},
        }


def chunk(images: int, size: int) -> int:
    """A batch size near `size` that leaves no single image over: "another image" needs a second one."""
    while images > 1 and images % size == 1:
        size += 1
    return size


def table(
    attacks: Sequence[Attack],
    results: Mapping[str, Mapping[str, Any]],
    baseline: str,
    settings: ScoreSettings,
    seed: int,
) -> dict[str, Any]:
    """Rows and leaks of scores.json from the per-image metrics.

    Args:
        attacks: all but the originals.
        results: attack id -> what `Scorer` returned; ORIGINALS -> the originals.
        baseline: id of the prediction-only attack. A leak is score(attack) - score(baseline), paired by image.

    Returns:
        {"level", "rows", "leaks", "evaluator", "target"} of scores.json; intervals by a bootstrap over identities.
    """
    originals = results[ORIGINALS]
    clusters = np.unique(np.asarray(originals["identity"]), return_inverse=True)[1]
    count = len(originals["key"])
    classes = originals["classes"]

    def interval(value_N: Any, bounds: tuple[float, float] | None = None) -> dict[str, float]:
        found = bootstrap_mean(value_N, clusters, seed, settings.resamples, settings.level, bounds)
        return {name: float(value) for name, value in found._asdict().items()}

    rows, leaks = [], []
    for attack in attacks:
        values = results[attack.id]["metrics"]
        sizes = [int(np.prod(originals["map_shapes"][method])) for method in attack.methods]
        rows.append(
            {
                "attack": attack.id,
                "kind": attack.kind,
                "release": list(attack.methods),
                "inverter": attack.inverter,
                "partition": PARTITION,
                "n": count,
                "released_bytes": None if attack.control == "mean_image" else 4.0 * (classes + sum(sizes)),
                "metrics": {name: interval(value_N, METRICS[name].range) for name, value_N in values.items()},
            }
        )
        if attack.id != baseline:
            differences = {}
            for name, value_N in values.items():
                found = paired_difference(
                    value_N, results[baseline]["metrics"][name], clusters, seed, settings.resamples, settings.level
                )
                differences[name] = {
                    "difference": float(found.mean),
                    "low": float(found.low),
                    "high": float(found.high),
                }
            leaks.append({"attack": attack.id, "baseline": baseline, "n": count, "metrics": differences})
    return {
        "level": settings.level,
        "rows": rows,
        "leaks": leaks,
        "evaluator": {
            "accuracy_on_originals": interval(originals["evaluator_right"], (0.0, 1.0)),
            "chance": 1.0 / classes,
        },
        "target": {"accuracy": interval(originals["target_right"], (0.0, 1.0))},
    }


def with_controls(attacks: Sequence[Attack], controls: Sequence[str]) -> list[Attack]:
    """All attacks and the named controls of them, in the order of the report."""
    found: list[Attack] = []
    if "mean_image" in controls:
        found.append(Attack(id="mean_image", kind="control", inverter="mean image", control="mean_image"))
    if "other_image" in controls:
        found += [
            one.model_copy(update={"id": f"other_image:{one.id}", "kind": "control", "control": "other_image"})
            for one in attacks
            if one.methods
        ]
    return [*attacks, *found]


def save_samples(folder: Path, attacks: Sequence[Attack], results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write samples.npz, every metric of every victim, and pictures.npz, what the report shows."""
    originals = results[ORIGINALS]
    samples = {"key": np.array(originals["key"]), "identity": np.array(originals["identity"])}
    pictures = {"key": np.array(originals["shown"]), "original": originals["pictures"]}
    pictures |= {f"map:{name}": maps for name, maps in originals["maps"].items()}
    for attack in attacks:
        samples |= {f"{attack.id}/{name}": value for name, value in results[attack.id]["metrics"].items()}
        pictures[f"reconstruction:{attack.id}"] = results[attack.id]["pictures"]
    for name, arrays in (("samples.npz", samples), ("pictures.npz", pictures)):
        with aside(folder / name) as draft, draft.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
