"""Release shards: the right values beside the right images, in every format, and what cannot be released."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import edit_index
from explaining import SETTINGS, Tasks, load, make, make_target
from test_formats import EVERY
from torch import Tensor

from xinv.data.index import Index
from xinv.data.loader import Reader
from xinv.data.shards import read_shard, verify
from xinv.errors import InputError, WorkError
from xinv.nets.classifier import Classifier
from xinv.release.formats import FormatSettings, decode, released_bytes
from xinv.release.formats import release as formatted
from xinv.release.methods import METHODS
from xinv.release.passes import Pass
from xinv.release.precompute import (
    LESSON_PARTITIONS,
    Explainer,
    ReleaseSettings,
    all_tasks,
    precompute,
)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return make_target(tmp_path / "target")


def test_every_release_is_its_own_images(tiny_images: Path, target: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(tiny_images, target, out)
    images, releases, model = Index.load(tiny_images), Index.load(out), load(target).eval()
    assert list(releases.partitions) == ["attack", "attack_validation", "victim"]
    for task in all_tasks(images):
        originals, found = read_shard(tiny_images, images, *task), read_shard(out, releases, *task)
        assert [sample["__key__"] for sample in found] == [sample["__key__"] for sample in originals]
        for original, release in zip(originals, found, strict=True):
            image_BCHW = torch.from_numpy(original["png"]).permute(2, 0, 1)[None].float() / 255
            logit_BK = model(image_BCHW).detach()
            torch.testing.assert_close(torch.from_numpy(release["prediction.npy"]), logit_BK[0])
            for name in SETTINGS.methods:
                map_BMHW = METHODS[name].explain(model, image_BCHW, logit_BK.argmax(1))
                torch.testing.assert_close(torch.from_numpy(release[f"{name}.npy"]), map_BMHW[0], rtol=1e-4, atol=1e-7)


def test_the_index_says_what_there_is_and_what_made_it(tiny_images: Path, target: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(tiny_images, target, out)
    index = Index.load(out)
    assert index.kind == "releases"
    assert index.synthetic
    assert {name: (schema.dtype, schema.shape) for name, schema in index.fields.items()} == {
        "prediction.npy": ("float32", (4,)),
        "gradient.npy": ("float32", (1, 16, 16)),
        "grad_cam.npy": ("float32", (1, 8, 8)),
    }
    assert all(schema.units for schema in index.fields.values())
    assert index.made_by["methods"] == ["gradient", "grad_cam"]
    assert index.made_by["classes"] == 1
    assert index.made_by["format"] == {"name": "raw"}
    assert index.made_by["bytes_per_image"] == {"gradient": 4 * 16 * 16, "grad_cam": 4 * 8 * 8}
    assert {"images", "target", "torch", "captum"} <= index.made_by.keys()
    assert index.made_by["nonfinite"] == {}
    assert verify(out) == []
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".tar", ".json"}
    assert not list(out.rglob("*.entry.json"))


def test_a_reader_joins_images_and_releases(tiny_images: Path, target: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(tiny_images, target, out)
    reader = Reader(tiny_images, "attack", out, ("grad_cam", "gradient"))
    batch = next(iter(reader.once(4)))
    logit_BK = load(target).eval()(batch.image_BCHW)
    assert batch.prediction_BK is not None
    torch.testing.assert_close(batch.prediction_BK, logit_BK.detach())
    assert batch.maps["grad_cam"].shape == (4, 1, 8, 8)


def test_the_targets_own_data_is_not_released(tiny_images: Path, target: Path, tmp_path: Path) -> None:
    tasks = make(tiny_images, target, tmp_path / "out")
    assert {partition for partition, _ in tasks.ran} == {"attack", "attack_validation", "victim"}


def test_lessons_hold_no_victims(tiny_images: Path, target: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tasks = make(tiny_images, target, out, partitions=LESSON_PARTITIONS)
    assert {partition for partition, _ in tasks.ran} == {"attack", "attack_validation"}
    assert set(Index.load(out).partitions) == {"attack", "attack_validation"} and not (out / "victim").exists()
    with pytest.raises(InputError, match="no partition 'victim'"):
        Reader(tiny_images, "victim", out, purpose="score")
    assert make(tiny_images, target, out, partitions=LESSON_PARTITIONS).ran == []
    with pytest.raises(InputError, match=r"holds releases of attack, attack_validation, and those of .*victim were"):
        make(tiny_images, target, out)


def test_the_batch_size_is_no_part_of_the_result(tiny_images: Path, target: Path, tmp_path: Path) -> None:
    maps, methods = [], tuple(name for name in METHODS if name != "attention_rollout")
    for size in (1, 64):
        out = tmp_path / f"out{size}"
        explainer = Explainer(target, tiny_images, out, ReleaseSettings(methods=methods, batch_size=size), load)
        maps.append(list(explainer._explained(("victim", 0), Counter(), {})))
    for one, other in zip(*maps, strict=True):
        for name in methods:
            np.testing.assert_allclose(one[f"{name}.npy"], other[f"{name}.npy"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("form", EVERY[1:], ids=lambda form: f"{form.name}{form.bits}")
def test_formats_change_the_maps_and_nothing_else(
    tiny_images: Path, target: Path, tmp_path: Path, form: FormatSettings
) -> None:
    plain, out = tmp_path / "plain", tmp_path / "out"
    make(tiny_images, target, plain)
    make(tiny_images, target, out, SETTINGS.model_copy(update={"format": form}))
    index, shard = Index.load(out), ("attack", 1)
    for before, after in zip(read_shard(plain, Index.load(plain), *shard), read_shard(out, index, *shard), strict=True):
        assert before["__key__"] == after["__key__"]
        assert np.array_equal(before["prediction.npy"], after["prediction.npy"])
        for name in ("gradient.npy", "grad_cam.npy"):
            expected = formatted(form, before[name][None])[0]
            assert after[name].dtype == expected.dtype
            np.testing.assert_array_equal(after[name], expected)
            assert index.fields[name].dtype == expected.dtype.name
            assert index.fields[name].units != Index.load(plain).fields[name].units
    # What a reader makes of them is what the format says an attacker sees.
    batch = next(iter(Reader(tiny_images, "attack", out, ("gradient", "grad_cam")).once(23)))
    samples = [sample for number in range(5) for sample in read_shard(out, index, "attack", number)]
    for name, map_BMHW in batch.maps.items():
        assert map_BMHW.dtype == torch.float32
        np.testing.assert_array_equal(map_BMHW.numpy(), decode(np.stack([sample[f"{name}.npy"] for sample in samples])))
    assert verify(out) == []
    with pytest.raises(InputError, match="holds another set"):
        make(tiny_images, target, out)


def test_smaller_formats_make_smaller_shards_and_fewer_bytes(tiny_images: Path, target: Path, tmp_path: Path) -> None:
    sizes, counted = {}, {}
    for name in ("raw", "uint8"):
        settings = ReleaseSettings(methods=("gradient", "grad_cam"), format=FormatSettings(name=name))
        make(tiny_images, target, tmp_path / name, settings)
        index = Index.load(tmp_path / name)
        sizes[name] = sum(entry.bytes for entry in index.entries("attack"))
        counted[name] = [released_bytes(index, methods) for methods in ((), ("gradient",), ("gradient", "grad_cam"))]
    assert sizes["uint8"] < sizes["raw"] - 23 * 3 * 256  # three bytes a pixel of each of 23 gradients, at least
    assert counted == {"raw": [16, 16 + 1024, 16 + 1024 + 256], "uint8": [16, 16 + 256, 16 + 256 + 64]}


@pytest.mark.parametrize(("classes", "channels"), [(2, 2), ("all", 4)])
def test_several_classes_are_released_together(
    tiny_images: Path, target: Path, tmp_path: Path, classes: Any, channels: int
) -> None:
    out, methods = tmp_path / "out", ("gradient", "grad_cam", "sigma_cam", "lrp_zplus")
    make(tiny_images, target, out, ReleaseSettings(methods=methods, classes=classes))
    index, model = Index.load(out), load(target).eval()
    shapes = {name: index.fields[f"{name}.npy"].shape for name in methods}
    assert shapes == {
        "gradient": (channels, 16, 16), "grad_cam": (channels, 8, 8), "sigma_cam": (4, 8, 8),
        "lrp_zplus": (channels, 16, 16),
    }  # fmt: skip
    original = read_shard(tiny_images, Index.load(tiny_images), "victim", 0)[0]
    released = read_shard(out, index, "victim", 0)[0]
    image_BCHW = torch.from_numpy(original["png"]).permute(2, 0, 1)[None].float() / 255
    order = range(4) if classes == "all" else np.argsort(-released["prediction.npy"])[:2].tolist()
    for name in ("gradient", "lrp_zplus"):
        alone = [METHODS[name].explain(model, image_BCHW, torch.tensor([k]))[0] for k in order]
        torch.testing.assert_close(torch.from_numpy(released[f"{name}.npy"]), torch.cat(alone), rtol=1e-4, atol=1e-7)


def test_more_classes_than_labels_are_refused_before_any_work(tiny_images: Path, target: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"release\.classes is 5, but there are 4 labels"):
        make(tiny_images, target, tmp_path / "out", ReleaseSettings(classes=5))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="greater than 0"):
        ReleaseSettings(classes=0)


def spoil(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Let the gradient of the first image of every batch hold `values`."""
    plain = METHODS["gradient"]

    def attribute(explained: Pass) -> Tensor:
        map_NBMHW = plain.attribute(explained)
        map_NBMHW[0, 0, 0, 0, : len(values)] = torch.tensor(values)
        return map_NBMHW

    monkeypatch.setitem(METHODS, "gradient", dataclasses.replace(plain, attribute=attribute))


def test_nan_in_a_map_fails_and_is_named(
    tiny_images: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, [float("nan"), float("inf"), 1.0])
    first = read_shard(tiny_images, Index.load(tiny_images), "attack", 0)
    with pytest.raises(
        WorkError, match=rf"4 NaN or infinite values in attack shard 0 \(gradient: 4 in {first[0]['__key__']}"
    ):
        make(tiny_images, target, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_tolerated_nan_becomes_0_and_is_counted(
    tiny_images: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, [float("nan"), float("-inf"), 1.0])
    out = tmp_path / "out"
    settings = ReleaseSettings(methods=("gradient",), batch_size=64, max_nonfinite=20)
    shards = len(all_tasks(Index.load(tiny_images)))
    assert 2 * shards <= 20
    make(tiny_images, target, out, settings)
    assert Index.load(out).made_by["nonfinite"] == {"gradient": 2 * shards}
    map_MHW = read_shard(out, Index.load(out), "victim", 0)[0]["gradient.npy"]
    assert map_MHW[0, 0, :3].tolist() == [0.0, 0.0, 1.0]


def test_the_limit_is_for_the_whole_set(
    tiny_images: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, [float("nan")])
    with pytest.raises(WorkError, match=r"10 NaN or infinite values .*allows 2"):
        make(tiny_images, target, tmp_path / "out", ReleaseSettings(methods=("gradient",), max_nonfinite=2))
    assert not (tmp_path / "out" / "index.json").exists()


def broken(folder: Path) -> Classifier:
    model = load(folder)
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    return model


def test_a_target_that_predicts_nan_cannot_be_audited(tiny_images: Path, target: Path, tmp_path: Path) -> None:
    settings = ReleaseSettings(methods=(), max_nonfinite=1000)
    with pytest.raises(WorkError, match="predictions are not finite"):
        precompute(tiny_images, target, tmp_path / "out", settings, load=broken, run_tasks=Tasks())


def test_predictions_alone(tiny_images: Path, target: Path, tmp_path: Path) -> None:
    make(tiny_images, target, tmp_path / "out", ReleaseSettings(methods=()))
    assert list(Index.load(tmp_path / "out").fields) == ["prediction.npy"]


def test_unsuitable_targets_are_refused_before_any_work(tiny_images: Path, tmp_path: Path) -> None:
    residual = make_target(tmp_path / "residual", network="residual")
    with pytest.raises(InputError, match=r"features\.1\.norm_1 \(GroupNorm\)"):
        make(tiny_images, residual, tmp_path / "out", ReleaseSettings(methods=("gradient", "lrp_zplus")))
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="holds no trained network"):
        make(tiny_images, tmp_path / "nothing", tmp_path / "out")


def test_images_without_victims_are_refused(own_images: Path, target: Path, tmp_path: Path) -> None:
    edit_index(own_images, lambda index: index["partitions"].pop("victim"))
    with pytest.raises(InputError, match="no images in its partition 'victim'"):
        make(own_images, target, tmp_path / "out")


@pytest.mark.parametrize("methods", [("gradientt",), ("gradient", "gradient")])
def test_unknown_and_repeated_methods_are_refused(methods: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"known are|named twice"):
        ReleaseSettings(methods=methods)
