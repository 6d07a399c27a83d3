"""What a search found, taken by an audit: inverter=FILE."""

from pathlib import Path
from typing import Any

import pytest
from audits import DEMO

from xinv import config as configs
from xinv.errors import InputError
from xinv.nets.design import PRESETS, ReleaseShape
from xinv.overrides import dump_yaml
from xinv.train.recipe import Recipe
from xinv.train.settings import TrainingSettings


def written(folder: Path, **changes: Any) -> Path:
    fields: dict[str, Any] = {
        "name": "found",
        "design": PRESETS["film_unet"],
        "training": TrainingSettings(epochs=3, learning_rate=2e-3),
        "channels": 1,
        "size": 32,
        "classes": 10,
        "release": ("grad_cam",),
        "maps": ((1, 8, 8),),
    }
    path = folder / "best.yaml"
    path.write_text(dump_yaml(Recipe(**{**fields, **changes}).model_dump(mode="json")))
    return path


def test_a_recipe_joins_the_inverters_with_its_own_training(tmp_path: Path) -> None:
    config = configs.load(DEMO, [f"inverter={written(tmp_path)}"])
    attack = config.attack
    assert attack.inverters == ("flatten_unet", "found")
    assert attack.design("found") == PRESETS["film_unet"] and attack.training_of("found").learning_rate == 2e-3
    assert attack.training_of("flatten_unet") == attack.training == configs.load(DEMO).attack.training
    (tmp_path / "best.yaml").unlink()
    (tmp_path / "resolved.yaml").write_text(configs.dump(config))
    assert configs.load(tmp_path / "resolved.yaml") == config, "the resolved configuration needs no file any more"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": 3}, ["found", "3 x 32 x 32", "1 x 32 x 32"]),
        ({"size": 64}, ["1 x 64 x 64"]),
        ({"release": ("occlusion",)}, ["occlusion", "does not attack"]),
        ({"name": "unet"}, ["recipes.unet", "name of its own"]),
    ],
)
def test_a_recipe_of_other_data_is_refused_before_any_work(
    changes: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        configs.load(DEMO, [f"inverter={written(tmp_path, **changes)}"])
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_release_of_another_shape_is_refused_and_another_release_is_not(tmp_path: Path) -> None:
    attack = configs.load(DEMO, [f"inverter={written(tmp_path)}"]).attack
    recipe = attack.recipes["found"]
    recipe.check_release(("grad_cam",), ReleaseShape(10, ((1, 8, 8),)))
    recipe.check_release(("gradient",), ReleaseShape(10, ((1, 32, 32),)))
    with pytest.raises(InputError, match=r"grad_cam 1x8x8.*grad_cam 1x4x4"):
        recipe.check_release(("grad_cam",), ReleaseShape(10, ((1, 4, 4),)))
    with pytest.raises(InputError, match="7 classes"):
        recipe.check_release(("grad_cam",), ReleaseShape(7, ((1, 8, 8),)))


@pytest.mark.parametrize(("value", "words"), [("nowhere.yaml", "nowhere.yaml is missing"), ("3", "names recipe files")])
def test_a_file_that_is_none_is_one_clear_error(value: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        configs.load(DEMO, [f"inverter={value}"])
    with pytest.raises(InputError, match=r"digits|data"):
        configs.load(DEMO, [f"inverter={DEMO}"])
