"""One or several evaluators at work: what each sees in the reconstructions, whom it finds, and whether they agree.

A single evaluator can be fooled by a reconstruction that shows nobody. So several of different architecture may judge;
the figures of the first carry plain names, those of the others its name behind a colon (`attack_accuracy_top1:cnn`).
An evaluator of attributes has attributes recovered in place of attack accuracy.

Axes: B images, C channels, H rows, W columns, K classes, D embedding dimensions, N all images, G gallery images,
A attributes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xinv.data.attributes import UNSEEN, Attribute
from xinv.data.loader import Batch
from xinv.errors import InputError
from xinv.files import read_json
from xinv.leak.attributes import attributes_of, guessed, recovered
from xinv.leak.identity import Gallery, gallery, identify
from xinv.leak.metrics import embedded, evaluator_metrics, judged, similarity
from xinv.nets.classifier import Classifier
from xinv.report.measures import RANKS


@dataclass(frozen=True)
class Evaluator:
    """One evaluator. `identities` are its classes in order where it tells people apart, `attributes` what it reads
    where it reads those; both empty: it predicts labels. `columns`: its attributes among those of the panel.
    """

    name: str
    suffix: str
    network: Classifier
    identities: tuple[str, ...]
    place: Mapping[str, int]
    attributes: tuple[Attribute, ...]
    left_out: Mapping[str, str]
    columns: slice

    def classes(self, label_B: Tensor, identity_B: Sequence[str]) -> Tensor:
        """The true classes of images, int64, on the device of `label_B`."""
        if not self.identities:
            return label_B
        strangers = [identity for identity in identity_B if identity not in self.place]
        if strangers:
            raise InputError(
                f"The evaluator {self.name} tells {len(self.identities)} people apart, and the victim {strangers[0]!r} "
                "is not among them: train it on a gallery that shows every victim, or on labels."
            )
        return torch.tensor([self.place[identity] for identity in identity_B], device=label_B.device)

    def truth(self, batch: Batch) -> Tensor:
        """The true values of the attributes, int64 (B, A), as a reader of `Panel.attributes` gives them."""
        assert batch.attribute_BA is not None, "victims are read with the attributes of the panel"
        return batch.attribute_BA[:, self.columns]

    def describe(self) -> dict[str, Any]:
        """Name, suffix and what it predicts: how many classes, or which attributes."""
        known = {"name": self.name, "suffix": self.suffix}
        if not self.attributes:
            predicts = "identity" if self.identities else "label"
            return {**known, "predicts": predicts, "classes": self.network.head.out_features}
        attributes = [
            {"name": one.name, "values": list(one.values), "counts": list(one.counts)} for one in self.attributes
        ]
        return {**known, "predicts": "attributes", "attributes": attributes, "left_out": dict(self.left_out)}


class Panel:
    """The evaluators of one audit.

    Args:
        folders: name -> folder of a trained classifier; the first one is the principal evaluator.
        load: reads a classifier's folder.
        labels: number of labels of the images.
        false_accept_rate: of verification.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        load: Callable[[Path], Classifier],
        device: torch.device,
        labels: int,
        false_accept_rate: float,
    ) -> None:
        self.device, self.false_accept_rate = device, false_accept_rate
        self.evaluators: list[Evaluator] = []
        self.attributes: tuple[Attribute, ...] = ()
        self.galleries: dict[str, Gallery] = {}
        self.gallery_images = 0
        for name, folder in folders.items():
            if not name or ":" in name or "/" in name:
                raise InputError(f"An evaluator cannot be called {name!r}: give a name without colons and slashes.")
            network = load(folder).to(device)
            classes, identities = network.head.out_features, _identities(folder)
            attributes, left_out = attributes_of(folder)
            expected = sum(len(attribute.values) for attribute in attributes) or len(identities) or labels
            if classes != expected:
                raise InputError(
                    f"The evaluator {name} in {folder} tells {classes} classes apart, and the images have {labels} "
                    "labels: train it on these images."
                )
            suffix = f":{name}" if self.evaluators else ""
            place = {identity: number for number, identity in enumerate(identities)}
            columns = slice(len(self.attributes), len(self.attributes) + len(attributes))
            self.attributes += attributes
            self.evaluators.append(Evaluator(name, suffix, network, identities, place, attributes, left_out, columns))

    def enrol(self, batches: Iterable[Batch]) -> None:
        """Take the images of the gallery, in one pass; from then on people are re-identified.

        What stays in memory is an embedding an image and evaluator, 4 D bytes each.
        """
        parts: dict[str, list[np.ndarray]] = {one.name: [] for one in self.evaluators}
        identity_G: list[str] = []
        for batch in batches:
            image_BCHW = batch.image_BCHW.to(self.device)
            identity_G += batch.identity
            for one in self.evaluators:
                parts[one.name].append(embedded(one.network, image_BCHW).cpu().numpy())
        self.gallery_images = len(identity_G)
        self.galleries = {name: gallery(np.concatenate(found), identity_G) for name, found in parts.items()}

    def describe(self) -> list[dict[str, Any]]:
        """`Evaluator.describe` of all."""
        return [one.describe() for one in self.evaluators]

    def guessed(self, batch: Batch) -> dict[str, Tensor]:
        """What blind guesses of the attributes of a batch get right, (B,) each; see `attributes.guessed`."""
        return {
            f"{name}{one.suffix}": value_B
            for one in self.evaluators
            if one.attributes
            for name, value_B in guessed(one.truth(batch), one.attributes).items()
        }

    def unseen(self, batch: Batch) -> dict[str, Tensor]:
        """1.0 where the gallery does not show an image's value of an attribute, else 0.0, (B,) each."""
        return {
            f"attribute:{attribute.name}{one.suffix}": (one.truth(batch)[:, place] == UNSEEN).float()
            for one in self.evaluators
            for place, attribute in enumerate(one.attributes)
        }


class Sitting:
    """The panel's judgement of one attack, batch by batch.

    `add` returns the scores of a batch; `finish` those that need all images. `agreement` holds, of several evaluators,
    per image whether all are right (`all_right`) and, where all tell the same classes apart, whether all make the same
    first guess (`same_guess`); those of attributes have no part in it.
    """

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.identity: list[str] = []
        self.embedding: dict[str, list[np.ndarray]] = {one.name: [] for one in panel.evaluators}
        self._agreement: dict[str, list[np.ndarray]] = {}

    def add(self, found_BCHW: Tensor, image_BCHW: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores (B,) of the reconstructions of a batch, whose originals are `image_BCHW`; all on the device."""
        label_B = batch.label_B.to(self.panel.device)
        self.identity += batch.identity
        scores: dict[str, Tensor] = {}
        guesses, rights = [], []
        for one in self.panel.evaluators:
            judgement, original_BD = judged(one.network, found_BCHW), embedded(one.network, image_BCHW)
            if one.attributes:
                own = {"embedding_similarity": similarity(judgement.embedding_BD, original_BD)}
                own |= recovered(judgement.logit_BK, one.truth(batch).to(self.panel.device), one.attributes)
            else:
                own = evaluator_metrics(judgement, original_BD, one.classes(label_B, batch.identity))
                guesses.append(judgement.logit_BK.argmax(dim=1))
                rights.append(own["attack_accuracy_top1"])
            scores |= {f"{name}{one.suffix}": value_B for name, value_B in own.items()}
            if self.panel.galleries:
                self.embedding[one.name].append(judgement.embedding_BD.cpu().numpy())
        if len(guesses) > 1:
            self._agree("all_right", torch.stack(rights).amin(dim=0))
            if len({one.identities for one in self.panel.evaluators if not one.attributes}) == 1:
                self._agree("same_guess", torch.stack([guess_B == guesses[0] for guess_B in guesses]).all(dim=0))
        return scores

    def _agree(self, name: str, value_B: Tensor) -> None:
        self._agreement.setdefault(name, []).append(value_B.double().cpu().numpy())

    @property
    def agreement(self) -> dict[str, np.ndarray]:
        """Name -> float64 (N,); empty for a single evaluator."""
        return {name: np.concatenate(parts) for name, parts in self._agreement.items()}

    def finish(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Re-identification scores, float64 (N,) each, and what they were measured against; both empty without gallery.

        Rank k is left out where k people are half of the gallery or more: chance alone would find one in two.
        """
        scores: dict[str, np.ndarray] = {}
        facts: dict[str, Any] = {}
        for one in self.panel.evaluators if self.panel.galleries else ():
            known = self.panel.galleries[one.name]
            probe_ND = np.concatenate(self.embedding[one.name])
            found = identify(probe_ND, self.identity, known, self.panel.false_accept_rate)
            for k in RANKS:
                if found.identities > 2 * k:
                    scores[f"reidentification_rank{k}{one.suffix}"] = (found.rank_P <= k).astype(np.float64)
            if found.accepted_P is not None:
                scores[f"verification_tar{one.suffix}"] = found.accepted_P.astype(np.float64)
            facts = {
                "identities": found.identities,
                "gallery_images": self.panel.gallery_images,
                "impostor_pairs": found.impostor_pairs,
                "false_accept_rate": found.false_accept_rate,
                "false_accept_rate_wanted": self.panel.false_accept_rate,
            }
        return scores, facts


def _identities(folder: Path) -> tuple[str, ...]:
    """Whom the classifier in a stage folder tells apart, by its network.json; empty for one that predicts labels."""
    return tuple(read_json(folder / "network.json").get("identities", ()))
