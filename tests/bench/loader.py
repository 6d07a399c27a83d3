"""Reading on one core: against what a training step takes in, and against tar and the bare decoders.

    python tests/bench/loader.py [--rounds 5] [--sizes 32 256]

The set is made here: smooth pictures with noise, so that a PNG takes about as much of its pixels as a photograph's,
with two maps in float32 for each: a gradient of the image's size and a Grad-CAM of 8x8. All lies in the page cache, so
nothing waits, and CPU seconds are counted (of all threads and children): other programs disturb those little. Sides run
in turn; of each, the cheapest round counts.

- appetite: a training step of the design film_unet (forward, MSE, backward, Adam; bf16 where the CPU computes it) on
  tensors in memory, its CPU seconds divided by the cores: as fast as they could ever be together. Loader:
  `Reader.epoch` with nothing kept in memory, so that every image is read and decoded again, by a thread of the reader.
- tar: `tar xf SHARD -O > /dev/null` of the same files, plus PIL.Image and numpy.load of the same members, which lie in
  memory. Reader: first epoch (with SHA-256 of every shard) and later ones.
"""

import argparse
import io
import os
import resource
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from figures import Figure, report
from PIL import Image
from torch import nn

from xinv.data.fields import schema_of
from xinv.data.index import Index, shard_path
from xinv.data.loader import Reader
from xinv.data.shards import write_shard
from xinv.nets.design import PRESETS
from xinv.train.weights import InverterSpec

CLASSES = 10
METHODS = ("gradient", "grad_cam")
IMAGES = {32: 2048, 64: 1024, 128: 512, 256: 96, 512: 48, 1024: 16}
BATCH = {32: 128, 64: 64, 128: 16, 256: 4, 512: 2, 1024: 1}


def make_set(folder: Path, size: int, count: int, shard: int) -> None:
    """Images and releases, partition attack."""
    random = np.random.default_rng(size)
    entries: dict[str, list[object]] = {"images": [], "releases": []}
    schemas = {}
    for number in range(-(-count // shard)):
        samples: dict[str, list[dict[str, object]]] = {"images": [], "releases": []}
        for place in range(number * shard, min(count, (number + 1) * shard)):
            coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3)).astype(np.uint8))
            smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(float)
            image = np.clip(smooth + random.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)
            key = f"{place:08d}"
            facts = {"label": place % CLASSES, "identity": key, "attributes": {}}
            samples["images"].append({"__key__": key, "png": image, "json": facts})
            release = {
                "prediction.npy": random.normal(size=CLASSES).astype(np.float32),
                "gradient.npy": random.normal(size=(3, size, size)).astype(np.float32),
                "grad_cam.npy": random.random((1, 8, 8)).astype(np.float32),
            }
            samples["releases"].append({"__key__": key} | release)
        for kind, found in samples.items():
            entries[kind].append(write_shard(shard_path(folder / kind, "attack", number), found))
            schemas[kind] = schema_of(found[0])
    for kind, fields in schemas.items():
        names = tuple(f"class {label}" for label in range(CLASSES)) if kind == "images" else ()
        partitions = {"attack": tuple(entries[kind])}
        Index(kind=kind, made_by={}, label_names=names, synthetic=True, fields=fields, partitions=partitions).save(
            folder / kind
        )


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of `work`, in all threads of this process and in its children."""
    begun = _spent()
    work()
    return _spent() - begun


def _spent() -> float:
    uses = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(use.ru_utime + use.ru_stime for use in uses)


def read_all(reader: Reader, batch_size: int) -> None:
    for _ in reader.epoch(0, batch_size):
        pass


def training(size: int, batch: int) -> Callable[[], None]:
    """A step on `batch` images of `size`, as a bare loop takes it."""
    maps = ((3, size, size), (1, 8, 8))
    torch.manual_seed(0)
    network = InverterSpec(
        design=PRESETS["film_unet"], channels=3, size=size, classes=CLASSES, methods=METHODS, maps=maps
    ).build()
    optimizer = torch.optim.Adam(network.parameters())
    image_BCHW, logit_BK = torch.rand(batch, 3, size, size), torch.randn(batch, CLASSES)
    released = [torch.randn(batch, *shape) for shape in maps]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.backends.mkldnn.is_available() and has_bf16()):
            output = network(logit_BK, released)
        nn.functional.mse_loss(output.float(), image_BCHW).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported())


def bare(folder: Path) -> tuple[Callable[[], None], Callable[[], None], int]:
    """(tar over all shards, PIL and numpy over their members, bytes of all PNGs)."""
    shards = sorted(folder.rglob("*.tar"))
    pictures, maps = [], []
    for path in shards:
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                if member.name.endswith((".png", ".npy")):
                    (pictures if member.name.endswith(".png") else maps).append(content.read())

    def unpack() -> None:
        for path in shards:
            subprocess.run(["tar", "xf", path, "-O"], stdout=subprocess.DEVNULL, check=True)

    def decode() -> None:
        for content in pictures:
            np.asarray(Image.open(io.BytesIO(content)))
        for content in maps:
            np.load(io.BytesIO(content))

    return unpack, decode, sum(map(len, pictures))


def measured(size: int, rounds: int) -> list[Figure]:
    count, batch = IMAGES[size], BATCH[size]
    with tempfile.TemporaryDirectory(prefix="xinv-bench-") as scratch:
        folder = Path(scratch)
        make_set(folder, size, count, max(8, count // 8))

        def reader() -> Reader:
            return Reader(
                folder / "images", "attack", folder / "releases", METHODS, memory_bytes=1 << 20, as_stored=True
            )

        step, (unpack, decode, packed), warm = training(size, batch), bare(folder), reader()
        step()
        read_all(warm, batch)
        times: dict[str, list[float]] = {name: [] for name in ("step", "first", "later", "tar", "decode")}
        for _ in range(rounds):
            times["step"].append(seconds(step))
            times["tar"].append(seconds(unpack))
            times["first"].append(seconds(lambda: read_all(reader(), batch)))
            times["decode"].append(seconds(decode))
            times["later"].append(seconds(lambda: read_all(warm, batch)))
    best = {name: min(found) for name, found in times.items()}
    eaten, given = batch * (os.cpu_count() or 1) / best["step"], count / best["later"]
    floor = best["tar"] + best["decode"]
    sides = f"tar {1e3 * best['tar'] / count:.2f} + decode {1e3 * best['decode'] / count:.2f} ms an image"
    goal = {32: ">= 3", 256: ">= 1.5"}.get(size, "")
    share = 100 * packed / (count * 3 * size**2)
    spread = max(max(found) / min(found) for found in times.values())
    return [
        Figure(
            f"{size} px: loader on one core against a step's appetite",
            given / eaten,
            "x",
            goal,
            f"{given:,.0f} against {eaten:,.0f} images/s, film_unet, batches of {batch}",
        ),
        Figure(
            f"{size} px: first epoch against tar and bare decode",
            best["first"] / floor,
            "x",
            "<= 1.5",
            f"{1e3 * best['first'] / count:.2f} ms against {sides}; PNG {share:.0f} % of its pixels",
        ),
        Figure(
            f"{size} px: later epochs against the same",
            best["later"] / floor,
            "x",
            "<= 1.5",
            f"{1e3 * best['later'] / count:.2f} ms; slowest round over fastest: {spread:.1f}",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 256], choices=sorted(IMAGES))
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    found = [figure for size in options.sizes for figure in measured(size, options.rounds)]
    report("Reading shards", found)


if __name__ == "__main__":
    main()
