"""What explanations cost: all classes at once against captum class by class, and precompute against its bare passes.

    python tests/bench/explanations.py [--repeats 7] [--threads 1] [--device cpu]     # prints one JSON object

Both sides of a ratio run in turn in this process, on the same images and weights; of each side the fastest run counts,
because other programs can only make a run slower. `spread` is the slowest run over the fastest, of both sides.

- all_classes: gradients, and Grad-CAM (Sigma-CAM), of every class. Loop: captum's Saliency and LayerGradCam called
  once a class. Batched: what `xinv.release.passes` does, with the chunks that it finds; `one_chunk` without a bound.
  `difference`: the largest, over the largest magnitude of the loop's maps.
- precompute: `Explainer` on image shards (reading, explaining, checking, formatting, writing tars) against the forward
  and backward passes that its maps need, on images that are in memory already. Gradient and Grad-CAM need one forward
  and one backward pass together; LRP two forward passes and one backward pass more.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xinv.data.fields import schema_of
from xinv.data.index import Index, shard_path
from xinv.data.shards import write_shard
from xinv.nets.classifier import Classifier, ClassifierSettings, build_classifier
from xinv.provenance import machine, versions
from xinv.release.methods import METHODS
from xinv.release.passes import Chunks, Pass
from xinv.release.precompute import Explainer, ReleaseSettings
from xinv.train.weights import ClassifierSpec, load_classifier, save_spec, save_weights

SIZE = 32
CLASSES = 10
SHARD = 250


def in_turn(sides: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each run of each side, after one run of each that does not count."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            begun = time.perf_counter()
            side()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                found[name].append(1000 * (time.perf_counter() - begun))
    return found


def summary(found: dict[str, list[float]]) -> dict[str, Any]:
    fastest = {f"{name}_ms": round(min(runs), 2) for name, runs in found.items()}
    return {**fastest, "spread": round(max(max(runs) / min(runs) for runs in found.values()), 2)}


def all_classes(network: str, width: int, batch: int, repeats: int, device: torch.device) -> dict[str, Any]:
    from captum.attr import LayerGradCam, Saliency

    torch.manual_seed(0)
    settings = ClassifierSettings(network=network, width=width)
    model = build_classifier(settings, 1, SIZE, CLASSES).to(device).eval()
    image_BCHW = torch.rand(batch, 1, SIZE, SIZE, device=device)
    saliency, cam = Saliency(model), LayerGradCam(model, model.cam_layer)
    bounded, free = Chunks(), Chunks(1 << 62)

    def leaf() -> Tensor:
        return image_BCHW.clone().requires_grad_()

    def gradients_loop() -> Tensor:
        return torch.stack([saliency.attribute(leaf(), target=k, abs=False) for k in range(CLASSES)])

    def gradients(chunks: Chunks) -> Tensor:
        return Pass(model, leaf(), "all", chunks=chunks).image_gradient()

    def cams_loop() -> Tensor:
        return torch.cat(
            [cam.attribute(leaf(), target=k, relu_attributions=True).detach() for k in range(CLASSES)], dim=1
        )

    def cams(chunks: Chunks) -> Tensor:
        return METHODS["sigma_cam"].attribute(Pass(model, leaf(), 1, chunks=chunks))[0]

    result: dict[str, Any] = {"network": network, "width": width, "batch": batch, "classes": CLASSES, "size": SIZE}
    for name, loop, batched in (("gradient", gradients_loop, gradients), ("sigma_cam", cams_loop, cams)):
        expected = loop()
        difference = float((batched(bounded) - expected).abs().max() / expected.abs().max())
        sides = {
            "captum_loop": loop,
            "batched": lambda batched=batched: batched(bounded),
            "one_chunk": lambda batched=batched: batched(free),
        }
        found = summary(in_turn(sides, repeats, device))
        ratio = round(found["captum_loop_ms"] / found["batched_ms"], 2)
        result[name] = {"ratio": ratio, "difference": difference, **found}
    return result


def make_images(folder: Path, shards: int) -> None:
    """Image shards of smooth pictures, so that their PNGs are as large as those of photographs of that size."""
    generator = np.random.default_rng(0)
    partitions, sample = {}, {}
    for partition, count in (("attack", shards), ("attack_validation", 1), ("victim", 1)):
        entries = []
        for number in range(count):
            samples = []
            for place in range(SHARD):
                coarse = generator.integers(0, 256, (8, 8, 1)).repeat(4, axis=0).repeat(4, axis=1)
                key = f"{partition.replace('_', '-')}-{number}-{place}"
                sample = {
                    "__key__": key,
                    "png": (coarse * 0.9 + generator.integers(0, 25, (SIZE, SIZE, 1))).astype(np.uint8),
                    "json": {"label": place % CLASSES, "identity": key, "attributes": {}},
                }
                samples.append(sample)
            entries.append(write_shard(shard_path(folder, partition, number), samples))
        partitions[partition] = tuple(entries)
    names = tuple(str(label) for label in range(CLASSES))
    Index(
        kind="images", made_by={}, label_names=names, synthetic=True, fields=schema_of(sample), partitions=partitions
    ).save(folder)


def bare(model: nn.Module, batches: list[Tensor], lrp: bool) -> None:
    """The passes that gradient and Grad-CAM, and one LRP, need: nothing else."""
    for image_BCHW in batches:
        leaf_BCHW = image_BCHW.requires_grad_()
        logit_BK = model(leaf_BCHW)
        torch.autograd.grad(logit_BK.amax(dim=1).sum(), leaf_BCHW)
        if lrp:
            with torch.no_grad():
                model(image_BCHW)
            torch.autograd.grad(model(leaf_BCHW).amax(dim=1).sum(), leaf_BCHW)


def precomputing(
    network: str, width: int, methods: tuple[str, ...], shards: int, repeats: int, threads: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_images(root / "images", shards)
        torch.manual_seed(0)
        spec = ClassifierSpec(
            settings=ClassifierSettings(network=network, width=width), channels=1, size=SIZE, classes=CLASSES
        )
        (root / "target").mkdir()
        save_spec(root / "target", spec)
        save_weights(root / "target" / "weights.safetensors", dict(spec.build().state_dict()))
        settings = ReleaseSettings(methods=methods)
        explainer = Explainer(root / "target", root / "images", root / "out", settings, load_classifier, threads)
        model: Classifier = explainer.model
        device = explainer.device
        whole = torch.rand(shards * SHARD, 1, SIZE, SIZE, device=device)
        # The batches of a shard, as Explainer cuts them.
        batches = [part for shard in whole.split(SHARD) for part in shard.split(settings.batch_size)]

        def precompute() -> None:
            for number in range(shards):
                for path in (root / "out" / "attack").glob(f"{number:06d}.*"):
                    path.unlink()
                explainer(("attack", number))

        sides = {"precompute": precompute, "bare": lambda: bare(model, batches, "lrp_zplus" in methods)}
        found = summary(in_turn(sides, repeats, device))
    ratio = round(found["precompute_ms"] / found["bare_ms"], 2)
    images = shards * SHARD
    per_image = round((found["precompute_ms"] - found["bare_ms"]) / images, 3)
    return {
        "network": network,
        "width": width,
        "methods": list(methods),
        "images": images,
        "ratio": ratio,
        "rest_ms_per_image": per_image,
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="for all_classes; precompute takes the GPU where there is one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    result = {
        "machine": machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": options.threads,
        "versions": versions(),
        "all_classes": [
            all_classes(network, width, batch, options.repeats, device)
            for network, width in (("cnn", 32), ("residual", 16), ("vit", 16))
            for batch in (4, 16, 64)
        ],
        "precompute": [
            precomputing(network, width, methods, shards, options.repeats, options.threads)
            for network, width, shards in (("cnn", 32, 2), ("gnime_cnn", 32, 1))
            for methods in (("gradient", "grad_cam"), ("gradient", "grad_cam", "lrp_zplus"))
        ],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
