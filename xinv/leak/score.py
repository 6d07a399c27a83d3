"""Every attack's reconstructions of the victims, measured image by image. The only reader of the `victim` partition.

Axes: B images, C channels, H rows, W columns, K classes, M map channels, N all victims.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xinv.data.index import Index
from xinv.data.lessons import Lessons
from xinv.data.loader import Batch, Reader
from xinv.data.window import window
from xinv.leak.attack import ORIGINALS, PARTITION, Attack, ScoreSettings, with_controls
from xinv.leak.controls import mean_image, other_image, partners
from xinv.leak.evaluators import Panel, Sitting
from xinv.leak.metrics import image_metrics
from xinv.leak.nearest import nearest_images
from xinv.leak.subsets import with_withheld
from xinv.nets.classifier import Classifier

__all__ = [
    "ORIGINALS",
    "PARTITION",
    "Attack",
    "ScoreSettings",
    "Scorer",
    "with_controls",
]


SCORED_VALUES = 1 << 24
"""Values of the images reconstructed at once, at most: 5 of 1024 px in colour. A network's activations take tens of
times as much, and so do the filters of SSIM."""


class Scorer:
    """Carries out one attack after another on the victims of one audit. Lives in a worker process; loads files alone.

    Where the set promises that victims are in the gallery too (identity-disjoint splits), people are re-identified.

    Args:
        images, releases: the sets that hold the victim partition; `images` also the gallery, and the attacker's own
            part for the mean image.
        evaluator: folder of the evaluator, or name -> folder of several, the principal one first; empty: pixels alone
            are compared.
        load_classifier, load_inverter: readers of network folders. An inverter is (prediction_BK, maps) -> image_BCHW.
        known_images: how many of the attacker's images the mean image and the nearest neighbour may use; None: all.
    """

    def __init__(
        self,
        images: Path,
        releases: Path,
        evaluator: Path | Mapping[str, Path],
        settings: ScoreSettings,
        seed: int,
        load_classifier: Callable[[Path], Classifier],
        load_inverter: Callable[[Path], nn.Module],
        known_images: int | None = None,
    ) -> None:
        self._images, self._releases, self._settings, self._seed = images, releases, settings, seed
        self._device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        self._load_inverter, self._known_images = load_inverter, known_images
        folders = {"evaluator": evaluator} if isinstance(evaluator, Path) else evaluator
        index = Index.load(images)
        labels = len(index.label_names)
        self._panel = Panel(folders, load_classifier, self._device, labels, settings.false_accept_rate)
        if folders and index.made_by.get("disjoint") == "identity":
            known = Reader(images, "gallery")
            self._panel.enrol(known.once(window(settings.batch_size, known.image_shape, SCORED_VALUES)))
        # Two at least, and no single one left over: "another image" needs a second.
        self._size = max(2, window(settings.batch_size, self._victims(()).image_shape, SCORED_VALUES))
        self._shown = self._choose()

    def __call__(self, attack: Attack) -> dict[str, Any]:
        """Reconstruct every victim once.

        Returns:
            "metrics": name -> float64 array (N,) in index order; "agreement": likewise, of several evaluators;
            "pictures": uint8 array (n, H, W, C), where the attack is pictured. For the originals instead "key",
            "identity", "label", "target_right" of all victims, the pictures and maps of the shown ones, "evaluators",
            as "metrics" and "agreement" what the evaluators make of the originals: the ceiling; and of attributes
            "guessed", what blind guesses get right, and "unseen", whose values the gallery does not show.
            For same_class_image also "without_partner": victims that have no other of their label.
        """
        if attack.kind == "originals":
            return self._originals(attack)
        reader = self._reader(attack.methods, attack.lessons)
        facts: dict[str, int] = {}
        reconstruct = self._reconstruct(attack, facts)
        sitting, values = Sitting(self._panel), _Values()
        pictures: dict[int, np.ndarray] = {}
        position = 0
        for batch in reader.once(chunk(reader.samples, self._size)):
            image_BCHW = batch.image_BCHW.to(self._device)
            found_BCHW = reconstruct(batch, position).float()
            values.add(image_metrics(found_BCHW, image_BCHW))
            values.add(sitting.add(found_BCHW, image_BCHW, batch))
            if attack.pictured:
                self._keep(pictures, found_BCHW, position)
            position += len(batch.key)
        found: dict[str, Any] = {
            **facts,
            "metrics": values.joined() | sitting.finish()[0],
            "agreement": sitting.agreement,
        }
        if attack.pictured:
            found["pictures"] = np.stack([pictures[place] for place in self._shown])
        return found

    def _reader(self, methods: Sequence[str], lessons: Path | None = None) -> Reader | Lessons:
        if lessons is None:
            return self._victims(methods)
        attributes = self._panel.attributes
        return Lessons(
            self._images, PARTITION, self._releases, lessons, tuple(methods), purpose="score", attributes=attributes
        )

    def _victims(self, methods: Sequence[str]) -> Reader:
        return Reader(
            self._images, PARTITION, self._releases, tuple(methods), purpose="score", attributes=self._panel.attributes
        )

    def _choose(self) -> list[int]:
        """Positions of the victims to show: the first of every label in turn, so that no label fills the page."""
        by_label: dict[int, list[int]] = {}
        position = 0
        for batch in self._reader(()).once(self._size):
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

    def _reconstruct(self, attack: Attack, facts: dict[str, int]) -> Callable[[Batch, int], Tensor]:
        """(batch, position of its first victim) -> image_BCHW, asked for in index order; `facts` are for the result."""
        if attack.control == "mean_image":
            reader = Reader(self._images, "attack", limit=self._known_images)
            mean_CHW = mean_image((batch.image_BCHW, batch.weight_B) for batch in reader.once(self._size))
            return lambda batch, position: mean_CHW.to(self._device).expand(len(batch.key), -1, -1, -1)
        if attack.control == "nearest_neighbour":
            found = self._nearest(attack)
            return lambda batch, position: next(found)
        assert attack.folder is not None
        network = self._load_inverter(attack.folder).to(self._device)

        others = self._partners(attack, facts) if attack.control == "same_class_image" else None

        def run(batch: Batch, position: int) -> Tensor:
            assert batch.prediction_BK is not None
            shown = batch.maps if others is None else next(others).maps
            maps = [map_BMHW.to(self._device) for map_BMHW in shown.values()]
            if attack.control == "other_image":
                # Within the batch, so that memory stays bounded at any resolution; every batch has its own seed.
                order = torch.from_numpy(other_image(len(batch.key), self._seed + position))
                maps = [map_BMHW[order.to(self._device)] for map_BMHW in maps]
            inputs = with_withheld(attack, network, maps, len(batch.key)) if attack.partial else (maps,)
            with torch.no_grad():
                return network(batch.prediction_BK.to(self._device), *inputs)

        return run

    def _partners(self, attack: Attack, facts: dict[str, int]) -> Iterator[Batch]:
        """Another victim of the same label for each victim, batch beside batch of the scoring."""
        reader = self._victims(attack.methods)
        size = chunk(reader.samples, self._size)
        labels = torch.cat([batch.label_B for batch in self._victims(()).once(size)])
        other_N, facts["without_partner"] = partners(labels.numpy(), size, self._seed)
        return reader.at(other_N, size)

    def _nearest(self, attack: Attack) -> Iterator[Tensor]:
        """The attacker's image with the nearest release for each victim, batch by batch of the scoring."""
        size = self._size
        known = Reader(self._images, "attack", self._releases, attack.methods, limit=self._known_images)
        victims = self._victims(attack.methods)
        # What is searched with is the release alone: the victim's image stays here.
        asked = (_released(batch) for batch in victims.once(chunk(victims.samples, size)))
        return nearest_images(
            asked, lambda: ((_released(batch), batch.image_BCHW) for batch in known.once(size)), self._device
        )

    def _originals(self, attack: Attack) -> dict[str, Any]:
        """The victims themselves: what the evaluator makes of them is the ceiling of attack accuracy."""
        reader = self._reader(attack.methods)
        seen: dict[str, list[Any]] = {"key": [], "identity": [], "label": [], "target_right": []}
        sitting, values, guessed, unseen = Sitting(self._panel), _Values(), _Values(), _Values()
        pictures: dict[int, np.ndarray] = {}
        maps: dict[str, dict[int, np.ndarray]] = {name: {} for name in attack.methods}
        position = 0
        for batch in reader.once(self._size):
            assert batch.prediction_BK is not None
            image_BCHW = batch.image_BCHW.to(self._device)
            values.add(sitting.add(image_BCHW, image_BCHW, batch))
            guessed.add(self._panel.guessed(batch))
            unseen.add(self._panel.unseen(batch))
            seen["key"] += batch.key
            seen["identity"] += batch.identity
            seen["label"] += batch.label_B.tolist()
            seen["target_right"] += (batch.prediction_BK.argmax(1) == batch.label_B).double().tolist()
            self._keep(pictures, batch.image_BCHW, position)
            for name, map_BMHW in batch.maps.items():
                for place in self._shown:
                    if position <= place < position + len(batch.key):
                        maps[name][place] = map_BMHW[place - position].numpy()
            position += len(batch.key)
        identified, facts = sitting.finish()
        return {
            **seen,
            "metrics": values.joined() | identified,
            "agreement": sitting.agreement,
            "evaluators": self._panel.describe(),
            "guessed": guessed.joined(),
            "unseen": unseen.joined(),
            "reidentification": facts,
            "pictures": np.stack([pictures[place] for place in self._shown]),
            "maps": {name: np.stack([found[place] for place in self._shown]) for name, found in maps.items()},
            "shown": [seen["key"][place] for place in self._shown],
        }


class _Values:
    """Scores of batch after batch, by name."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, scores: Mapping[str, Tensor]) -> None:
        for name, value_B in scores.items():
            self._parts.setdefault(name, []).append(value_B.double().cpu())

    def joined(self) -> dict[str, np.ndarray]:
        return {name: torch.cat(parts).numpy() for name, parts in self._parts.items()}


def _released(batch: Batch) -> list[Tensor]:
    """The prediction and the maps, each (B, channels, ...)."""
    assert batch.prediction_BK is not None
    return [batch.prediction_BK, *batch.maps.values()]


def chunk(images: int, size: int) -> int:
    """A batch size near `size` that leaves no single image over: "another image" needs a second one."""
    while images > 1 and images % size == 1:
        size += 1
    return size
