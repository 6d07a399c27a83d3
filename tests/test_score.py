"""Scoring end to end on a handful of images and untrained networks; and that nothing else reads the victims."""

import ast
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIZE, write_set

import xinv
from xinv.data.attributes import Attribute
from xinv.data.index import Index
from xinv.data.loader import Reader
from xinv.data.shards import read_shard
from xinv.data.window import window
from xinv.errors import InputError
from xinv.leak.score import (
    ORIGINALS,
    SCORED_VALUES,
    Attack,
    Scorer,
    ScoreSettings,
    with_controls,
)
from xinv.leak.table import Tables, by_attack, save_samples
from xinv.nets.classifier import ClassifierSettings
from xinv.nets.inverter import PRESETS
from xinv.train.weights import (
    WEIGHTS,
    ClassifierSpec,
    InverterSpec,
    load_classifier,
    load_inverter,
    save_spec,
    save_weights,
)


@pytest.mark.parametrize(
    ("shape", "images"), [((1, 32, 32), 125), ((3, 256, 256), 85), ((3, 1024, 1024), 5), ((3, 4096, 4096), 1)]
)
def test_large_images_are_reconstructed_a_few_at_a_time(shape: tuple[int, int, int], images: int) -> None:
    assert window(125, shape, SCORED_VALUES) == images


SETTINGS = ScoreSettings(resamples=100, batch_size=4, pictures=3)


def saved(folder: Path, spec: ClassifierSpec | InverterSpec, seed: int) -> Path:
    torch.manual_seed(seed)
    folder.mkdir()
    save_spec(folder, spec)
    save_weights(folder / WEIGHTS, spec.build().state_dict())
    return folder


def classifier(folder: Path, network: str = "residual", seed: int = 0, identities: tuple[str, ...] = ()) -> Path:
    settings = ClassifierSettings(network=network, width=4)
    classes = len(identities) or 4
    spec = ClassifierSpec(settings=settings, channels=1, size=SIZE, classes=classes, identities=identities)
    return saved(folder, spec, seed)


def inverter(folder: Path, methods: tuple[str, ...], seed: int = 0) -> Path:
    design = PRESETS["flatten_unet" if methods else "prediction_only"]  # "flatten" untrained gives black images
    maps = tuple((1, SIZE, SIZE) for _ in methods)
    return saved(
        folder, InverterSpec(design=design, channels=1, size=SIZE, classes=4, methods=methods, maps=maps), seed
    )


def attacks(folder: Path) -> list[Attack]:
    return [
        Attack(id="prediction_only", kind="attack", folder=inverter(folder / "alone", ())),
        Attack(
            id="flatten:gradient",
            kind="attack",
            folder=inverter(folder / "explained", ("gradient",)),
            methods=("gradient",),
        ),
    ]


def audited(
    images: Path, releases: Path, evaluators: Path | dict[str, Path], wanted: list[Attack]
) -> tuple[dict[str, dict], dict]:
    scorer = Scorer(images, releases, evaluators, SETTINGS, 0, load_classifier, load_inverter)
    tasks = [Attack(id=ORIGINALS, kind="originals", methods=("gradient",)), *wanted]
    results = by_attack(tasks, [scorer(task) for task in tasks])
    return results, Tables(wanted, results, wanted[0].id, SETTINGS, 0, lambda methods: 16.0).all()


def test_one_evaluator_scores_as_ever(tiny_images: Path, tiny_releases: Path, tmp_path: Path) -> None:
    wanted = with_controls(attacks(tmp_path), ["mean_image", "other_image"])
    results, scores = audited(tiny_images, tiny_releases, classifier(tmp_path / "evaluator"), wanted)
    names = {"mse", "psnr", "ssim", "embedding_similarity", "attack_accuracy_top1"}
    assert all(set(row["metrics"]) == names and "agreement" not in row for row in scores["rows"])
    assert [one["name"] for one in scores["evaluators"]] == ["evaluator"] and "reidentification" not in scores
    reader = Reader(tiny_images, "victim", tiny_releases, ("gradient",), purpose="score")
    network = load_inverter(wanted[1].folder)
    errors = []
    for batch in reader.once(5):
        with torch.no_grad():
            found_BCHW = network(batch.prediction_BK, list(batch.maps.values())).clamp(0, 1)
        errors += (found_BCHW - batch.image_BCHW).square().flatten(1).mean(1).tolist()
    np.testing.assert_allclose(results["flatten:gradient"]["metrics"]["mse"], errors, rtol=1e-5)
    save_samples(tmp_path, wanted, results)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as samples:
        assert samples["mean_image/mse"].shape == (11,)


def with_other_maps(releases: Path, images: Path, folder: Path) -> Path:
    """`releases` with every gradient replaced by ones."""
    index = Index.load(releases)
    samples = {
        partition: [
            sample | {"gradient.npy": np.ones_like(sample["gradient.npy"])}
            for number in range(len(entries))
            for sample in read_shard(releases, index, partition, number)
        ]
        for partition, entries in index.partitions.items()
    }
    write_set(folder, "releases", samples, ())
    return folder


def errors(images: Path, found: dict[str, np.ndarray]) -> list[float]:
    """Squared error of a reconstruction (key -> image_CHW) of every victim."""
    return [
        float(np.square(found[key] - image_CHW.numpy()).mean())
        for batch in Reader(images, "victim", purpose="score").once(5)
        for key, image_CHW in zip(batch.key, batch.image_BCHW, strict=True)
    ]


def test_maps_may_come_from_another_network(tiny_images: Path, tiny_releases: Path, tmp_path: Path) -> None:
    lessons = with_other_maps(tiny_releases, tiny_images, tmp_path / "lessons")
    alone, explained = attacks(tmp_path)
    random = explained.model_copy(update={"id": "random_target:flatten:gradient", "kind": "control"})
    wanted = [alone, explained, random.model_copy(update={"lessons": lessons})]
    results, scores = audited(tiny_images, tiny_releases, classifier(tmp_path / "evaluator"), wanted)
    network = load_inverter(explained.folder)
    expected = {}
    for batch in Reader(tiny_images, "victim", tiny_releases, (), purpose="score").once(5):
        with torch.no_grad():
            found_BCHW = network(batch.prediction_BK, [torch.ones(len(batch.key), 1, SIZE, SIZE)]).clamp(0, 1)
        expected |= dict(zip(batch.key, found_BCHW.numpy(), strict=True))
    own = results["random_target:flatten:gradient"]["metrics"]["mse"]
    np.testing.assert_allclose(own, errors(tiny_images, expected), rtol=1e-5)
    assert (own != results["flatten:gradient"]["metrics"]["mse"]).any()
    assert scores["leaks"][-1]["baseline"] == "prediction_only"


def test_another_image_of_the_same_label(tiny_images: Path, tiny_releases: Path, tmp_path: Path) -> None:
    """11 victims of 4 labels in batches of 4: all partners lie in other batches, as labels take turns."""
    wanted = with_controls(attacks(tmp_path), ["same_class_image"])
    assert [one.id for one in wanted][2:] == ["same_class_image:flatten:gradient"]
    results, scores = audited(tiny_images, tiny_releases, classifier(tmp_path / "evaluator"), wanted)
    (whole,) = Reader(tiny_images, "victim", tiny_releases, ("gradient",), purpose="score").once(11)
    label_N = whole.label_B.tolist()
    assert min(label_N.count(label) for label in set(label_N)) > 1
    next_N = [
        next(place for place in [*range(own + 1, 11), *range(own)] if label_N[place] == label_N[own])
        for own in range(11)
    ]
    with torch.no_grad():
        found = load_inverter(wanted[1].folder)(whole.prediction_BK, [whole.maps["gradient"][next_N]]).clamp(0, 1)
    expected = dict(zip(whole.key, found.numpy(), strict=True))
    own = results["same_class_image:flatten:gradient"]["metrics"]["mse"]
    np.testing.assert_allclose(own, errors(tiny_images, expected), rtol=1e-5)
    assert scores["rows"][-1]["without_partner"] == 0 and "without_partner" not in scores["rows"][0]


def test_the_nearest_release_of_the_attackers_own_images(
    tiny_images: Path, tiny_releases: Path, tmp_path: Path
) -> None:
    wanted = with_controls(attacks(tmp_path), ["nearest_neighbour"])
    assert [one.id for one in wanted][2:] == ["nearest_neighbour", "nearest_neighbour:gradient"]
    results, scores = audited(tiny_images, tiny_releases, classifier(tmp_path / "evaluator"), wanted)
    (victim,) = Reader(tiny_images, "victim", tiny_releases, ("gradient",), purpose="score").once(11)
    (known,) = Reader(tiny_images, "attack", tiny_releases, ("gradient",)).once(23)
    logit_AK, map_AD = known.prediction_BK, known.maps["gradient"].flatten(1)
    by_logits = ((victim.prediction_BK[:, None] - logit_AK) / logit_AK.std(0, correction=0)).square().mean(2)
    spread = map_AD.std(correction=0)
    by_maps = ((victim.maps["gradient"].flatten(1)[:, None] - map_AD) / spread).square().mean(2)
    for name, distance_VA in (("", by_logits), (":gradient", by_logits + by_maps)):
        expected = dict(zip(victim.key, known.image_BCHW[distance_VA.argmin(1)].numpy(), strict=True))
        own = results[f"nearest_neighbour{name}"]["metrics"]["mse"]
        np.testing.assert_allclose(own, errors(tiny_images, expected), rtol=1e-5)
    assert [row["kind"] for row in scores["rows"]] == ["attack", "attack", "control", "control"]


def test_two_evaluators(tiny_images: Path, tiny_releases: Path, tmp_path: Path) -> None:
    folders = {"residual": classifier(tmp_path / "one"), "cnn": classifier(tmp_path / "two", "cnn", 1)}
    wanted = attacks(tmp_path)
    results, scores = audited(tiny_images, tiny_releases, folders, wanted)
    alone, _ = audited(tiny_images, tiny_releases, folders["cnn"], wanted)
    for attack in wanted:
        found, expected = results[attack.id]["metrics"], alone[attack.id]["metrics"]
        for name in ("embedding_similarity", "attack_accuracy_top1"):
            np.testing.assert_allclose(found[f"{name}:cnn"], expected[name], rtol=1e-6)
        both = found["attack_accuracy_top1"] * found["attack_accuracy_top1:cnn"]
        np.testing.assert_array_equal(results[attack.id]["agreement"]["all_right"], both)
    assert all(set(row["agreement"]) == {"all_right", "same_guess"} for row in scores["rows"])


@pytest.fixture(scope="module")
def people_images(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny images with identities that victims share with the gallery, six of them, as the set says it promises."""
    folder = tmp_path_factory.mktemp("people") / "images"
    index = Index.load(tiny_images)
    samples = {
        partition: [
            sample for number in range(len(entries)) for sample in read_shard(tiny_images, index, partition, number)
        ]
        for partition, entries in index.partitions.items()
    }
    for partition in ("victim", "gallery", "gallery_validation"):
        for number, sample in enumerate(samples[partition]):
            sample["json"]["identity"] = f"person {number % 6}"
    written = write_set(folder, "images", samples, index.label_names)
    written.model_copy(update={"made_by": {"disjoint": "identity"}}).save(folder)
    return folder


def test_people_are_searched_where_the_set_promises_them(
    people_images: Path, tiny_releases: Path, tmp_path: Path
) -> None:
    names = tuple(f"person {number}" for number in range(6))
    folders = {
        "residual": classifier(tmp_path / "one", identities=names),
        "cnn": classifier(tmp_path / "two", "cnn", 1),
    }
    wanted = with_controls(attacks(tmp_path), ["mean_image"])
    results, scores = audited(people_images, tiny_releases, folders, wanted)
    for row in scores["rows"]:
        assert {"reidentification_rank1", "reidentification_rank1:cnn"} <= set(row["metrics"])
        assert "reidentification_rank5" not in row["metrics"]  # five of six people
    assert scores["reidentification"]["identities"] == 6 and scores["reidentification"]["gallery_images"] == 17
    assert scores["reidentification"]["impostor_pairs"] == 11 * 5
    assert scores["evaluators"][0]["predicts"] == "identity" and scores["evaluators"][0]["chance"] == 1 / 6
    assert set(results["mean_image"]["agreement"]) == {"all_right"}
    # The mean image is the same probe for everybody: one person is found, the others never.
    found = results["mean_image"]["metrics"]["reidentification_rank1"]
    identity = np.array(results[ORIGINALS]["identity"])
    assert len(set(identity[found == 1])) == 1 and (found == (identity == identity[found == 1][0])).all()


def test_victims_outside_the_gallery_are_an_error(people_images: Path, tiny_releases: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(people_images, tmp_path / "images"))
    index = Index.load(folder)
    index.model_copy(update={"partitions": {**index.partitions, "gallery": index.partitions["gallery"][:1]}}).save(
        folder
    )
    scorer = Scorer(folder, tiny_releases, classifier(tmp_path / "one"), SETTINGS, 0, load_classifier, load_inverter)
    with pytest.raises(InputError, match="'person 5', show nobody of the gallery's 5 people"):
        scorer(attacks(tmp_path)[0])


def test_what_the_target_never_predicts_is_read_in_reconstructions(
    tiny_images: Path, tiny_releases: Path, tmp_path: Path
) -> None:
    """By an evaluator of attributes as the principal one, beside one of labels."""
    number = Attribute(name="number", values=tuple(range(58, 62)), counts=(1, 2, 1, 1))  # of four victims of eleven
    settings = ClassifierSettings(network="cnn", width=4)
    spec = ClassifierSpec(settings=settings, channels=1, size=SIZE, classes=4, attributes=(number,))
    folders = {"reader": saved(tmp_path / "reader", spec, 0), "cnn": classifier(tmp_path / "label", "cnn", 1)}
    wanted = with_controls(attacks(tmp_path), ["mean_image"])
    results, scores = audited(tiny_images, tiny_releases, folders, wanted)
    for row in scores["rows"]:
        assert {"attributes_recovered", "attribute:number", "embedding_similarity"} <= row["metrics"].keys()
        assert "attack_accuracy_top1:cnn" in row["metrics"] and "attack_accuracy_top1" not in row["metrics"]
        assert "agreement" not in row
    victims = results[ORIGINALS]["key"]
    assert sum(58 <= int(key) < 62 for key in victims) == 4
    reader = scores["evaluators"][0]
    assert reader["attributes"][0]["unseen"] == 7 and reader["chance"] == 1 / 11  # 59 is the commonest
    network = load_classifier(folders["reader"])
    mean = results["mean_image"]
    with torch.no_grad():
        guess = 58 + int(network(torch.from_numpy(mean["pictures"][:1] / 255).permute(0, 3, 1, 2).float()).argmax())
    assert mean["metrics"]["attribute:number"].tolist() == [float(int(key) == guess) for key in victims]


# --- who may read the victims ----------------------------------------------------------------------------------------


def nodes() -> list[tuple[str, ast.AST]]:
    """Every piece of code of the package, with its file."""
    root = Path(xinv.__file__).parent
    return [
        (str(path.relative_to(root)), node)
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
    ]


def test_nothing_but_scoring_opens_the_victims() -> None:
    """`Reader` refuses them without purpose="score"; this holds the package to saying so in one place."""
    sayers = {
        file
        for file, node in nodes()
        if (isinstance(node, ast.keyword) and node.arg == "purpose")
        or (isinstance(node, ast.Constant) and node.value == "purpose")
    }
    assert sayers == {"leak/score.py"}


def test_shards_are_read_past_the_reader_by_precomputation_and_the_data_room_alone() -> None:
    callers = {
        file
        for file, node in nodes()
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "read_shard"
    }
    assert {file for file in callers if not file.startswith("data/")} == {"release/precompute.py"}
