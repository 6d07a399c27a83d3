"""The final comparison of a search: designs trained anew with several seeds, and scored on victims.

Axes: N pictured victims, H height, W width, C channels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

from xinv.errors import InputError
from xinv.report import amounts
from xinv.report.gallery import Strip, picture_strip
from xinv.report.measures import METRICS
from xinv.report.search_words import REGIMES, Found, ratio_interval, ratio_text
from xinv.report.tables import Cell, Group, Line, Sheet

TRUTH = "truth"


def final_table(final: Mapping[str, Any]) -> Sheet:
    """A line a design and regime: means over seeds, their range below, and how the designs found stand to it."""
    found = list(dict.fromkeys(one["design"] for one in final["ratios"]))
    ratios = {(one["regime"], one["design"], one["to"]): one for one in final["ratios"]}
    groups = []
    for regime, words in REGIMES.items():
        entries: dict[str, list[Mapping[str, Any]]] = {}
        for entry in final["entries"]:
            if entry["regime"] == regime:
                entries.setdefault(entry["design"], []).append(entry)
        lines = [
            Line(design, _origin(own[0]), "", len(own), _cells(own, [ratios.get((regime, f, design)) for f in found]))
            for design, own in entries.items()
        ]
        if lines:
            groups.append(Group(f"At {words}", tuple(lines)))
    headings = (
        "Trainings",
        "Epochs",
        "Training",
        "Parameters",
        "Validation MSE",
        "Victim MSE",
        "Victim SSIM",
        *(f"MSE of {design}, as a multiple" for design in found),
    )
    return Sheet(headings, tuple(groups), ())


def _origin(entry: Mapping[str, Any]) -> str:
    return f"trial {entry['trial']}" if entry.get("trial") else "preset"


def _cells(own: Sequence[Mapping[str, Any]], ratios: Sequence[Mapping[str, Any] | None]) -> tuple[Cell, ...]:
    epochs = sorted({int(one["epochs"]) for one in own})
    ssim = [float(one["ssim"]) for one in own]
    shown = METRICS["ssim"].format
    return (
        Cell(str(len(own))),
        Cell(" to ".join(str(epoch) for epoch in dict.fromkeys((epochs[0], epochs[-1])))),
        Cell(amounts.flops(fmean(float(one["flops"]) for one in own)), f"{_samples(own)} images seen"),
        Cell(amounts.count(int(own[0]["parameters"]))),
        _errors([float(one["validation_mse"]) for one in own]),
        _errors([float(one["mse"]) for one in own]),
        Cell(shown(fmean(ssim)), f"{shown(min(ssim))} to {shown(max(ssim))}" if len(ssim) > 1 else ""),
        *(
            Cell("–") if ratio is None else Cell(ratio_text(ratio["mse"]), ratio_interval(ratio), ratio["high"] < 1.0)
            for ratio in ratios
        ),
    )


def _samples(own: Sequence[Mapping[str, Any]]) -> str:
    return f"{fmean(float(one['samples']) for one in own):,.0f}"


def _errors(values: Sequence[float]) -> Cell:
    between = f"{amounts.error(min(values))} to {amounts.error(max(values))}" if len(values) > 1 else ""
    return Cell(amounts.error(fmean(values)), between)


def final_gallery(found: Found, folder: Path) -> tuple[Strip, ...]:
    """Strips of the same victims: the truth, what the presets made of them, what the designs found did.

    Their file, `final["pictures"]["images"]` in the run folder, holds uint8 tensors (N, H, W, C): "truth", and one a
    design. None where the comparison kept no pictures.

    Raises:
        InputError: the file is missing or damaged.
    """
    final = found["final"]
    if not final or not final["pictures"]:
        return ()
    path = folder / final["pictures"]["images"]
    advice = "Remove final.json and start the search again: it makes the comparison and its pictures anew."
    try:
        image_NHWC = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing. {advice}") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}). {advice}") from None
    if TRUTH not in image_NHWC:
        raise InputError(f"{path} holds no tensor {TRUTH!r}. {advice}")
    regime = final["pictures"]["regime"]
    entries = {one["design"]: one for one in final["entries"] if one["regime"] == regime and one["seed"] == 0}
    designs = sorted((name for name in image_NHWC if name != TRUTH), key=lambda name: name.startswith("found"))
    strips = [picture_strip("Original", "a victim, never seen by the attacker", "original", image_NHWC[TRUTH])]
    for name in designs:
        detail = f"MSE {amounts.error(entries[name]['mse'])} over all victims" if name in entries else ""
        own = name.startswith("found")
        strips.append(picture_strip(name, detail, "original" if own else "reconstruction", image_NHWC[name]))
    return tuple(strips)
