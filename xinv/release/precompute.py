"""From images and the target to release shards: what the target gives out, computed once and read by every attack.

A shard is a task, and has the same keys in the same order as the image shard of its number. Tasks run anywhere, in any
order, and again after a failure: a finished shard is never remade (`data.entries`).
Axes in tensor names: B batch, C image channels, M map channels, H height, W width, K classes.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator
from torch import nn

import xinv
from xinv.data.entries import Entry, RunTasks, Task, finished_entries, finished_entry, remove_entries
from xinv.data.fields import FieldSchema, schema_of
from xinv.data.index import INDEX_NAME, Index, shard_path
from xinv.data.shards import read_shard, write_shard
from xinv.data.window import window
from xinv.errors import InputError, WorkError
from xinv.files import digest, make_private, sha256_of
from xinv.progress import Progress, counted, silent
from xinv.release.formats import FORMATS, FormatSettings, bytes_per_image, release, units
from xinv.release.methods import METHODS, explain_all, method
from xinv.release.passes import Chunks

PARTITIONS = ("attack", "attack_validation", "victim")
"""What the attacker asks the target about, and what it is scored on. The target's own data is never released."""

LESSON_PARTITIONS = ("attack", "attack_validation")
"""What a network of the attacker's own is asked about: it teaches inverters, and victims teach nothing."""

TARGET = ("network.json", "weights.safetensors")
"""The files that are the target: what its digest is made of."""

PREDICTION = "prediction.npy"
EXPLAINED_VALUES = 1 << 22
"""Values of the images explained at once, at most: one of 1024 px in colour. LRP keeps every layer's output twice."""

NAMED = 3  # how many samples an error message names

Load = Callable[[Path], nn.Module]


class ReleaseSettings(BaseModel):
    """What the target releases for an image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: tuple[str, ...] = Field(
        ("gradient", "grad_cam", "lrp_zplus"),
        description="Explanation methods released beside the prediction.",
    )
    classes: PositiveInt | Literal["all"] = Field(
        1,
        description="Classes that each of them explains: so many of the highest logits, the predicted class first, or "
        "all in the order of the labels. Their maps lie one after another on the channels.",
    )
    format: FormatSettings = Field(
        default_factory=FormatSettings, description="What becomes of the maps before they are released."
    )
    batch_size: int = Field(64, ge=1, description="Images explained at once, at most; fewer where they are large.")
    max_nonfinite: int = Field(
        0,
        ge=0,
        description="Map values of the whole set that may be NaN or infinite. They are stored as 0 and counted in the "
        "index; one more, and the work fails.",
    )

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for name in methods:
            method(name)
        if len(set(methods)) < len(methods):
            raise ValueError(f"a method is named twice: {', '.join(methods)}")
        return methods


class ReleaseEntry(Entry):
    """What NNNNNN.entry.json says of the shard beside it."""

    fields: dict[str, FieldSchema] = Field(description="its schema")
    nonfinite: dict[str, int] = Field(description="NaN and infinite values that were stored as 0, by method")
    bytes_per_image: dict[str, int] = Field(description="what is released for one image, in bytes, by method")


class Explainer:
    """Makes release shards: built once in a worker, then called with task after task.

    `load`: a picklable function from `target_folder` to the target. `threads`: CPU threads to compute with.
    Runs on the GPU where there is one, in full float32 there too.
    """

    def __init__(
        self, target_folder: Path, images: Path, out: Path, settings: ReleaseSettings, load: Load, threads: int = 1
    ) -> None:
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        self.images, self.out, self.settings = images, out, settings
        self.index = Index.load(images)
        self.made_by = digest(made_by(self.index, target_folder, settings))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load(target_folder).to(self.device).eval()
        self.chunks = Chunks()
        self.units = {PREDICTION: "logit"} | {
            f"{name}.npy": units(settings.format, METHODS[name].units) for name in settings.methods
        }
        self.bytes_per_image: dict[str, int] = {}

    def __call__(self, task: Task) -> dict[str, Any]:
        """Make the shard of `task`, unless it is finished; its entry. WorkError when maps hold too many NaN or inf."""
        partition, number = task
        samples = self.index.entries(partition)[number].samples
        found = finished_entry(ReleaseEntry, self.out, task, self.made_by, samples)
        if found is not None:
            return found.model_dump(mode="json")
        nonfinite: Counter[str] = Counter()
        fields: dict[str, FieldSchema] = {}
        shard = write_shard(shard_path(self.out, partition, number), self._explained(task, nonfinite, fields))
        entry = ReleaseEntry(
            made_by=self.made_by,
            shard=shard,
            fields=fields,
            nonfinite=dict(nonfinite),
            bytes_per_image=self.bytes_per_image,
        )
        entry.save(self.out, task)
        return entry.model_dump(mode="json")

    def _explained(
        self, task: Task, nonfinite: Counter[str], schema: dict[str, FieldSchema]
    ) -> Iterator[dict[str, Any]]:
        """The release of every image of one shard, a batch in memory at a time. Fills in the count of values that had
        to be replaced and the schema of a sample. WorkError after the last one where the count is too high."""
        samples = read_shard(self.images, self.index, *task, fields=("png",))
        where: dict[str, list[str]] = {}
        size = window(self.settings.batch_size, self.index.fields["png"].shape, EXPLAINED_VALUES)
        for start in range(0, len(samples), size):
            batch = samples[start : start + size]
            keys = [sample["__key__"] for sample in batch]
            fields = {}
            for name, values in self._computed(np.stack([sample["png"] for sample in batch])).items():
                bad_B = (~np.isfinite(values)).reshape(len(keys), -1).sum(axis=1)
                if bad_B.any():
                    nonfinite[name] += int(bad_B.sum())
                    where.setdefault(name, []).extend(key for key, bad in zip(keys, bad_B, strict=True) if bad)
                    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
                fields[f"{name}.npy"] = self._formatted(name, values)
            for row, key in enumerate(keys):
                sample = {"__key__": key} | {name: values[row] for name, values in fields.items()}
                if not schema:
                    schema.update(schema_of(sample, self.units))
                yield sample
        self._check_finite(task, nonfinite, where)

    def _computed(self, image_BHWC: np.ndarray) -> dict[str, np.ndarray]:
        """The prediction (B, K) and the maps (B, M, h, w) of a batch, float32."""
        image_BCHW = torch.from_numpy(image_BHWC).permute(0, 3, 1, 2).to(self.device).float().div(255).contiguous()
        methods = [METHODS[name] for name in self.settings.methods]
        logit_BK, maps = explain_all(methods, self.model, image_BCHW, self.settings.classes, self.chunks)
        return {name: values.cpu().numpy() for name, values in ({"prediction": logit_BK} | maps).items()}

    def _formatted(self, name: str, values: np.ndarray) -> np.ndarray:
        """Maps in the release format; the prediction as it is."""
        if name == "prediction":
            return values
        colours = self.index.fields["png"].shape[2] if METHODS[name].shape.startswith("C,") else 1
        self.bytes_per_image[name] = bytes_per_image(self.settings.format, values.shape[1:], colours)
        return release(self.settings.format, values, colours)

    def _check_finite(self, task: Task, nonfinite: Counter[str], where: dict[str, list[str]]) -> None:
        predictions = nonfinite["prediction"]
        if not predictions and nonfinite.total() <= self.settings.max_nonfinite:
            return
        named = "; ".join(
            f"{name}: {count} in {', '.join(where[name][:NAMED])}{' ...' if len(where[name]) > NAMED else ''}"
            for name, count in nonfinite.items()
            if count
        )
        if predictions:
            raise WorkError(f"The target's predictions are not finite, so it cannot be audited ({task}): {named}.")
        raise WorkError(
            f"Explanations hold {nonfinite.total()} NaN or infinite values in {task[0]} shard {task[1]} ({named}); "
            f"max_nonfinite allows {self.settings.max_nonfinite} in the whole set. Leave that method out, or raise it."
        )


def precompute(
    images: Path,
    target_folder: Path,
    out: Path,
    settings: ReleaseSettings,
    *,
    load: Load,
    run_tasks: RunTasks,
    progress: Progress = silent,
    threads: int = 1,
    partitions: Sequence[str] = PARTITIONS,
) -> Index:
    """Make the release set in `out` for the `partitions` of the image set `images`; only what is not there yet.

    InputError: a method that cannot explain this target, an image set without those partitions, or an `out` that holds
    other releases. WorkError: maps with NaN or infinite values. `progress` counts images, a shard at
    a time.
    """
    index = Index.load(images)
    tasks = all_tasks(index, partitions)
    source = made_by(index, target_folder, settings)
    kept = _finished_set(out, source, partitions)
    if kept is not None:
        return kept
    _check_methods(load(target_folder), index, settings)
    make_private(out)
    sizes = {task: _samples(index, task) for task in tasks}
    there = finished_entries(ReleaseEntry, out, sizes, digest(source))
    open_tasks = [task for task in tasks if task not in there]
    if open_tasks:
        factory = functools.partial(Explainer, target_folder, images, out, settings, load, threads)
        before = sum(sizes[task] for task in there)
        # Shards that an earlier run finished count as done: the bar shows the whole set.
        run_tasks(factory, open_tasks, progress=counted(progress, [sizes[task] for task in open_tasks], before))
    return finish(images, target_folder, out, settings, partitions)


def finish(
    images: Path, target_folder: Path, out: Path, settings: ReleaseSettings, partitions: Sequence[str] = PARTITIONS
) -> Index:
    """Gather the entries of all shards into index.json, then remove them. WorkError when a shard is not finished."""
    index = Index.load(images)
    tasks = all_tasks(index, partitions)
    source = made_by(index, target_folder, settings)
    found: dict[Task, ReleaseEntry] = {}
    for task in tasks:
        entry = finished_entry(ReleaseEntry, out, task, digest(source), _samples(index, task), trust=True)
        if entry is None:
            raise WorkError(f"The release shard {shard_path(out, *task)} is not finished; run the step again.")
        found[task] = entry
    schemas = {digest({name: schema.model_dump() for name, schema in entry.fields.items()}) for entry in found.values()}
    if len(schemas) > 1:
        raise WorkError(f"The shards in {out} differ in their fields; remove the folder and run the step again.")
    nonfinite = sum((Counter(entry.nonfinite) for entry in found.values()), Counter())
    if nonfinite.total() > settings.max_nonfinite:
        raise WorkError(
            f"Explanations hold {nonfinite.total()} NaN or infinite values ({dict(nonfinite)}); max_nonfinite allows "
            f"{settings.max_nonfinite} in the whole set. Leave that method out, or raise it."
        )
    releases = Index(
        kind="releases",
        made_by={
            **source,
            **_program(),
            "nonfinite": dict(nonfinite),
            "bytes_per_image": found[tasks[0]].bytes_per_image,
        },
        label_names=(),
        synthetic=index.synthetic,
        fields=found[tasks[0]].fields,
        partitions={
            partition: tuple(found[task].shard for task in tasks if task[0] == partition) for partition in partitions
        },
    )
    releases.save(out)
    remove_entries(out, tasks)
    return releases


def made_by(index: Index, target_folder: Path, settings: ReleaseSettings) -> dict[str, Any]:
    """What decides every byte of a release set, for its index: images, target, methods, classes explained, format."""
    target = {
        path.name: sha256_of(path.read_bytes()) for path in sorted(target_folder.glob("*")) if path.name in TARGET
    }
    if len(target) < len(TARGET):
        raise InputError(f"{target_folder} holds no trained network: {' and '.join(TARGET)} are expected in it.")
    form = settings.format
    return {
        "images": digest(index.model_dump(mode="json")),
        "target": digest(target),
        "methods": list(settings.methods),
        "classes": settings.classes,
        "format": {name: getattr(form, name) for name in ("name", *FORMATS[form.name].parameters)},
        "parameters": {name: dict(METHODS[name].parameters) for name in settings.methods if METHODS[name].parameters},
    }


def _program() -> dict[str, str]:
    return {"program": f"xinv {xinv.__version__}", "torch": torch.__version__, "captum": version("captum")}


def all_tasks(index: Index, partitions: Sequence[str] = PARTITIONS) -> list[Task]:
    """One task a shard of the images of `partitions`. InputError when the image set has none of those."""
    for partition in partitions:
        if not index.partitions.get(partition):
            raise InputError(
                f"The image set has no images in its partition '{partition}'; it has {', '.join(index.partitions)}. "
                "Build it with an attack, an attack_validation and a victim part."
            )
    return [(partition, number) for partition in partitions for number in range(len(index.partitions[partition]))]


def _samples(index: Index, task: Task) -> int:
    return index.partitions[task[0]][task[1]].samples


def check_classes(settings: ReleaseSettings, labels: int) -> None:
    """InputError where more classes are to be explained than there are."""
    if settings.classes != "all" and settings.classes > labels:
        raise InputError(
            f"release.classes is {settings.classes}, but there are {labels} labels; ask for as many, or for all."
        )


def _check_methods(model: nn.Module, index: Index, settings: ReleaseSettings) -> None:
    height, width, channels = index.fields["png"].shape
    check_classes(settings, len(index.label_names))
    for name in settings.methods:
        METHODS[name].check(model.eval(), (channels, height, width))


def _finished_set(out: Path, source: dict[str, Any], partitions: Sequence[str]) -> Index | None:
    if not (out / INDEX_NAME).exists():
        return None
    found = Index.load(out)
    made = {key: value for key, value in found.made_by.items() if key in source}
    if found.kind != "releases" or made != source:
        raise InputError(f"{out} holds another set, made from {made or found.kind}; name another folder, or remove it.")
    if set(found.partitions) != set(partitions):
        raise InputError(
            f"{out} holds releases of {', '.join(found.partitions)}, and those of {', '.join(partitions)} were asked "
            "for; name another folder, or remove it."
        )
    for partition, entries in found.partitions.items():
        # A kill may fall between the index and the removal of the entries.
        remove_entries(out, [(partition, number) for number in range(len(entries))])
        for number, entry in enumerate(entries):
            path = shard_path(out, partition, number)
            if not path.exists() or path.stat().st_size != entry.bytes:
                raise InputError(f"{path} is missing or cut; remove {out} and run the step again.")
    return found
