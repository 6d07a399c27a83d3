"""What the scorer is told: how to score, and which attacks to carry out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PARTITION = "victim"
ORIGINALS = "originals"


class ScoreSettings(BaseModel):
    """How the victims are scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resamples: int = Field(2000, ge=100, description="bootstrap resamples behind each interval")
    level: float = Field(0.95, gt=0, lt=1, description="confidence level of the intervals")
    pictures: int = Field(10, ge=1, le=64, description="victims shown in the report")
    batch_size: int = Field(125, ge=2, description="images reconstructed at once, at most; fewer where they are large")
    exposure: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="a person counts as exposed when an explanation removes more than this share of the squared error "
        "that the prediction alone leaves",
    )
    false_accept_rate: float = Field(
        1e-3, gt=0, le=0.1, description="strangers that verification lets pass, where people can be re-identified"
    )


class Attack(BaseModel):
    """One way to reconstruct, as the scorer carries it out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    kind: Literal["attack", "control", "originals"]
    inverter: str = Field("", description="name of the inverter's design, for the tables")
    folder: Path | None = Field(None, description="its trained network")
    methods: tuple[str, ...] = Field((), description="explanations it sees, beside the prediction")
    group: tuple[str, ...] = Field(
        (),
        description="explanations that its network learnt to do with any subset of, in the network's order; what "
        "`methods` lacks of them is withheld. Empty: the network always has all of `methods`",
    )
    lessons: Path | None = Field(None, description="release set that its maps come from; null: the target's own")
    control: Literal["", "mean_image", "other_image", "same_class_image", "nearest_neighbour"] = ""
    closed_form: bool = Field(False, description="its network was solved for: it has learned nothing from images")
    title: str = Field("", description="how tables call it; empty: by what it sees")
    baseline: str = Field("", description="id of the attack its leak is measured from; empty: the audit's baseline")
    seed: int = Field(0, description="which training of it: attacks of one id that differ by their seed are one row")

    def described(self) -> dict[str, Any]:
        """As part of a stage's identity: its folders by the names of their stages, wherever those lie."""
        names = {field: path.name if path else None for field, path in self._folders().items()}
        return {**self.model_dump(mode="json", exclude=set(names)), **names}

    def absolute(self) -> "Attack":
        """With absolute paths, for a worker elsewhere."""
        return self.model_copy(update={field: path.resolve() for field, path in self._folders().items() if path})

    def _folders(self) -> dict[str, Path | None]:
        return {"folder": self.folder, "lessons": self.lessons}

    @property
    def partial(self) -> bool:
        """Whether explanations that its network knows are withheld from it."""
        return self.group != self.methods and bool(self.group)

    @property
    def pictured(self) -> bool:
        """Whether its reconstructions are kept for the report: of partial releases only those of one explanation."""
        return not self.partial or len(self.methods) == 1


def with_controls(attacks: Sequence[Attack], controls: Sequence[str]) -> list[Attack]:
    """All attacks and the named controls of them, in the order of the report. A partial release has none of its own:
    its network's are those of the whole release."""
    found: list[Attack] = []
    if "mean_image" in controls:
        found.append(Attack(id="mean_image", kind="control", inverter="mean image", control="mean_image"))
    # A closed form would return the other image itself, which says nothing.
    fed = [one for one in attacks if one.methods and one.kind == "attack" and not one.closed_form and not one.partial]
    for control in ("other_image", "same_class_image"):
        if control in controls:
            found += [
                one.model_copy(update={"id": f"{control}:{one.id}", "kind": "control", "control": control})
                for one in fed
            ]
    if "nearest_neighbour" in controls:
        found += [_nearest(methods) for methods in dict.fromkeys(((), *(one.methods for one in fed)))]
    return [*attacks, *found]


def _nearest(methods: tuple[str, ...]) -> Attack:
    return Attack(
        id=":".join(["nearest_neighbour", *(["+".join(methods)] if methods else [])]),
        kind="control",
        inverter="nearest neighbour",
        control="nearest_neighbour",
        methods=methods,
        title="" if methods else "Nearest neighbour (Prediction only)",
    )
