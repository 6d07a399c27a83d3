"""What the scores say, in words and rows: used by the page and by the terminal. Plain data in, plain data out."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xinv.errors import InputError
from xinv.report.measures import METRICS, MINUS, Metric, metrics_of

Scores = Mapping[str, Any]

EXPLANATION_TITLES = {  # the titles of xinv.release.methods, which may not be imported here; a test compares them
    "gradient": "Gradient",
    "abs_gradient": "|Gradient|",
    "gradient_input": "Gradient × input",
    "grad_cam": "Grad-CAM",
    "lrp_epsilon": "LRP-ε",
    "lrp_zplus": "LRP-z+",
}


@dataclass(frozen=True)
class Control:
    """How a kind of control is called, in full and where space is scarce, and what it is for."""

    title: str
    short: str
    note: str


CONTROLS = {  # by the part of the attack id that names it
    "mean_image": Control(
        "Mean image", "mean image", "the average of the attacker's own images, the same answer for everybody"
    ),
    "other_image": Control(
        "Explanation of another image",
        "other's",
        "the same inverter, fed the explanation of a different image: what remains is not this image's",
    ),
    "random_target": Control(
        "Explanation of an untrained target",
        "untrained",
        "explanations of a network with random weights: what remains is no knowledge of the target's",
    ),
    "nearest": Control(
        "Nearest neighbour", "nearest neighbour", "the attacker's own image with the most similar release"
    ),
}
FEW_IMAGES = 100


@dataclass(frozen=True)
class Leak:
    """What one attack gains over its baseline in one metric, turned so that positive means more leak.

    `explanation` is the title of what was released to it; `explained` is false for a control that uses no explanation.
    """

    metric: Metric
    attack: str
    title: str
    explanation: str
    explained: bool
    control: bool
    n: int
    gain: float
    low: float
    high: float
    baseline: float
    score: float

    @property
    def shown(self) -> bool:
        """Whether the whole interval lies on the side of more leak."""
        return self.low > 0.0

    @property
    def worse(self) -> bool:
        """Whether the whole interval lies on the side of less leak: the attack did worse with the explanation."""
        return self.high < 0.0

    @property
    def percent(self) -> str:
        """The gain as a share of the baseline's score."""
        share = 100.0 * abs(self.gain) / self.baseline if self.baseline else 0.0
        return f"{share:.0f}%" if share >= 1.0 else f"{share:.1f}%"

    @property
    def interval(self) -> str:
        """`0.0219 to 0.0231`."""
        return f"{self.metric.format(self.low)} to {self.metric.format(self.high)}"


def check(scores: Scores) -> None:
    """InputError unless `scores` is what this version writes."""
    if scores.get("schema") != 1:
        raise InputError(f"The scores have schema {scores.get('schema')!r}, this version reads 1: score again with it.")
    missing = [key for key in ("audit", "data", "rows", "leaks") if key not in scores]
    if missing:
        raise InputError(f"The scores lack {', '.join(missing)}: they are unfinished or not scores; score again.")
    known = {row["attack"] for row in scores["rows"]}
    unknown = sorted({leak[end] for leak in scores["leaks"] for end in ("attack", "baseline")} - known)
    if unknown:
        raise InputError(
            f"The scores hold a leak of {unknown[0]!r}, which has no row; rows: {', '.join(sorted(known))}."
        )


def level(scores: Scores) -> str:
    """The confidence level of the intervals, as text."""
    return f"{100.0 * scores.get('level', 0.95):g}%"


def explanation_title(method: str) -> str:
    """A method's name as a reader knows it."""
    return EXPLANATION_TITLES.get(method, method.replace("_", " "))


def release_title(row: Mapping[str, Any]) -> str:
    """What was released to an attack beside the prediction."""
    return " + ".join(explanation_title(method) for method in row["release"]) or "Prediction only"


def control_of(row: Mapping[str, Any]) -> Control:
    """The kind of control that a row is."""
    known = (control for part, control in CONTROLS.items() if part in row["attack"])
    name = row["attack"].replace("_", " ")
    return next(known, Control(name, name, ""))


def row_title(row: Mapping[str, Any]) -> str:
    """A row's title: given in the scores, or made of what was released (attacks) or of what the control does."""
    if "title" in row:
        return str(row["title"])
    if row["kind"] != "control":
        return release_title(row)
    title = control_of(row).title
    return f"{title} ({release_title(row)})" if row["release"] else title


def titles(scores: Scores) -> dict[str, str]:
    """A title for every attack id; the inverter is added where several attacks would share one."""
    plain = {row["attack"]: row_title(row) for row in scores["rows"]}
    shared = Counter(plain.values())
    return {
        row["attack"]: f"{plain[row['attack']]} · {row['inverter']}"
        if shared[plain[row["attack"]]] > 1 and row["inverter"]
        else plain[row["attack"]]
        for row in scores["rows"]
    }


def all_metrics(scores: Scores) -> list[Metric]:
    """The metrics of the rows, in the order of METRICS."""
    return metrics_of(row["metrics"] for row in scores["rows"])


def ordered_rows(scores: Scores) -> list[Mapping[str, Any]]:
    """Rows as tables show them: prediction only, attacks by explanation in order of first mention, controls."""
    first: dict[tuple[str, ...], int] = {}
    for row in scores["rows"]:
        if row["kind"] != "control":
            first.setdefault(tuple(row["release"]), len(first))

    def place(row: Mapping[str, Any]) -> tuple[bool, bool, int]:
        release = tuple(row["release"])
        return row["kind"] == "control", bool(release), first.get(release, len(first))

    return sorted(scores["rows"], key=place)


def leaks_of(scores: Scores, key: str) -> list[Leak]:
    """The leaks in metric `key`, in the order of `ordered_rows`."""
    rows = {row["attack"]: row for row in scores["rows"]}
    place = {row["attack"]: number for number, row in enumerate(ordered_rows(scores))}
    title = titles(scores)
    metric = METRICS[key]
    found = []
    for leak in sorted(scores["leaks"], key=lambda leak: place[leak["attack"]]):
        if key not in leak["metrics"]:
            continue
        row, baseline, value = rows[leak["attack"]], rows[leak["baseline"]], leak["metrics"][key]
        low, high = sorted((metric.sign * value["low"], metric.sign * value["high"]))
        found.append(
            Leak(
                metric=metric,
                attack=row["attack"],
                title=title[row["attack"]],
                explanation=release_title(row),
                explained=bool(row["release"]),
                control=row["kind"] == "control",
                n=leak["n"],
                gain=metric.sign * value["difference"],
                low=low,
                high=high,
                baseline=baseline["metrics"][key]["mean"],
                score=row["metrics"][key]["mean"],
            )
        )
    return found


def strongest(scores: Scores, key: str) -> list[Leak]:
    """For each explanation the attack that gains most in metric `key`, the largest gain first; no controls."""
    best: dict[str, Leak] = {}
    for leak in leaks_of(scores, key):
        held = best.get(leak.explanation)
        if not leak.control and (held is None or leak.gain > held.gain):
            best[leak.explanation] = leak
    return sorted(best.values(), key=lambda leak: -leak.gain)


def verdict(scores: Scores) -> str:
    """What the audit found, in plain sentences with numbers and intervals; the first one is the headline."""
    return " ".join(verdict_parts(scores))


def verdict_parts(scores: Scores) -> list[str]:
    """The sentences of `verdict`: the headline, then what supports or limits it."""
    check(scores)
    prefix = "On synthetic data: " if scores["data"].get("synthetic") else ""
    by_error = strongest(scores, "mse")
    if not by_error:
        return [f"{prefix}No leak was measured, because no attack with an explanation has been scored."]
    parts = _leak_parts(scores, by_error) if by_error[0].shown else _no_leak_parts(scores, by_error)
    worse = [leak.explanation for leak in by_error if leak.worse]
    if worse:
        parts.append(
            f"With {_listed(worse)} the attack did measurably worse than without: a sign of an attack that is not "
            "trained to its best, not of protection."
        )
    parts.append("This is what these attacks achieved, a lower bound of the risk: a stronger attack may do better.")
    return [prefix + parts[0], *parts[1:]]


def _leak_parts(scores: Scores, by_error: list[Leak]) -> list[str]:
    top, rest = by_error[0], by_error[1:]
    parts = [
        f"{top.explanation} {'leaks most' if rest else 'leaks'}: with it the attack reconstructs the images with "
        f"{top.percent} less squared error than from the prediction alone (MSE lower by {top.metric.format(top.gain)}, "
        f"{level(scores)} interval {top.interval}).",
        f"Over {top.n} victim images the mean squared error is {top.metric.format(top.score)} in place of "
        f"{top.metric.format(top.baseline)}.",
    ]
    also = [f"{leak.explanation} ({leak.percent})" for leak in rest if leak.shown]
    if also:
        parts.append(f"{_listed(also)} also {'lowers' if len(also) == 1 else 'lower'} the error.")
    close = [leak.explanation for leak in rest if leak.high >= top.low]
    if close:
        verb = "overlaps" if len(close) == 1 else "overlap"
        parts.append(
            f"The interval of {_listed(close)} {verb} with that of {top.explanation}: their order is not settled."
        )
    open_ones = [leak.explanation for leak in rest if not leak.shown and not leak.worse]
    if open_ones:
        parts.append(f"For {_listed(open_ones)} the interval includes zero: no leak was shown there.")
    return parts


def _no_leak_parts(scores: Scores, by_error: list[Leak]) -> list[str]:
    others = [leak for metric in all_metrics(scores)[1:] for leak in strongest(scores, metric.key) if leak.shown]
    top = by_error[0]
    count = f"any of the {len(by_error)} explanations" if len(by_error) > 1 else top.explanation
    closest = (
        f"closest is {top.explanation}, MSE {'lower' if top.gain >= 0 else 'higher'} by "
        f"{top.metric.format(abs(top.gain))}, {level(scores)} interval of the reduction {top.interval}, {top.n} images"
    )
    if not others:
        return [
            f"No leak was shown: with {count} no metric improves on the prediction alone by more than chance explains "
            f"({closest})."
        ]
    found = others[0]
    side = "lower" if found.metric.leak_direction == "lower" else "higher"
    gain = f"{found.metric.format(found.gain)} {found.metric.difference_unit}".strip()
    return [
        f"No explanation lowers the squared error by more than chance explains ({closest}), but with "
        f"{found.explanation} the {found.metric.label} is {side} by {gain} "
        f"({level(scores)} interval {found.interval}).",
        "One metric among several is weak evidence: look at the pictures and repeat with more images.",
    ]


def cautions(scores: Scores) -> list[str]:
    """What a careful reader should know before believing the numbers; empty when nothing stands out."""
    notes = []
    for leak in leaks_of(scores, "mse"):
        if leak.control and leak.explained and leak.shown:
            notes.append(
                f"The control “{leak.title}” also beats the prediction alone (MSE lower by "
                f"{leak.metric.format(leak.gain)}, {leak.interval}). It ought not to: part of the leak may not come "
                "from the image's own explanation."
            )
    rows = {row["attack"]: row for row in scores["rows"]}
    for attack in sorted({leak["baseline"] for leak in scores["leaks"]}):
        for row in scores["rows"]:
            if row["kind"] == "control" and not row["release"] and _below(row, rows[attack], "mse"):
                notes.append(
                    f"“{row_title(row)}” has less error than “{row_title(rows[attack])}”: the baseline is poorly "
                    "trained, so the leaks measured against it are too large."
                )
    notes += _evaluator_cautions(scores, rows)
    smallest = min((row["n"] for row in scores["rows"]), default=0)
    if 0 < smallest < FEW_IMAGES:
        notes.append(f"Only {smallest} images were scored: intervals are wide, and slightly too narrow at that.")
    return notes


def _evaluator_cautions(scores: Scores, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    evaluator = scores.get("evaluator") or {}
    accuracy = (evaluator.get("accuracy_on_originals") or {}).get("mean")
    if accuracy is None:
        return []
    notes, metric = [], METRICS["attack_accuracy_top1"]
    if accuracy < 2.0 * evaluator.get("chance", 0.0) or accuracy < 0.5:
        notes.append(
            f"The evaluator itself is right on only {metric.format(accuracy)}% of the originals: embedding similarity "
            "and attack accuracy say little here."
        )
    for attack in sorted({leak["baseline"] for leak in scores["leaks"]}):
        reached = rows[attack]["metrics"].get(metric.key, {}).get("mean")
        if reached is not None and reached >= 0.95 * accuracy:
            notes.append(
                f"Attack accuracy is saturated: {metric.format(reached)}% from the prediction alone, "
                f"{metric.format(accuracy)}% on the originals themselves. Read the other metrics for the leak."
            )
    return notes


def _below(row: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    return (
        key in row["metrics"]
        and key in other["metrics"]
        and row["metrics"][key]["mean"] < other["metrics"][key]["mean"]
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def summary_rows(scores: Scores) -> list[dict[str, str]]:
    """The table of the terminal, about 80 characters wide: one dict a row, column heading to text, headings all equal.

    Means of every metric, then the change of the error (MSE) against prediction only with its interval, as shares of
    prediction only's error.
    """
    check(scores)
    metrics, title = all_metrics(scores), titles(scores)
    leaks = {leak.attack: leak for leak in leaks_of(scores, "mse")}
    table = []
    for row in ordered_rows(scores):
        cells = {"Attack": title[row["attack"]] if row["kind"] != "control" else _short_control(row)}
        for metric in metrics:
            value = row["metrics"].get(metric.key)
            text = metric.format(value["mean"]) if value else ""
            cells[metric.short] = f"{text}%" if value and metric.unit == "%" else text
        leak = leaks.get(row["attack"])
        cells["Error change"] = _change(leak) if leak else ""
        table.append(cells)
    return table


def _short_control(row: Mapping[str, Any]) -> str:
    short = control_of(row).short
    return f"control: {short} {release_title(row)}" if row["release"] else f"control: {short}"


def _change(leak: Leak) -> str:
    """`−75% (−78 to −73)`: the change of the error itself, so that a leak reads as a minus."""
    if not leak.baseline:
        return ""
    change, low, high = (
        f"{-100.0 * value / leak.baseline:+.0f}".replace("-", MINUS) for value in (leak.gain, leak.high, leak.low)
    )
    return f"{change}% ({low} to {high})"
