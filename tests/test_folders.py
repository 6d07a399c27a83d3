import pytest
from trees import picture, shared

from xinv.data.folders import FoldersSettings, open_folders
from xinv.errors import InputError


def opened(folder, layout):
    return open_folders(FoldersSettings(kind="folders", folder=folder, layout=layout))


def facts(source):
    return [(source.label_names[record.label], record.identity) for record in source.records]


def test_a_folder_a_class(tmp_path):
    for number, name in enumerate(["dog/2.png", "cat/1.png", "dog/1.png"]):
        picture(tmp_path / name, number)
    source = opened(tmp_path, "label/*")
    assert source.label_names == ("cat", "dog")
    assert facts(source) == [("cat", "00000000"), ("dog", "00000001"), ("dog", "00000002")]
    assert [source.read(i)[0, 0, 0] for i in range(3)] == [1, 2, 0]  # in the order of names
    assert source.where(2) == str(tmp_path / "dog" / "2.png") and not source.synthetic


def test_a_folder_a_person(tmp_path):
    for name in ("ann/1.png", "ann/2.png", "bob/1.png"):
        picture(tmp_path / name)
    assert facts(opened(tmp_path, "identity/*")) == [("ann", "ann"), ("ann", "ann"), ("bob", "bob")]


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("label/identity/*", ["sad/ann/1.png", "sad/bob/1.png", "glad/ann/7.png"]),
        ("identity/label/*", ["ann/sad/1.png", "bob/sad/1.png", "ann/glad/7.png"]),
        ("label/identity.*", ["sad/ann.png", "sad/bob.png", "glad/ann.png"]),
        ("identity/label.*", ["ann/sad.png", "bob/sad.png", "ann/glad.png"]),
    ],
)
def test_both_label_and_person(tmp_path, layout, names):
    for name in names:
        picture(tmp_path / name)
    source = opened(tmp_path, layout)
    assert source.label_names == ("glad", "sad")
    assert sorted(facts(source)) == [("glad", "ann"), ("sad", "ann"), ("sad", "bob")]


def test_the_layout_and_the_names_are_in_the_fingerprint(tmp_path):
    for name in ("a/x.png", "b/y.png"):
        picture(tmp_path / name)
    first = opened(tmp_path, "label/*").fingerprint
    assert opened(tmp_path, "label/*").fingerprint == first != opened(tmp_path, "identity/*").fingerprint
    picture(tmp_path / "b" / "z.png")
    assert opened(tmp_path, "label/*").fingerprint != first


def test_an_image_without_a_label_is_named(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    stray = picture(tmp_path / "2.png")
    with pytest.raises(InputError, match=rf"{stray} does not fit the layout label/\*: expected 1 folder.*found 0"):
        opened(tmp_path, "label/*")
    stray.unlink()
    deep = picture(tmp_path / "dog" / "more" / "2.png")
    with pytest.raises(InputError, match=rf"{deep} does not fit"):
        opened(tmp_path, "label/*")


def test_missing_and_single_folders(tmp_path):
    with pytest.raises(InputError, match=r"faces is missing; .* laid out as label/\*"):
        opened(tmp_path / "faces", "label/*")
    picture(tmp_path / "faces" / "cat" / "1.png")
    with pytest.raises(InputError, match="at least two labels; this source has cat"):
        opened(tmp_path / "faces", "label/*")


def test_the_london_faces(tmp_path):
    import tarfile

    with tarfile.open(shared("london_faces/london_512.tar")) as archive:
        archive.extractall(tmp_path, filter="data")
    source = opened(tmp_path, "label/identity.*")
    assert source.label_names == ("neutral", "smiling") and len(source.records) == 204
    assert len({record.identity for record in source.records}) == 102
    assert source.read(0).shape == (512, 512, 3)
