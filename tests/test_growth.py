"""Widths that follow the level's own size, and networks that grow with their images."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xinv.attacks import InverterTraining, train_inverter
from xinv.config import validated
from xinv.data.loader import Reader
from xinv.errors import InputError
from xinv.nets.design import PRESETS, InverterDesign, ReleaseShape, preset
from xinv.nets.growth import grow
from xinv.nets.inverter import Inverter, build_inverter
from xinv.overrides import load_yaml
from xinv.stage import Finished
from xinv.train.batches import shrunk
from xinv.train.loop import TrainJob, train
from xinv.train.losses import LossSettings
from xinv.train.settings import TrainingSettings
from xinv.train.weights import InverterSpec, load_weights

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
RELEASE = ReleaseShape(4, ((1, 16, 16), (1, 4, 4)))
SMALL = preset("pyramid", width=16, width_limit=64, hidden=8, bottleneck=16, condition=8)


@pytest.mark.parametrize(
    ("size", "widths"),
    [
        (28, [112, 216, 440]),  # 48 x 64 / 28 = 109.7, in eights
        (64, [48, 96, 192, 384, 512]),
        (96, [32, 64, 128, 256, 512]),
        (1024, [8, 8, 16, 24, 48, 96, 192, 384, 512]),
    ],
)
def test_a_level_is_as_wide_as_its_own_size_says(size: int, widths: list[int]) -> None:
    design = PRESETS["pyramid"]
    assert design.channels(design.width, design.sizes(size)) == widths


def test_floor_and_limit_of_widths() -> None:
    design = preset("pyramid", width=64, width_floor=32, width_limit=128)
    assert design.channels(design.width, [512, 128, 64, 32, 16]) == [32, 32, 64, 128, 128]
    with pytest.raises(ValueError, match="width_floor=32 is more than width_limit=16"):
        InverterDesign(schedule="resolution", width_floor=32, width_limit=16)


@pytest.mark.parametrize("size", [28, 64, 100, 256, 1024])
@pytest.mark.parametrize("name", ["pyramid", "pooled", "patches"])
def test_what_stands_for_flatten_costs_little_at_any_size(name: str, size: int) -> None:
    """Weights that are not convolutions': of Flatten they grow with the map's area."""
    parts = []
    for maps in (((3, size, size),), ((3, 64, 64),)):
        with torch.device("meta"):
            network = build_inverter(PRESETS[name], ReleaseShape(2, maps), 3, size)
        parts.append(sum(parameter.numel() for parameter in network.bottleneck.parameters()))
        made = network(torch.empty(1, 2, device="meta"), [torch.empty(1, *shape, device="meta") for shape in maps])
        assert made.shape == (1, 3, size, size)
    assert parts[0] <= 1.1 * parts[1] or size < 64


def _networks(small: int, large: int, **changes: Any) -> tuple[Inverter, Inverter]:
    design = SMALL.model_copy(update=changes)
    torch.manual_seed(0)
    first = build_inverter(design, RELEASE, 1, small)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(0.125)
    return first, build_inverter(design, RELEASE, 1, large)


def test_levels_keep_their_weights_where_they_are_of_the_same_size() -> None:
    first, second = _networks(16, 64)
    before = {name: value.clone() for name, value in second.state_dict().items()}
    taken = grow(second, first.state_dict())
    after = second.state_dict()
    carried = {name for name, value in after.items() if not torch.equal(value, before[name])}
    # Of the encoder 16 px is level 0 of the first and level 2 of the second; of the decoder level 2 of both.
    assert "encoder.levels.2.convolution_2.weight" in carried
    assert "decoder.levels.2.blocks.0.convolution_2.weight" in carried
    assert not {name for name in carried if name.startswith(("encoder.levels.0.", "encoder.levels.1."))}
    assert not {name for name in carried if name.startswith(("decoder.levels.3.", "decoder.levels.4."))}
    assert "encoder.levels.2.convolution_1.weight" not in carried, "its input is another one now"
    assert "bottleneck.0.weight" in carried and "condition.0.weight" in carried
    assert taken == sum(after[name].numel() for name in carried)
    assert all((after[name] == 0.125).all() for name in carried)


def test_every_decoder_level_of_the_small_network_is_taken_over() -> None:
    first, second = _networks(16, 32)
    grow(second, first.state_dict())
    for name, value in second.decoder.levels[:2].state_dict().items():
        assert (value == 0.125).all(), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attack.inverters": ["film_unet"]}, "inverter film_unet cannot grow .* schedule=doubling"),
        ({"attack.baseline": "prediction_only"}, "inverter prediction_only cannot grow"),
        ({"attack.progressive.sizes": [12]}, "from 12 to 32 px, and 32 px halves to 16, 8, 4"),
        ({"attack.progressive.sizes": [16, 8]}, "from 16 to 8 px"),
        ({"attack.progressive.sizes": [64]}, "from 64 to 32 px"),
        ({"attack.progressive.sizes": []}, "progressive.sizes"),
    ],
)
def test_what_cannot_grow_is_refused(changes: dict[str, Any], words: str) -> None:
    tree = load_yaml(DEMO)
    tree["attack"] |= {
        "inverters": ["pyramid"],
        "baseline": "pyramid_prediction_only",
        "progressive": {"sizes": [8, 16], "epochs": 1},
    }
    assert validated(tree, "demo").attack.progressive is not None
    for path, value in changes.items():
        place = tree
        *sections, key = path.split(".")
        for section in sections:
            place = place[section]
        place[key] = value
    with pytest.raises(InputError, match=words):
        validated(tree, "demo")


def test_images_shrink_by_means_and_maps_stay(tiny_images: Path, tiny_releases: Path) -> None:
    (batch,) = Reader(tiny_images, "attack_validation", tiny_releases, ("gradient",)).once(100)
    small = shrunk(batch, 8)
    top_left = batch.image_BCHW[:, :, :2, :2].mean((2, 3))
    torch.testing.assert_close(small.image_BCHW[:, :, 0, 0], top_left)
    assert small.image_BCHW.shape[2:] == (8, 8) and small.maps is batch.maps
    assert shrunk(batch, 16) is batch


def test_maps_larger_than_the_image_are_read_by_means() -> None:
    network = build_inverter(SMALL, ReleaseShape(4, ((1, 16, 16),)), 1, 8)
    map_BMHW = torch.arange(256.0).view(1, 1, 16, 16)
    expected = map_BMHW.view(1, 1, 8, 2, 8, 2).mean((3, 5))
    torch.testing.assert_close(network._resized(map_BMHW), expected)


def _job(tiny_images: Path, tiny_releases: Path, folder: Path, size: int, **changes: Any) -> TrainJob:
    settings = TrainingSettings(epochs=1, batch_size=8, precision="fp32")
    spec = InverterSpec(design=SMALL, channels=1, size=size, classes=4, methods=("gradient",), maps=((1, 16, 16),))
    job = TrainJob(
        folder=folder,
        objective="invert",
        network=spec,
        images=tiny_images,
        releases=tiny_releases,
        partition="attack",
        settings=settings,
        seed=3,
    )
    return job.model_copy(update=changes)


def test_a_training_begins_where_that_of_smaller_images_ended(
    tiny_images: Path, tiny_releases: Path, tmp_path: Path
) -> None:
    train(_job(tiny_images, tiny_releases, tmp_path / "small", 8))
    still = TrainingSettings(epochs=1, batch_size=8, precision="fp32", learning_rate=1e-12)
    large = _job(tiny_images, tiny_releases, tmp_path / "large", 16, small=tmp_path / "small", settings=still)
    train(large)
    first, second = load_weights(tmp_path / "small"), load_weights(tmp_path / "large")
    name = "decoder.levels.1.blocks.0.convolution_2.weight"
    torch.testing.assert_close(second[name], first[name])
    assert "decoder.levels.2.blocks.0.convolution_2.weight" not in first


class _Recorded:
    """Stages that are written down instead of being made."""

    def __init__(self, tree: dict[str, Any], releases: Path) -> None:
        self.config = validated(tree, "demo")
        self.releases = releases
        self.jobs: list[TrainJob] = []
        self.identities: list[dict[str, Any]] = []

    def stage(self, kind: str, title: str, identity: dict[str, Any], work: Any) -> Finished:
        folder = Path(f"/nowhere/{title.rpartition(', ')[2].replace(' ', '-')}")
        work(folder, None)
        self.identities.append(identity)
        return Finished(id=folder.name, folder=folder, result={}, fresh=True)

    def train(self, job: TrainJob, series: str, progress: Any) -> dict[str, Any]:
        self.jobs.append(job)
        return {}


def test_an_audit_trains_size_after_size(tiny_releases: Path) -> None:
    tree = load_yaml(DEMO)
    tree["attack"] |= {"inverters": ["pyramid"], "baseline": "pyramid_prediction_only"}
    tree["attack"]["progressive"] = {"sizes": [8, 16], "epochs": 2}
    recorded = _Recorded(tree, tiny_releases)
    asked = InverterTraining(
        label="pyramid + gradient",
        design=PRESETS["pyramid"],
        training=TrainingSettings(epochs=7),
        loss=LossSettings(),
        methods=("gradient",),
    )
    releases: Any = SimpleNamespace(folder=tiny_releases, id="releases-1")
    images: Any = SimpleNamespace(folder=Path("/nowhere/images"), id="images-1")
    train_inverter(recorded, images, releases, asked)  # type: ignore[arg-type]
    assert [(job.network.size, job.settings.epochs) for job in recorded.jobs] == [(8, 2), (16, 2), (32, 7)]
    assert [job.small and job.small.name for job in recorded.jobs] == [None, "8-px", "16-px"]
    told = [(found.get("size"), found.get("small")) for found in recorded.identities]
    assert told == [(8, None), (16, "8-px"), (None, "16-px")]
