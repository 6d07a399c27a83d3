"""The stages of an audit in order, each one a function of its settings and of what it reads.

    images -> target, evaluator -> releases -> inverters -> scores -> report

Run from Python:

    from pathlib import Path
    from xinv import audit, config

    scores = audit.run(config.load(Path("configs/demo.yaml"), ["name=mine", "workers.count=1"]))
    for leak in scores["leaks"]:
        print(leak["attack"], leak["metrics"]["mse"])
"""

import contextlib
import functools
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from xinv.answers import answers, check_attributes
from xinv.attacks import inverters, surrogate_attacks
from xinv.binding import bind
from xinv.closed_forms import closed_forms
from xinv.config import AuditConfig, ClassifierPart, dump
from xinv.data.attacker import open_images
from xinv.data.build import build_images
from xinv.data.index import Index
from xinv.files import make_private, read_json, write_atomic, write_json
from xinv.keeping import kept_run, kept_training
from xinv.nets.classifier import build_classifier
from xinv.parallel import disconnect
from xinv.progress import Progress, silent
from xinv.random_target import random_targets
from xinv.release.methods import METHODS
from xinv.release.precompute import PARTITIONS, ReleaseSettings, check_classes, precompute
from xinv.scores import score_attacks
from xinv.stage import Finished, Store, lock
from xinv.storage import opened
from xinv.target import ImportedTarget, checked_target, imported_stage
from xinv.track import Recorder, Tracker
from xinv.train.imported import load_target
from xinv.train.inline import Group
from xinv.train.loop import TrainJob
from xinv.train.run import TrainingGroup
from xinv.train.weights import ClassifierSpec

Stop = Literal["images", "target", "releases", "inverters", "scores", "report"]
Screen = Callable[[str], contextlib.AbstractContextManager[Progress]]

FORMATS = {"images": 2, "classifier": 1, "releases": 1}
"""Raised when a stage's code changes what it computes, so that results of the older code are not taken for it."""


@contextlib.contextmanager
def unseen(title: str) -> Iterator[Progress]:
    yield silent


def run(
    config: AuditConfig, screen: Screen = unseen, until: Stop = "report", group: Group | None = None
) -> dict[str, Any]:
    """Run an audit, or what is missing of it; a second call continues an interrupted one.

    Args:
        config: from `config.load` or `config.validated`.
        screen: makes the context manager that shows one stage's progress (`progress.Terminal.stage`).
        until: the last stage wanted.
        group: who does the work; None: `config.workers` under Ray, for this audit alone.

    Returns:
        The content of scores.json; an empty dict where `until` comes before it.

    Raises:
        InputError: the input is wrong, or a training cannot fit into memory; nothing was lost. WorkError: the work
            failed.
    """
    bind(config)
    busy = (
        f"{config.folder} is in use by another xinv process. Wait for it, or give this audit another name (name=...)."
    )
    with lock(config.folder / ".lock", busy), kept_run(config.storage, config.folder):
        tracker = Tracker(
            config.folder, config.track, config.name, config.model_dump(mode="json"), config.folder / "log.txt"
        )
        tracker.check()
        try:
            if group is not None:
                return Audit(config, screen, tracker, group).run(until)
            if until != "images" and not (config.folder / "scores.json").exists():
                from xinv.plan.check import check_here  # which goes through the stages of this file

                check_here({"": config})
            with TrainingGroup(config.workers, make_private(config.folder / "ray"), config.folder / "log.txt") as own:
                return Audit(config, screen, tracker, own).run(until)
        finally:
            tracker.close()
            if group is None:
                disconnect()
                shutil.rmtree(config.folder / "ray", ignore_errors=True)


@dataclass
class Audit:
    """The stages of one audit. `run` goes through them; `trials.walk` does so too, one at a time."""

    config: AuditConfig
    screen: Screen
    tracker: Recorder
    group: Group

    def __post_init__(self) -> None:
        gib = self.config.cache_gib
        most = None if gib is None else int(gib * 2**30)
        self.store = Store(self.config.runs / "stages", opened(self.config.storage), most)

    def run(self, until: Stop) -> dict[str, Any]:
        imported = None if until == "images" else checked_target(self.config)
        images = self.images()
        if until == "images":
            return {}
        self._check_methods(images, imported)
        target = self.target(images, imported)
        evaluators = self.evaluators(images)
        if until == "target":
            return {}
        releases = self.explain("releases", images, target, self.config.release)
        if until == "releases":
            return {}
        attacks = [*inverters(self, images, releases), *surrogate_attacks(self, images, releases)]
        attacks += closed_forms(self, images, releases)
        attacks += random_targets(self, images, releases, target)
        if until == "inverters":
            return {}
        scored = score_attacks(self, images, releases, evaluators, target, attacks)
        scores: dict[str, Any] = read_json(scored.folder / "scores.json")
        if until == "report":
            self.report(scored)
        return scores

    def stage(self, kind: str, title: str, identity: dict[str, Any], work: Callable[[Path, Progress], Any]) -> Finished:
        """One stage with its line on the screen and its record in events.jsonl."""
        with self.screen(title) as progress:
            found = self.store.finished(kind, identity)
            if found is None:
                self.tracker.event("begin", stage=title)
                found = self.store.make(kind, identity, lambda folder: work(folder, progress))
                self.tracker.event("end", stage=title, folder=found.id)
                progress(1, 1, found.id)
            else:
                progress(1, 1, f"{found.id} (kept)")
        return found

    def images(self) -> Finished:
        """Image shards of every partition."""
        data, seed = self.config.data, self.config.seed
        source, _, shared = open_images(data.source, data.attacker)
        check_attributes(self.config, source.records[:shared])
        identity = {
            "format": FORMATS["images"],
            "settings": data.model_dump(mode="json"),
            "seed": seed,
            "source": source.fingerprint,
        }

        def work(folder: Path, progress: Progress) -> dict[str, int]:
            light = functools.partial(self.group.run_tasks, light=True)
            index = build_images(data, seed, folder, progress, light)
            return {partition: index.samples(partition) for partition in index.partitions}

        return self.stage("images", "Images", identity, work)

    def evaluators(self, images: Finished) -> dict[str, Finished]:
        """The judges, by name."""
        return {
            name: self.classifier("evaluator", part, images, self.config.seed + 2)
            for name, part in self.config.evaluators.items()
        }

    def target(self, images: Finished, imported: ImportedTarget | None) -> Finished:
        """The network under audit: the user's own, or trained here."""
        part = self.config.target
        if imported is not None:
            return imported_stage(self, imported)
        assert isinstance(part, ClassifierPart), "what is not imported is trained"
        return self.classifier("target", part, images, self.config.seed + 1)

    def classifier(
        self, role: Literal["target", "evaluator"], part: ClassifierPart, images: Finished, seed: int
    ) -> Finished:
        """The target, trained on its own partition, or the evaluator, trained on the gallery."""
        partition = "target" if role == "target" else "gallery"
        identity = {
            "format": FORMATS["classifier"],
            "settings": part.model_dump(mode="json"),
            "images": images.id,
            "partition": partition,
            "seed": seed,
        }

        def work(folder: Path, progress: Progress) -> dict[str, Any]:
            spec = ClassifierSpec(
                settings=part.network,
                channels=self.config.data.channels,
                size=self.config.data.size,
                **self.answers(part, images),
            )
            return self.train(
                TrainJob(
                    folder=folder.resolve(),
                    objective="classify_attributes" if spec.attributes else "classify",
                    network=spec,
                    images=images.folder.resolve(),
                    partition=partition,
                    settings=part.training,
                    seed=seed,
                ),
                role,
                progress,
            )

        return self.stage(role, f"{role.capitalize()}: {part.network.network}", identity, work)

    def answers(self, part: ClassifierPart, images: Finished) -> dict[str, Any]:
        """What a classifier is to tell apart, as fields of ClassifierSpec."""
        return answers(part, images.folder)

    def explain(
        self,
        kind: str,
        images: Finished,
        target: Finished,
        settings: ReleaseSettings,
        partitions: Sequence[str] = PARTITIONS,
    ) -> Finished:
        """Predictions and explanations of a classifier for the images of `partitions`."""
        identity = {
            "format": FORMATS["releases"],
            "settings": settings.model_dump(mode="json"),
            "images": images.id,
            "target": target.id,
            "partitions": list(partitions),
        }

        def work(folder: Path, progress: Progress) -> dict[str, int]:
            index = precompute(
                images.folder.resolve(),
                target.folder.resolve(),
                folder.resolve(),
                settings,
                # A worker may run elsewhere: an imported target's module is looked for where the audit was started.
                load=functools.partial(load_target, directory=Path.cwd()),
                run_tasks=self.run_tasks,
                progress=progress,
                threads=self.config.workers.cpus,
                partitions=partitions,
            )
            return {partition: index.samples(partition) for partition in index.partitions}

        title = kind.capitalize().replace("_", " ")
        return self.stage(kind, f"{title}: {', '.join(settings.methods)}", identity, work)

    def _check_methods(self, images: Finished, imported: ImportedTarget | None) -> None:
        """Refuse an explanation that its network does not support, before anything is trained.

        What a method supports depends on a network's layers, not on its weights.
        """
        target, data, surrogate = self.config.target, self.config.data, self.config.attack.surrogate
        label_names = Index.load(images.folder).label_names
        classes = len(label_names)
        check_classes(self.config.release, classes)
        wanted = [(target.network, self.config.release.methods)] if isinstance(target, ClassifierPart) else []
        if imported is not None:
            imported.check_labels(label_names)  # its explanations have been checked before there were images
        if surrogate is not None:
            wanted.append((surrogate.network, surrogate.methods))
        for network, methods in wanted:
            model = build_classifier(network, data.channels, data.size, classes).eval()
            for name in methods:
                METHODS[name].check(model, (data.channels, data.size, data.size))

    def run_tasks(self, factory: Any, tasks: Sequence[Any], progress: Progress = silent) -> list[Any]:
        """Apply the function that `factory` builds to every task, on this audit's workers."""
        return self.group.run_tasks(factory, tasks, progress)

    def train(self, job: TrainJob, series: str, progress: Progress) -> dict[str, Any]:
        write_json(job.folder / "job.json", job.model_dump(mode="json"))

        def note(record: dict[str, Any]) -> None:
            self.tracker.event("metrics", series=series, **record)

        with kept_training(self.store.storage, job.folder):
            return self.group.train(job, progress, note).model_dump(mode="json")

    def report(self, scored: Finished) -> None:
        """scores.json and report.html in the run folder."""
        from xinv.report.page import write_report  # matplotlib: not before it is needed

        out = self.config.folder
        content = (scored.folder / "scores.json").read_text()
        copy = out / "scores.json"
        if copy.exists() and copy.read_text() == content and (out / "report.html").exists():
            return
        with self.screen("Report") as progress:
            scores = read_json(scored.folder / "scores.json")
            write_report(scores, scored.folder / "pictures.npz", dump(self.config), out / "report.html")
            write_atomic(copy, content)
            if self.config.track.images:
                self._send_pictures(scored.folder / "pictures.npz")
            self.tracker.summary({row["attack"]: row["metrics"]["mse"]["mean"] for row in scores["rows"]})
            progress(1, 1, str(out / "report.html"))

    def _send_pictures(self, path: Path) -> None:
        """One strip a kind of picture to W&B: the user has set track.images."""
        with np.load(path, allow_pickle=False) as pictures:
            for name in pictures.files:
                if name == "original" or name.startswith("reconstruction:"):
                    image_NHWC = pictures[name]
                    strip_HWC = np.concatenate(list(image_NHWC), axis=1)
                    stream = io.BytesIO()
                    Image.fromarray(strip_HWC.squeeze(-1) if strip_HWC.shape[-1] == 1 else strip_HWC).save(
                        stream, "PNG"
                    )
                    self.tracker.picture(name, stream.getvalue(), step=0)
