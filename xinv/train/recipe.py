"""An inverter that a search found, as a file: how it is built, how it is trained, and which data it was found for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xinv.errors import InputError
from xinv.mistakes import explain
from xinv.nets.design import InverterDesign, ReleaseShape
from xinv.overrides import apply, load_yaml
from xinv.train.losses import LossSettings
from xinv.train.settings import TrainingSettings

KEY = "inverter"
"""The key of a configuration that names recipe files: `xinv audit CONFIG inverter=runs/digits-search/best.yaml`."""


class Recipe(BaseModel):
    """All that a search has chosen for one inverter. It is trained so wherever an audit uses it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="how an audit calls it")
    design: InverterDesign = Field(description="how it is built")
    training: TrainingSettings = Field(description="how it is trained")
    loss: LossSettings = Field(default_factory=LossSettings, description="what it learns by")
    channels: int = Field(ge=1, description="colour channels of the images that it was found for")
    size: int = Field(ge=1, description="their height and width in pixels")
    classes: int = Field(ge=1, description="classes of the predictions that it was found for")
    release: tuple[str, ...] = Field(description="explanations that it was found for; none: predictions alone")
    maps: tuple[tuple[int, int, int], ...] = Field(description="channels, height and width of each one's map")

    def check_release(self, methods: tuple[str, ...], shape: ReleaseShape) -> None:
        """InputError where the release it was found for has another shape in this audit. (It may try others too.)"""
        if set(methods) != set(self.release):
            return
        found = dict(zip(self.release, self.maps, strict=True))
        now = dict(zip(methods, shape.maps, strict=True))
        if shape.classes != self.classes or now != found:
            raise InputError(
                f"the inverter {self.name} was found for {self.classes} classes and maps {_shapes(found)}, and this "
                f"audit releases {shape.classes} classes and maps {_shapes(now)}. Search again on this audit, or leave "
                "that inverter out."
            )


def _shapes(maps: Mapping[str, tuple[int, int, int]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in maps.items()) or "none"


def load_recipe(path: Path) -> Recipe:
    """The recipe in a file that a search wrote. InputError when it is missing or no recipe."""
    try:
        return Recipe.model_validate(load_yaml(path))
    except ValidationError as error:
        raise explain(error, Recipe, str(path)) from None


def with_recipes(tree: dict[str, Any], defaults: tuple[str, ...]) -> dict[str, Any]:
    """An audit's tree with the files that its key `inverter` names put under `attack.recipes` and `attack.inverters`.

    They come after the inverters that the tree has (`defaults` where it names none): what was found is shown beside
    what was known. So the resolved configuration holds the recipe itself and needs no file any more.

    Raises:
        InputError: a file is missing or no recipe; two recipes of one name.
    """
    if KEY not in tree:
        return tree
    result = apply(tree, ())
    named = result.pop(KEY)
    attack = result.get("attack") or {}
    if not isinstance(attack, dict):
        return result  # validation words it
    recipes, inverters = dict(attack.get("recipes") or {}), list(attack.get("inverters") or defaults)
    for path in named if isinstance(named, list) else [named]:
        if not isinstance(path, str):
            raise InputError(f"{KEY} names recipe files, such as runs/digits-search/best.yaml; got {path!r}.")
        recipe = load_recipe(Path(path).expanduser())
        if recipe.name in recipes:
            raise InputError(f"{KEY}: {path} holds a second recipe called {recipe.name!r}; change its name.")
        recipes[recipe.name] = recipe.model_dump(mode="json")
        inverters += [] if recipe.name in inverters else [recipe.name]
    result["attack"] = {**attack, "recipes": recipes, "inverters": inverters}
    return result
