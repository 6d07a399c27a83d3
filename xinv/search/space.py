"""The space that a search walks: candidates, and the walk along its axes that makes them.

Source of the axes: `nets/design.py`. Every candidate can be built and trained; budgets are looked at before it is.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from xinv.errors import InputError
from xinv.files import digest
from xinv.nets.design import PRESETS, InverterDesign, ReleaseShape
from xinv.search.axes import DETAILS, LOSS, STRUCTURE, TRAINING, Chosen, Value, Walk
from xinv.search.choices import SpaceSettings
from xinv.search.cost import Cost, cost
from xinv.train.losses import LossSettings
from xinv.train.settings import TrainingSettings

Settings = TypeVar("Settings", bound=BaseModel)


class Candidate(BaseModel):
    """One inverter and how it is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    design: InverterDesign
    training: TrainingSettings
    loss: LossSettings


def walk(settings: SpaceSettings, maps: bool, size: int) -> Walk:
    """The walk along the axes of structure.

    Args:
        maps: whether the release has explanations.

    Raises:
        InputError: it leads nowhere: the values exclude each other.
    """
    found = Walk({axis.name: getattr(settings, axis.name) for axis in STRUCTURE}, maps)
    if not found.allowed({}):
        reads = "explanations" if maps else "predictions alone"
        raise InputError(
            f"The space is empty: no inverter of {reads} at {size} px can be made of its values, which exclude "
            "each other. Give more values to prediction, reading, encoder, fusion, blocks, upsampling, bottleneck "
            "or smallest."
        )
    return found


class SearchSpace:
    """The candidates for one release.

    Args:
        settings: what may be chosen.
        training, loss: what a candidate has where the settings do not say.
        release, channels, size: the shapes it reads and makes.

    Raises:
        InputError: no candidate is left: the values exclude each other, or a value is none that a design can have.
    """

    def __init__(
        self,
        settings: SpaceSettings,
        training: TrainingSettings,
        loss: LossSettings,
        release: ReleaseShape,
        channels: int,
        size: int,
    ) -> None:
        self.settings, self.training, self.loss = settings, training, loss
        self.release, self.channels, self.size = release, channels, size
        self._walk = walk(settings, bool(release.maps), size)

    def propose(self, trial: Any) -> Candidate:
        """The candidate that an object with optuna's `suggest_categorical` and `suggest_float` chooses."""
        settings = self.settings
        chosen: dict[str, Value] = {}
        for axis in STRUCTURE:
            allowed = self._walk.allowed(chosen)
            every = getattr(settings, axis.name)
            # Values of one parameter may not change from trial to trial, so what is left of an axis has its own name.
            name = axis.name if allowed == every else f"{axis.name}~{digest(allowed)[:4]}"
            chosen[axis.name] = _pick(trial, name, allowed)
        for axis in (*DETAILS, *TRAINING, *LOSS):
            if axis.name == "learning_rate":
                low, high = settings.learning_rate
                chosen[axis.name] = low if low == high else trial.suggest_float(axis.name, low, high, log=True)
            elif axis.applies(chosen):
                chosen[axis.name] = _pick(trial, axis.name, getattr(settings, axis.name))
        return self._candidate(chosen)

    def parameters(self, candidate: Candidate) -> dict[str, Any] | None:
        """The values with which `propose` makes this candidate; None where the space does not hold it."""
        named = _Named(self._chosen(candidate), lambda name, value: self._same(candidate.design, name, value))
        try:
            made = self.propose(named)
        except _NotHeldError:
            return None
        return named.taken if made == candidate else None

    def refusal(self, candidate: Candidate) -> str | None:
        """Why a candidate breaks a budget, with the arithmetic; None where it does not."""
        price, settings = self.price(candidate), self.settings
        for name, value, unit in (
            ("max_parameters", price.parameters, "parameters"),
            ("max_flops", price.flops, "FLOPs a step and image"),
            ("max_memory", price.memory_bytes, "bytes of memory"),
        ):
            limit = getattr(settings, name)
            if isinstance(limit, str):
                known = self._price_of(PRESETS[limit])
                limit = known.parameters if name == "max_parameters" else known.flops
            if limit is not None and value > limit:
                return f"it takes {value:,} {unit}, and space.{name} allows {limit:,}."
        return None

    def price(self, candidate: Candidate) -> Cost:
        """What one training step of a candidate takes."""
        training = candidate.training
        precision: Literal["fp32", "bf16"] = "bf16" if training.precision == "bf16" else "fp32"
        batch = training.micro_batch or training.batch_size
        return cost(candidate.design, self.release, self.channels, self.size, batch, precision)

    def _price_of(self, design: InverterDesign) -> Cost:
        return self.price(Candidate(design=design, training=self.training, loss=self.loss))

    def presets(self) -> list[tuple[str, Candidate]]:
        """The known designs that can read this release, by name, trained as the base says.

        After one that breaks a budget comes the same one as wide as the budget allows, where a width of the space is.
        """
        found = []
        for name, design in PRESETS.items():
            if design.reads_maps == bool(self.release.maps):
                candidate = Candidate(design=design, training=self.training, loss=self.loss)
                found.append((name, candidate))
                if self.refusal(candidate) is not None:
                    found += [(f"{name} of width {one.design.width}", one) for one in self._narrower(candidate)]
        return found

    def _narrower(self, candidate: Candidate) -> list[Candidate]:
        """The widest variant within the budgets, if any."""
        design = candidate.design
        if design.schedule != "inverse_size":
            for width in sorted((width for width in self.settings.width if width < design.width), reverse=True):
                one = candidate.model_copy(update={"design": design.model_copy(update={"width": width})})
                if self.refusal(one) is None:
                    return [one]
        return []

    # ----------------------------------------------------------------------------------------- designs and their values

    def _candidate(self, chosen: Chosen) -> Candidate:
        design: dict[str, Any] = {name: chosen[name] for name in _DESIGN_AXES if chosen.get(name) is not None}
        design["flatten"] = chosen["reading"] == "flatten"
        design["summary"] = chosen["reading"] if chosen["reading"] in ("pooled", "patches") else "none"
        share = chosen.get("encoder_share")
        if isinstance(share, float) and share != 1:
            design["encoder_width"] = max(2, round(design["width"] * share))
        training = {name: chosen[name] for name in ("learning_rate", "batch_size", "weight_decay", "warmup")}
        return Candidate(
            design=self._canonical(InverterDesign(**design)),
            training=_changed(self.training, **training, betas=(self.training.betas[0], chosen["beta2"])),
            loss=_changed(self.loss, **{axis.name: chosen[axis.name] for axis in LOSS}),
        )

    def _canonical(self, design: InverterDesign) -> InverterDesign:
        """The same network, said in one way: two candidates that differ in words alone are one."""
        levels = len(design.sizes(self.size))
        changes: dict[str, Any] = {}
        if design.encoder_width == design.width:
            changes["encoder_width"] = None
        if design.encoder_depth is not None and design.encoder_depth >= levels:
            changes["encoder_depth"] = None
        if design.skip_size is not None and design.skip_size >= self.size:
            changes["skip_size"] = None
        widest = max(design.width, design.encoder_width or 0) * 2 ** (levels - 1)
        usual = InverterDesign.model_fields["width_limit"].default
        if min(design.width_limit, usual) >= widest:
            changes["width_limit"] = usual
        return design.model_copy(update=changes) if changes else design

    def _same(self, design: InverterDesign, name: str, value: Value) -> bool:
        """Whether an axis with this value says what the design says, in another way (as `_canonical`)."""
        levels = len(design.sizes(self.size))
        if name == "encoder_share":
            assert isinstance(value, float)
            return max(2, round(design.width * value)) == (design.encoder_width or design.width)
        if not isinstance(value, int):
            return False
        if name == "encoder_depth":
            return design.encoder_depth is None and value >= levels
        if name == "skip_size":
            return design.skip_size is None and value >= self.size
        widest = max(design.width, design.encoder_width or 0) * 2 ** (levels - 1)
        return name == "width_limit" and min(value, design.width_limit) >= widest

    def _chosen(self, candidate: Candidate) -> dict[str, Value]:
        """The values of all axes that a candidate was made of, or would be."""
        design, training = candidate.design, candidate.training
        chosen: dict[str, Value] = {name: getattr(design, name) for name in _DESIGN_AXES}
        chosen["reading"] = "flatten" if design.flatten else design.summary
        chosen["encoder_share"] = 1.0 if design.encoder_width is None else design.encoder_width / design.width
        for name in ("learning_rate", "batch_size", "weight_decay", "warmup"):
            chosen[name] = getattr(training, name)
        chosen["beta2"] = training.betas[1]
        return chosen | {axis.name: getattr(candidate.loss, axis.name) for axis in LOSS}


_DESIGN_AXES = tuple(axis.name for axis in (*STRUCTURE, *DETAILS) if axis.name in InverterDesign.model_fields)


def _changed(settings: Settings, **changes: Any) -> Settings:
    return type(settings).model_validate(settings.model_dump() | changes)


def _pick(trial: Any, name: str, values: tuple[Value, ...]) -> Value:
    return values[0] if len(values) == 1 else trial.suggest_categorical(name, list(values))


_NONE: Any = object()


class _NotHeldError(Exception):
    """The space has no such value."""


class _Named:
    """Stands in for an optuna trial: answers with the value that an axis has, whatever the parameter is called."""

    def __init__(self, chosen: dict[str, Value], same: Callable[[str, Value], bool]) -> None:
        self._chosen, self._same = chosen, same
        self.taken: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: list[Value]) -> Value:
        axis = name.partition("~")[0]
        value = self._chosen[axis]
        if value not in choices:
            value = next((one for one in choices if self._same(axis, one)), _NONE)
        if value is _NONE:
            raise _NotHeldError
        self.taken[name] = value
        return value

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        value = self._chosen[name]
        assert isinstance(value, float)
        if not low <= value <= high:
            raise _NotHeldError
        self.taken[name] = value
        return value
