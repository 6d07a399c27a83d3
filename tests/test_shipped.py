"""The configs that need the user's own pictures, on tiny trees of the published layout."""

import functools
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from trees import celeba_tables, picture

from xinv import config as configs
from xinv.data.build import build_images
from xinv.data.shards import people, verify
from xinv.nets.classifier import build_classifier
from xinv.nets.inverter import ReleaseShape, build_inverter
from xinv.release.methods import METHODS, explain_all

CONFIGS = Path(__file__).parent.parent / "configs"
PEOPLE = [person for person in range(1, 31) for _ in range(4)]
SPLIT = "data.split={target: 20, attack: 20, victim: 6, gallery: 12, disjoint: identity}"


def celeba(folder: Path) -> list[str]:
    """CelebA as published, 120 pictures of 30 people."""
    celeba_tables(folder, PEOPLE, [1 if number % 2 else -1 for number in range(len(PEOPLE))])
    for number in range(1, len(PEOPLE) + 1):
        picture(folder / "img_align_celeba" / f"{number:06d}.jpg", number, size=(178, 218))
    return [f"data.source.folder={folder}", "data.source.people=25"]


def celeba_hq(folder: Path, size: int = 256) -> list[str]:
    """CelebA-HQ as in CelebAMask-HQ: every CelebA picture above, in another order."""
    celeba_tables(folder / "celeba", PEOPLE, [1 if number % 2 else -1 for number in range(len(PEOPLE))])
    lines = ["idx    orig_idx    orig_file"]
    for number in range(len(PEOPLE)):
        original = (7 * number) % len(PEOPLE)
        lines.append(f"{number}  {original}  {original + 1:06d}.jpg")
        picture(folder / "CelebA-HQ-img" / f"{number}.jpg", number, size=(size, size))
    (folder / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(lines) + "\n")
    return [f"data.source.folder={folder}", f"data.source.celeba={folder / 'celeba'}"]


TREES = [
    ("celeba", celeba),
    ("celeba_hq_256", celeba_hq),
    ("celeba_hq_512", functools.partial(celeba_hq, size=512)),
    ("celeba_hq_1024", functools.partial(celeba_hq, size=1024)),
]


@pytest.mark.parametrize(("name", "tree"), TREES)
def test_a_config_for_the_users_pictures_reads_them_and_its_networks_fit(tmp_path, name, tree):
    config = configs.load(CONFIGS / f"{name}.yaml", [SPLIT, *tree(tmp_path / "data")])
    data = config.data
    index = build_images(data, config.seed, tmp_path / "images")
    assert verify(tmp_path / "images") == []
    assert index.label_names == ("not Smiling", "Smiling") and index.fields["png"].shape[2] == 3
    # Who: everybody the evaluator must tell apart is known, and no attacker's image shows a victim.
    victims = set(people(tmp_path / "images", ("victim",)))
    assert victims <= set(people(tmp_path / "images", ("gallery",)))
    assert not victims & set(people(tmp_path / "images", ("attack", "target")))
    target = build_classifier(config.target.network, data.channels, data.size, 2).eval()
    methods = [METHODS[method] for method in config.release.methods]
    for method in methods:
        method.check(target, (data.channels, data.size, data.size))
    _, maps = explain_all(methods, target, torch.rand(1, data.channels, data.size, data.size), config.release.classes)
    shapes = [(released.shape[1], released.shape[2], released.shape[3]) for released in maps.values()]
    with FakeTensorMode():  # shapes without numbers: the Flatten branch alone has 50 M weights at 256 px
        for design in config.attack.inverters:
            for shape in shapes:
                release = ReleaseShape(2, (shape,))
                image = build_inverter(config.attack.design(design), release, data.channels, data.size)(
                    torch.empty(1, 2), [torch.empty(1, *shape)]
                )
                assert image.shape == (1, 3, data.size, data.size)


def test_the_london_set_is_read(tmp_path: Path) -> None:
    for expression in ("neutral", "smiling"):
        for person in range(1, 103):
            picture(tmp_path / expression / f"{person:03d}.jpg", person, size=(512, 512))
    config = configs.load(CONFIGS / "faces_512.yaml", [f"data.source.folder={tmp_path}"])
    index = build_images(config.data, config.seed, tmp_path / "images")
    assert index.label_names == ("neutral", "smiling") and index.fields["png"].shape == (512, 512, 3)
    assert sum(index.samples(partition) for partition in index.partitions) == 204
