"""What a search found, in words. Plain data in (`search.findings`), plain sentences out."""

from collections.abc import Mapping
from typing import Any

from xinv.report.amounts import error, listed

Found = Mapping[str, Any]
Trial = Mapping[str, Any]

REGIMES = {"samples": "equal images seen", "flops": "equal training FLOPs"}


def best_of(found: Found) -> Trial | None:
    """The best trial by `best.ranked`; None where none was validated."""
    return trial_of(found, found["order"][0]) if found["order"] else None


def trial_of(found: Found, ident: str) -> Trial:
    return next(trial for trial in found["trials"] if trial["id"] == ident)


def presets_of(found: Found) -> list[Trial]:
    """The presets that were begun, in their order."""
    return [trial for trial in found["trials"] if trial["origin"] == "preset"]


def called(trial: Trial) -> str:
    """A trial's name in sentences and charts."""
    return str(trial["title"]) if trial["origin"] == "preset" else f"trial {trial['id']}"


def verdict(found: Found) -> list[str]:
    """The headline, then what supports it: the best design against the best preset, then the final comparison."""
    best = best_of(found)
    if best is None:
        return ["No trial has been validated: there is nothing to compare yet."]
    if best["state"] != "finished":
        headline = (
            f"No trial has come to its end: the lowest validation MSE so far is {error(best['mse'])}, of "
            f"{called(best)}, after {best['epoch']} of {found['epochs']} epochs."
        )
        return [headline, *final_sentences(found)]
    return [_against_presets(found, best), *final_sentences(found)]


def _against_presets(found: Found, best: Trial) -> str:
    own = f"validation MSE {error(best['mse'])} after {_epochs(best['epoch'])}"
    if best["origin"] == "preset":
        others = [one for one in found["trials"] if one["state"] == "finished" and one["origin"] != "preset"]
        beaten = (
            f"the best of the {len(others)} other trials that went to their end has "
            f"{error(min(one['mse'] for one in others))}."
            if others
            else "no trial but presets went to its end."
        )
        return f"No design better than the preset {best['title']} was found: {own}; {beaten}"
    whole = [one for one in presets_of(found) if one["state"] == "finished" and one["curve"]]
    if whole:
        known = min(whole, key=lambda one: one["mse"])
        return (
            f"The best design found, {called(best)}, leaves a validation MSE of {error(best['mse'])}: "
            f"{_lower(best['mse'], known['mse'])} the {error(known['mse'])} of {known['title']}, the best preset in "
            f"this search, after the same {_epochs(found['epochs'])}."
        )
    begun = [one for one in presets_of(found) if one["curve"] and one["state"] != "failed"]
    if not begun:
        return f"The best design found is {called(best)}, {own}; no preset was trained here to compare it with."
    age = max(one["epoch"] for one in begun)
    known = min((one for one in begun if one["epoch"] == age), key=lambda one: one["mse"])
    then = score_at(best, age)
    return (
        f"The best design found is {called(best)}, {own}. No preset went to its end; after {_epochs(age)}, where "
        f"{known['title']} stood at {error(known['mse'])}, it had {error(then)}, {_lower(then, known['mse'])} that."
    )


def score_at(trial: Trial, epoch: int) -> float:
    """Lowest validation MSE up to an age."""
    return float(min((mse for age, mse in trial["curve"] if age <= epoch), default=float("inf")))


def final_sentences(found: Found) -> list[str]:
    """The final comparison of the found design in a sentence for each regime; none without one."""
    final = found["final"]
    if final is None:
        return []
    said = []
    for regime, words in REGIMES.items():
        ratios = [one for one in final["ratios"] if one["regime"] == regime and one["design"] == "found"]
        if ratios:
            parts = [f"{ratio_text(one['mse'])} × {one['to']}’s ({ratio_interval(one)})" for one in ratios]
            said.append(f"at {words} {listed(parts)}")
    if not said:
        return []
    whose = "its" if not _other_winner(found) else f"trial {listed(_compared(found))}’s"
    head = (
        f"Trained anew with {final['seeds']} {'seed' if final['seeds'] == 1 else 'seeds'} and scored on "
        f"{final['victims']:,} victim images, {whose} MSE is "
    )
    return [head + "; ".join(said) + " (95% intervals over victims and seeds)."]


def ratio_text(value: float) -> str:
    return f"{value:.2f}" if value >= 0.095 else f"{value:.2g}"


def ratio_interval(ratio: Mapping[str, float]) -> str:
    return f"{ratio_text(ratio['low'])} to {ratio_text(ratio['high'])}"


def cautions(found: Found) -> list[str]:
    """What keeps the verdict from saying more."""
    said, trials, budget = [], found["trials"], found["budget"]["trials"]
    running = [one for one in trials if one["state"] == "running"]
    if running:
        said.append(f"When this was written, {len(running)} of {len(trials)} trials had not come to their end.")
    elif len(trials) < budget:
        said.append(f"{len(trials)} of the {budget} trials of the budget were begun.")
    stopped = [one["title"] for one in presets_of(found) if one["state"] == "stopped"]
    if stopped:
        said.append(
            f"Halving stopped {listed(stopped)} early, as it does trials that are behind at their age: what a whole "
            "training would have given is not known."
        )
    failed = [f"{one['title']} ({one['reason']})" for one in presets_of(found) if one["state"] == "failed"]
    if failed:
        said.append(f"Presets that failed: {listed(failed)}.")
    begun = {one["title"] for one in trials}
    refused = [one for one in found["refused"] if one["title"] and one["title"] not in begun]
    said += [f"{one['title']} was not tried: {one['reason']}" for one in refused]
    if found["order"]:
        said.append(
            "Every trial was trained once, with one seed, and the best was picked by the figure that it is shown with: "
            "differences as small as those between two seeds are no finding, and the winner's own figure flatters it."
            + ("" if found["final"] else " Only a final comparison with several seeds, on victims, would settle it.")
        )
    old = _other_winner(found)
    return [*said, *([old] if old else [])]


def _other_winner(found: Found) -> str:
    best, compared = best_of(found), _compared(found)
    if best is None or not compared or best["id"] in compared:
        return ""
    return (
        f"The final comparison is of trial {listed(compared)}, and trial {best['id']} is the best by now: the "
        "search has gone on since."
    )


def _compared(found: Found) -> list[str]:
    """The trial that the final comparison calls found."""
    entries = (found["final"] or {}).get("entries", ())
    return sorted({str(one["trial"]) for one in entries if one["design"] == "found"})


def _lower(own: float, other: float) -> str:
    """`34% lower than`: how `own` stands to `other`."""
    if other <= 0.0 or own == other:
        return "no other than"
    share = 100.0 * (1.0 - own / other)
    text = f"{abs(share):.1f}" if abs(share) < 9.95 else f"{abs(share):.0f}"
    return f"{text}% {'lower' if share > 0 else 'higher'} than"


def _epochs(count: int) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"
