"""Rows and leaks of the scores as readers meet them: titles, order, signs turned. Plain data in, plain data out."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from xinv.errors import InputError
from xinv.report.measures import Metric, metric_of, metrics_of

Scores = Mapping[str, Any]

EXPLANATION_TITLES = {  # the titles of xinv.release.methods, which may not be imported here; a test compares them
    "gradient": "Gradient",
    "abs_gradient": "|Gradient|",
    "gradient_input": "Gradient × input",
    "integrated_gradients": "Integrated gradients",
    "smoothgrad": "SmoothGrad",
    "guided_backprop": "Guided backprop",
    "deeplift": "DeepLIFT",
    "grad_cam": "Grad-CAM",
    "grad_cam_pp": "Grad-CAM++",
    "hires_cam": "HiResCAM",
    "layer_cam": "LayerCAM",
    "sigma_cam": "Σ-CAM (all classes)",
    "partial_cam": "∂-CAM (per channel)",
    "lrp_0": "LRP-0",
    "lrp_epsilon": "LRP-ε",
    "lrp_gamma": "LRP-γ",
    "lrp_zplus": "LRP-z+",
    "occlusion": "Occlusion",
    "rise": "RISE",
    "attention_rollout": "Attention rollout",
}


@dataclass(frozen=True)
class Control:
    """How a kind of control is called, in full and where space is scarce, and what it is for.

    `foreign`: the explanation that it sees is not the image's own, so that it ought to fail.
    """

    title: str
    short: str
    note: str
    foreign: bool = False


CONTROLS = {  # by what stands before the first colon of the attack id
    "mean_image": Control(
        "Mean image", "mean image", "the average of the attacker's own images, the same answer for everybody"
    ),
    "other_image": Control(
        "Explanation of another image",
        "other's",
        "the same inverter, fed the explanation of a different image: what remains is not this image's",
        foreign=True,
    ),
    "same_class_image": Control(
        "Explanation of another image of the same label",
        "same label's",
        "the same inverter, fed the explanation of a different image of the same label: what remains is what "
        "explanations of a label have in common",
        foreign=True,
    ),
    "random_target": Control(
        "Explanation of an untrained target",
        "untrained",
        "an inverter trained and fed with explanations of this image by a network with random weights, beside the "
        "target's own prediction: what it gains is to be had from passing the image through any such network, and what "
        "the target's own explanation gains beyond it is what training added",
    ),
    "surrogate_same_capacity": Control(
        "Same network, untaught",
        "untaught",
        "the network of the surrogate attack, never shown the surrogate's explanations: what that attack must beat",
    ),
    "nearest_neighbour": Control(
        "Nearest neighbour",
        "nearest neighbour",
        "the attacker's own image with the most similar release: what a look-up achieves without any reconstruction",
    ),
    "ridge": Control(
        "Ridge regression",
        "ridge regression",
        "the best linear map from release to image: the floor that a trained network must beat",
    ),
}

QUOTIENT = (
    "Quotient",
    "no network at all, released gradient × input divided by released gradient: of explanations as they are computed "
    "that is the image itself wherever the gradient does not vanish, and the mean image is put elsewhere",
)
"""What the attack of that inverter is, for the notes below the table of scores."""


@dataclass(frozen=True)
class Leak:
    """What one attack gains over its baseline in one metric, turned so that positive means more leak.

    `explanation` is the title of what was released to it; `explained` is false where no explanation was; `foreign`: it
    is a control whose explanation is not the image's own. `significant`:
    whether zero is ruled out, by the interval and, for attacks, after Holm's correction over those of the metric.
    `detectable` is the smallest gain that would have been found four times in five (None in older scores), `against`
    the title of the baseline.
    """

    metric: Metric
    attack: str
    title: str
    explanation: str
    explained: bool
    control: bool
    foreign: bool
    n: int
    gain: float
    low: float
    high: float
    baseline: float
    score: float
    significant: bool
    detectable: float | None
    against: str

    @property
    def shown(self) -> bool:
        """Whether a leak was shown."""
        return self.significant and self.low > 0.0

    @property
    def worse(self) -> bool:
        """Whether it was shown that the attack did worse with the explanation."""
        return self.significant and self.high < 0.0

    @property
    def drawn(self) -> bool:
        """Whether charts show it: the mean image and its like are so far off that they would flatten the rest."""
        return self.explained or not self.control

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
    return _listed(row["release"]) or "Prediction only"


def _listed(methods: Iterable[str]) -> str:
    return " + ".join(explanation_title(method) for method in methods)


def withheld(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Explanations that the row's inverter knows and that were withheld from it: where one inverter was scored on every
    subset of a release (explanation dropout), all rows but that of the whole release have some."""
    return tuple(method for method in row.get("group", ()) if method not in row["release"])


def control_of(row: Mapping[str, Any]) -> Control:
    """The kind of control that a row is."""
    name = row["attack"].replace("_", " ")
    return CONTROLS.get(row["attack"].partition(":")[0], Control(name, name, ""))


def row_title(row: Mapping[str, Any]) -> str:
    """A row's title: given in the scores, or made of what was released (attacks) or of what the control does."""
    if "title" in row:
        return str(row["title"])
    if withheld(row):
        return f"{_listed(row['release']) or 'Nothing'} ({_listed(withheld(row))} withheld)"
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


def main_metrics(scores: Scores) -> list[Metric]:
    """Those of them that the main tables show."""
    return [metric for metric in all_metrics(scores) if metric.headline]


def seeds(scores: Scores) -> int:
    """Trainings behind the rows, the most of any."""
    return max((int(row.get("seeds", 1)) for row in scores["rows"]), default=1)


def compared(scores: Scores) -> int:
    """Attacks that Holm's correction ranges over in each metric, the most of any baseline; 0 in older scores."""
    corrected = (leak["baseline"] for leak in scores["leaks"] if "p_holm" in leak["metrics"].get("mse", {}))
    return max(Counter(corrected).values(), default=0)


def judges(scores: Scores) -> list[Mapping[str, Any]]:
    """The evaluators, the principal one first; empty in older scores."""
    return list(scores.get("evaluators", []))


def ordered_rows(scores: Scores, subsets: bool = False) -> list[Mapping[str, Any]]:
    """Rows as tables show them: prediction only, attacks by explanation in order of first mention, attacks that imagine
    theirs (which have a title and no release), controls. Of releases with something `withheld`, which have a table of
    their own, none unless `subsets`.
    """
    wanted = [row for row in scores["rows"] if subsets or not withheld(row)]
    first: dict[tuple[str, ...], int] = {}
    for row in wanted:
        if row["kind"] != "control":
            first.setdefault(tuple(row["release"]), len(first))

    def place(row: Mapping[str, Any]) -> tuple[bool, bool, bool, int]:
        release = tuple(row["release"])
        imagined = "title" in row and not release
        return row["kind"] == "control", imagined, bool(release), first.get(release, len(first))

    return sorted(wanted, key=place)


def leaks_of(scores: Scores, key: str, subsets: bool = False) -> list[Leak]:
    """The leaks in metric `key` of the rows that `ordered_rows` gives, in its order."""
    rows = {row["attack"]: row for row in scores["rows"]}
    place = {row["attack"]: number for number, row in enumerate(ordered_rows(scores, subsets))}
    wanted = [leak for leak in scores["leaks"] if leak["attack"] in place]
    title = titles(scores)
    metric = metric_of(key)
    alpha = 1.0 - scores.get("level", 0.95)
    found = []
    for leak in sorted(wanted, key=lambda leak: place[leak["attack"]]):
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
                foreign=row["kind"] == "control" and control_of(row).foreign,
                n=leak["n"],
                gain=metric.sign * value["difference"],
                low=low,
                high=high,
                baseline=baseline["metrics"][key]["mean"],
                score=row["metrics"][key]["mean"],
                significant=(low > 0.0 or high < 0.0) and value.get("p_holm", 0.0) <= alpha + 1e-12,
                detectable=value.get("mde"),
                against=title[baseline["attack"]],
            )
        )
    return found


def strongest(scores: Scores, key: str) -> list[Leak]:
    """For each explanation the attack that gains most in metric `key`, the largest gain first; no controls."""
    best: dict[str, Leak] = {}
    for leak in leaks_of(scores, key):
        held = best.get(leak.explanation)
        if leak.explained and not leak.control and (held is None or leak.gain > held.gain):
            best[leak.explanation] = leak
    return sorted(best.values(), key=lambda leak: -leak.gain)
