"""The final comparison of a search: its best designs and known ones, trained anew and scored on the victims.

The search has chosen by the attacker's own validation images, one training a design. What it found is held here against
the known designs on people whom nobody has chosen by: several trainings of each, once with equally many images seen and
once with equal FLOPs. Every training is a stage, which audits with the same settings share; the scoring is one too.
`comparison.py` says what is written down.

Axes: S seeds, N victims, H rows, W columns, C channels.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from xinv.attacks import InverterTraining, train_inverter
from xinv.audit import Screen, unseen
from xinv.config import AuditConfig
from xinv.files import aside, make_private
from xinv.leak.attack import ORIGINALS, Attack
from xinv.leak.score import Scorer
from xinv.leak.statistics import paired_ratio
from xinv.leak.table import by_attack, save_samples
from xinv.nets.design import InverterDesign
from xinv.search.best import ranked, recipe
from xinv.search.comparison import (
    FOLDER,
    FOUND,
    IMAGES,
    KNOWN,
    FinalSettings,
    Regime,
    epochs_for,
    known_designs,
    write_final,
)
from xinv.search.record import Past
from xinv.search.retraining import Retraining
from xinv.search.settings import SearchConfig, training_of
from xinv.search.task import Ground, Pricing, Space, Task
from xinv.stage import Finished
from xinv.track import Recorder
from xinv.train.inline import Group
from xinv.train.losses import LossSettings
from xinv.train.settings import TrainingSettings
from xinv.train.weights import load_classifier, load_inverter

FORMAT = 1
LEVEL = 0.95
"""Of the intervals of final.json."""


class Contender(BaseModel):
    """A design that is compared, and how it is trained in regime "samples"."""

    model_config = ConfigDict(frozen=True)

    title: str
    trial: str | None = Field(None, description="the trial that found it; null: a known design")
    design: InverterDesign
    training: TrainingSettings
    loss: LossSettings

    def same(self, other: "Contender") -> bool:
        """Whether the trainings of both are one and the same."""
        return (self.design, self.training, self.loss) == (other.design, other.training, other.loss)


@dataclass(frozen=True)
class Entrant:
    """A contender in one regime: its trainings differ by their seed alone."""

    contender: Contender
    regime: Regime
    epochs: int
    flops: int
    """Of one training."""

    @property
    def title(self) -> str:
        """Two regimes may ask for the same trainings: they are made, scored and called once."""
        trial = f" of trial {self.contender.trial}" if self.contender.trial is not None else ""
        return f"{self.contender.title}{trial}, {self.epochs} epoch{'s' if self.epochs > 1 else ''}"

    def training(self, methods: tuple[str, ...], seed: int) -> InverterTraining:
        """`seed`: which of its trainings, from 0."""
        return InverterTraining(
            label=f"{self.title}, seed {seed + 1}",
            design=self.contender.design,
            training=self.contender.training.model_copy(update={"epochs": self.epochs}),
            loss=self.contender.loss,
            methods=methods,
            repeat=seed,
        )


class Final:
    """The final comparison of one search.

    Args:
        config, base: the search, and the audit that it stands on.
        task, space, price: what was searched.
        tracker: gets a line when a training begins and ends, and the metrics.

    Raises:
        InputError: a known design that is asked for does not fit the images or the release.
    """

    def __init__(
        self, config: SearchConfig, base: AuditConfig, task: Task, space: Space, price: Pricing, tracker: Recorder
    ) -> None:
        assert config.final is not None
        self.settings: FinalSettings = config.final
        self.config, self.base, self.task, self.price, self.tracker = config, base, task, price, tracker
        training, loss = training_of(config, base), base.attack.loss
        self.known = {
            name: Contender(title=name, design=design, training=training, loss=loss)
            for name, design in known_designs(base.attack).items()
        }
        offered = [name for name, _ in space.presets() if name in KNOWN]
        names = offered if self.settings.presets is None else self.settings.presets
        self.rivals = [self.known[name] for name in names]
        for rival in self.rivals:
            price(rival)  # builds it, and so says what does not fit, before a trial begins

    def contenders(self, past: Past) -> list[Contender]:
        """The best designs, the best first, then the known ones. A known design that is among the best, trained in the
        same way, goes by its own name and is not compared with itself."""
        found: list[Contender] = []
        for place, trial in enumerate(ranked(past)[: self.settings.best], 1):
            chosen = recipe(self.config, past, trial)
            own = Contender(
                title=FOUND if place == 1 else f"{FOUND}-{place}",
                trial=trial.id,
                design=chosen.design,
                training=chosen.training,
                loss=chosen.loss,
            )
            twin = next((one.title for one in (*self.rivals, *self.known.values()) if one.same(own)), own.title)
            found.append(own.model_copy(update={"title": twin}))
        names = {one.title for one in found}
        return [*found, *(one for one in self.rivals if one.title not in names)]

    def target(self, best: Contender) -> int:
        """FLOPs of a training in regime "flops": those of the best design in regime "samples"."""
        return self.price(best).flops * self.task.samples * self.config.epochs

    def entrants(self, contenders: Sequence[Contender]) -> list[Entrant]:
        """Every contender in every regime."""
        per_epoch = {one.title: self.price(one).flops * self.task.samples for one in contenders}
        target = self.target(contenders[0])
        found = []
        for regime in self.settings.regimes:
            for one in contenders:
                each = per_epoch[one.title]
                epochs = self.config.epochs if regime == "samples" else epochs_for(target, each)
                found.append(Entrant(one, regime, epochs, each * epochs))
        return found

    def run(self, past: Past, group: Group, screen: Screen = unseen) -> Path:
        """Make the comparison of the best trials of now, or what is missing of it; final.json.

        Raises:
            InputError, WorkError: a training or the scoring failed; what is finished is kept.
        """
        entrants = self.entrants(self.contenders(past))
        asked = {one.label: one for entrant in entrants for one in self.trainings(entrant)}
        flops = {one.label: entrant.flops for entrant in entrants for one in self.trainings(entrant)}
        memory = max(self.price(entrant.contender).memory_bytes for entrant in entrants)
        seen = Ground(self.base, screen, self.tracker, group)
        trainer = seen
        if self.config.place.workers == 1:  # else `group` trains them one after the other, on all its ranks
            retraining = Retraining(self.config, self.base, self.task, asked, flops, memory, self.tracker)
            trainer = Ground(self.base, unseen, self.tracker, group)
            with screen("Final comparison: trainings") as progress:
                left = retraining.left(trainer)
                if left:
                    retraining.run(left, progress)
                progress(1, 1, f"{len(left)} trainings" if left else f"{len(asked)} trainings (kept)")
        images, releases = self.task.images, self.task.releases
        trained = {label: train_inverter(trainer, images, releases, one) for label, one in asked.items()}
        scored = self._scored(seen, entrants, trained)
        with np.load(scored.folder / "samples.npz", allow_pickle=False) as samples:
            content = self.content(entrants, trained, dict(samples))
        if content["pictures"]:
            self._save_pictures(scored.folder / "pictures.npz", entrants)
        return write_final(self.config.folder, content)

    def trainings(self, entrant: Entrant) -> list[InverterTraining]:
        """One for each seed."""
        return [entrant.training(self.task.methods, seed) for seed in range(self.settings.seeds)]

    def _scored(self, ground: Ground, entrants: Sequence[Entrant], trained: dict[str, Finished]) -> Finished:
        """Every trained network on the victims, once."""
        attacks = {
            one.label: Attack(
                id=entrant.title,
                kind="attack",
                inverter=entrant.contender.title,
                folder=trained[one.label].folder,
                methods=self.task.methods,
                seed=one.repeat,
            )
            for entrant in entrants
            for one in self.trainings(entrant)
        }
        settings = self.base.score.model_copy(update={"pictures": max(1, self.settings.pictures)})
        images, releases = self.task.images, self.task.releases
        identity = {
            "format": FORMAT,
            "images": images.id,
            "releases": releases.id,
            "pictures": settings.pictures,
            "batch_size": settings.batch_size,
            "attacks": [one.described() for one in attacks.values()],
        }

        def work(folder: Path, progress: Any) -> dict[str, int]:
            factory = functools.partial(
                Scorer,
                images.folder.resolve(),
                releases.folder.resolve(),
                {},  # no evaluator: what is compared is what was searched for, the error of pixels
                settings,
                self.base.seed,
                load_classifier,
                load_inverter,
            )
            tasks = [Attack(id=ORIGINALS, kind="originals"), *(one.absolute() for one in attacks.values())]
            results = by_attack(tasks, ground.run_tasks(factory, tasks, progress))
            save_samples(folder, list(attacks.values()), results)
            return {"victims": len(results[ORIGINALS]["key"])}

        return ground.stage("final_scores", "Final comparison: victims", identity, work)

    def content(
        self, entrants: Sequence[Entrant], trained: dict[str, Finished], samples: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """final.json.

        Args:
            trained: the finished training of every seed of every entrant, by its label.
            samples: "key" and "identity" (N,) of the victims; "TITLE/mse" and "TITLE/ssim" of every entrant, (N,) or
                (S, N).
        """
        entries = []
        for entrant in entrants:
            mse_SN, ssim_SN = (np.atleast_2d(samples[f"{entrant.title}/{name}"]) for name in ("mse", "ssim"))
            for one in self.trainings(entrant):
                summary = trained[one.label].result
                entries.append(
                    {
                        "design": entrant.contender.title,
                        "trial": entrant.contender.trial,
                        "regime": entrant.regime,
                        "seed": one.repeat,
                        "epochs": entrant.epochs,
                        "samples": self.task.samples * entrant.epochs,
                        "flops": entrant.flops,
                        "parameters": summary["parameters"],
                        "validation_mse": summary["validation"]["mse"],
                        "mse": float(mse_SN[one.repeat].mean()),
                        "ssim": float(ssim_SN[one.repeat].mean()),
                    }
                )
        return {
            "seeds": self.settings.seeds,
            "samples": self.task.samples * self.config.epochs,
            "flops": self.target(entrants[0].contender),
            "victims": len(samples["key"]),
            "entries": entries,
            "ratios": self._ratios(entrants, samples),
            "pictures": {"images": f"{FOLDER}/{IMAGES}", "regime": self.settings.regimes[0]}
            if self.settings.pictures
            else None,
        }

    def _ratios(self, entrants: Sequence[Entrant], samples: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        """Every best design against every known one, in each regime; intervals over people (or images) and seeds."""
        found = []
        pairs = [(own, other) for own in entrants for other in entrants if own.regime == other.regime]
        for own, other in pairs:
            if own.contender.trial is None or other.contender.trial is not None:
                continue
            ratio = paired_ratio(
                samples[f"{own.title}/mse"],
                samples[f"{other.title}/mse"],
                samples["identity"],
                self.base.seed,
                self.base.score.resamples,
                LEVEL,
            )
            names = {"regime": own.regime, "design": own.contender.title, "to": other.contender.title}
            found.append({**names, "mse": ratio.value, "low": ratio.low, "high": ratio.high})
        return found

    def _save_pictures(self, path: Path, entrants: Sequence[Entrant]) -> None:
        """uint8 NHWC: "truth", and the reconstructions of every design in the first regime, first seed."""
        from safetensors.numpy import save_file

        with np.load(path, allow_pickle=False) as pictures:
            images = {"truth": pictures["original"]}
            for entrant in entrants:
                if entrant.regime == self.settings.regimes[0]:
                    images[entrant.contender.title] = pictures[f"reconstruction:{entrant.title}"]
        out = make_private(self.config.folder / FOLDER) / IMAGES
        with aside(out) as draft:
            draft.touch(mode=0o600)
            save_file({name: np.ascontiguousarray(image_NHWC) for name, image_NHWC in images.items()}, draft)
            draft.chmod(0o600)
