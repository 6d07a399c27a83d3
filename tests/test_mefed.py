import pytest
from trees import picture

from xinv.data.mefed import MefedSettings, open_mefed
from xinv.errors import InputError


def opened(folder, **more):
    return open_mefed(MefedSettings(kind="mefed", folder=folder, **more))


@pytest.mark.parametrize(
    "names",
    [
        ["s001/1_7/3.jpg", "s002/5_5/1.jpg", "s002/N_N/1.jpg"],
        ["s001/1_7_3.jpg", "s002/5_5_1.jpg", "s002/N_N_1.jpg"],
        ["s001/img_1_7_3.jpg", "s002/img_5_5_1.jpg", "s002/img_N_N_1.jpg"],
        ["s001/session 1/1_7.jpg", "s002/session 1/5_5.jpg", "s002/session 1/N_N.jpg"],
    ],
)
def test_person_and_emotions_are_read_from_the_path(tmp_path, names):
    for number, name in enumerate(names):
        picture(tmp_path / name, number)
    source = opened(tmp_path)
    assert [record.identity for record in source.records] == ["s001", "s002", "s002"]
    assert [source.label_names[record.label] for record in source.records] == ["surprise", "happiness", "neutral"]
    assert source.records[0].attributes == {"dominant": "surprise", "complementary": "anger"}
    assert source.where(0).endswith(names[0]) and source.read(0).shape == (24, 20, 3)


def test_compounds_are_fifty(tmp_path):
    for name in ("a/1_7/1.jpg", "a/7_7/1.jpg", "a/N_N/1.jpg"):
        picture(tmp_path / name)
    source = opened(tmp_path, label="compound")
    assert len(source.label_names) == len(set(source.label_names)) == 50
    assert [source.label_names[record.label] for record in source.records] == ["anger+surprise", "surprise", "neutral"]
    weaker = opened(tmp_path, label="complementary")
    assert [weaker.label_names[record.label] for record in weaker.records] == ["anger", "surprise", "neutral"]


def test_other_trees_have_their_own_pattern(tmp_path):
    picture(tmp_path / "17-7-012.jpg")
    picture(tmp_path / "53-1-099.jpg")
    pattern = r"(?P<complementary>\d)(?P<dominant>\d)-\d-(?P<person>\d+)\.jpg"
    source = opened(tmp_path, pattern=pattern)
    assert [record.identity for record in source.records] == ["012", "099"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("s001/portrait.jpg", r"portrait\.jpg has no label: .*source\.pattern"),
        ("s001/8_1/1.jpg", "has no label"),
        ("s001/N_3/1.jpg", "N_3 is none of the 50 emotions"),
        ("1_7.jpg", "has no label"),
    ],
)
def test_photographs_without_a_label_are_named(tmp_path, name, words):
    picture(tmp_path / "s001" / "1_1" / "1.jpg")
    picture(tmp_path / name)
    with pytest.raises(InputError, match=words):
        opened(tmp_path)


def test_a_missing_folder(tmp_path):
    with pytest.raises(InputError, match="iCV-MEFED's photographs"):
        opened(tmp_path / "mefed")
