"""The final comparison of a search as a file: RUNS/NAME/final.json, what it is asked for, and whether it still holds.

    {"seeds", "samples", "flops", "victims",
     "entries": [{"design", "trial", "regime", "seed", "epochs", "samples", "flops", "parameters", "validation_mse",
                  "mse", "ssim"}],
     "ratios": [{"regime", "design", "to", "mse", "low", "high"}],
     "pictures": {"images", "regime"} or null}

An entry is one training. Its design is "found" ("found-2" for the second best), or the name of a preset; it is of a
trial, or null where no trial of this search is behind it. A preset that won the search has both, and is the design of
the ratios in the place of "found". Regime "samples": every entry sees as many images; "flops": every entry has about
the FLOPs of training that the best design has in regime "samples".
"""

import contextlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xinv.config import AttackSettings
from xinv.errors import InputError
from xinv.files import read_json, write_atomic
from xinv.nets.design import PRESETS, InverterDesign
from xinv.search.record import Trial

FINAL = "final.json"
FOLDER = "final"
IMAGES = "images.safetensors"
FOUND = "found"
KNOWN = ("gnime_expmi", "film_unet", "flatten_unet", "gnime_predmi", "prediction_only")
"""Presets that a comparison has where none are named, as far as they read the release: the strongest published design,
ours, and the paper's; of predictions alone, the last two."""

Regime = Literal["samples", "flops"]


class FinalSettings(BaseModel):
    """The comparison that a search ends in: the best designs and known ones, trained anew and scored on the victims."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seeds: int = Field(3, ge=1, le=100, description="trainings of every design, from different initial weights")
    presets: tuple[str, ...] | None = Field(
        None,
        description="known designs to compare with, by name: presets, or attack.designs of the base; null: those of "
        f"{', '.join(KNOWN)} that read what the search's inverters read, whatever the budgets of the space",
    )
    regimes: tuple[Regime, ...] = Field(
        ("samples", "flops"),
        min_length=1,
        description="what is equal: the images seen (samples), the FLOPs of training (flops), or one after the other",
    )
    best: int = Field(1, ge=1, le=10, description="how many of the best designs are compared")
    pictures: int = Field(8, ge=0, le=64, description="victims whose reconstructions are kept; 0: none")

    @model_validator(mode="after")
    def _presets_once(self) -> "FinalSettings":
        names = self.presets or ()
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"presets names {twice[0]!r} twice")
        if len(set(self.regimes)) < len(self.regimes):
            raise ValueError("regimes names one twice")
        return self

    def check(self, attack: AttackSettings, source: str) -> None:
        """InputError for a preset that nobody knows. `source` names the search in messages."""
        known = known_designs(attack)
        for name in self.presets or ():
            if name not in known:
                raise InputError(
                    f"{source}: final.presets names {name!r}, and no inverter design is called so; known are "
                    f"{', '.join(sorted(known))}."
                )


def known_designs(attack: AttackSettings) -> dict[str, InverterDesign]:
    """Designs that a base knows by name, but for any that is called as found ones are."""
    found = re.compile(rf"{FOUND}(-\d+)?")
    return {name: design for name, design in {**PRESETS, **attack.designs}.items() if not found.fullmatch(name)}


def epochs_for(flops: float, flops_per_epoch: float) -> int:
    """Whole epochs of training that come nearest to so many FLOPs; at least one."""
    assert flops > 0 and flops_per_epoch > 0, (flops, flops_per_epoch)
    return max(1, round(flops / flops_per_epoch))


def read_final(folder: Path) -> dict[str, Any] | None:
    """final.json of a search's run folder; None where there is none. InputError where it is something else."""
    path = folder / FINAL
    if not path.exists():
        return None
    found = read_json(path)
    missing = {"seeds", "victims", "entries", "ratios", "pictures"} - set(found if isinstance(found, dict) else ())
    if missing:
        raise InputError(
            f"{path} has no {', '.join(sorted(missing))}, so it is no final comparison of a search. Remove it, and "
            "start the search again: it makes the comparison anew."
        )
    return dict(found)


def write_final(folder: Path, content: dict[str, Any]) -> Path:
    """Write final.json, where it does not say so already."""
    path, text = folder / FINAL, json.dumps(content, indent=1, allow_nan=False) + "\n"
    if not path.exists() or path.read_text() != text:
        write_atomic(path, text)
    return path


def is_of(final: dict[str, Any], order: Sequence[Trial]) -> bool:
    """Whether a comparison is of those that are the best trials now. `order`: all trials, the best first."""
    compared = list(dict.fromkeys(one["trial"] for one in final["entries"] if one["trial"] is not None))
    return bool(compared) and compared == [trial.id for trial in order[: len(compared)]]


def discard_stale(folder: Path, order: Sequence[Trial]) -> None:
    """Remove a comparison that is of other trials than the best of now. Its trainings stay in RUNS/stages."""
    final = read_final(folder)
    if final is not None and not is_of(final, order):
        with contextlib.suppress(FileNotFoundError):
            (folder / FINAL).unlink()
        shutil.rmtree(folder / FOLDER, ignore_errors=True)


def standing(folder: Path, order: Sequence[Trial]) -> Literal["made", "stale"] | None:
    """Whether there is a comparison, and whether it is still of the best trials."""
    final = read_final(folder)
    if final is None:
        return None
    return "made" if is_of(final, order) else "stale"


def rows(final: dict[str, Any]) -> list[dict[str, str]]:
    """A comparison as a table's rows of text: a row for each design and regime, with means over the seeds."""
    ratios = {(one["regime"], one["design"], one["to"]): one for one in final["ratios"]}
    winners = list(dict.fromkeys(one["design"] for one in final["ratios"]))
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in final["entries"]:
        grouped.setdefault((entry["regime"], entry["design"]), []).append(entry)
    found = []
    for (regime, design), entries in grouped.items():
        first = entries[0]
        row = {
            "design": f"{design} (trial {first['trial']})" if first["trial"] is not None else design,
            "equal": regime,
            "epochs": str(first["epochs"]),
            "parameters": f"{first['parameters']:,}",
            "TFLOP": f"{first['flops'] / 1e12:.3g}",
            "victim MSE": f"{fmean(entry['mse'] for entry in entries):.5f}",
        }
        for winner in winners:
            one = ratios.get((regime, winner, design))
            row[f"{winner} / this"] = f"{one['mse']:.3f} ({one['low']:.3f} to {one['high']:.3f})" if one else ""
        found.append(row)
    return found
