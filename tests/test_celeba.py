import zipfile

import numpy as np
import pytest
from trees import celeba_folder, celeba_tables, picture

from xinv.data.celeba import CelebaHqSettings, CelebaSettings, open_celeba, open_celeba_hq
from xinv.errors import InputError


def opened(folder, **more):
    return open_celeba(CelebaSettings(kind="celeba", folder=folder, **more))


def opened_hq(folder, **more):
    return open_celeba_hq(CelebaHqSettings(kind="celeba_hq", folder=folder, **more))


def test_an_attribute_is_the_label_and_all_are_kept(tmp_path):
    source = opened(celeba_folder(tmp_path))
    assert source.label_names == ("not Smiling", "Smiling")
    assert [record.key for record in source.records] == [f"{number:06d}" for number in range(1, 7)]
    assert [record.label for record in source.records] == [1, 0, 1, 0, 1, 0]
    assert [record.identity for record in source.records] == ["7", "7", "7", "10", "10", "2"]
    assert source.records[3].attributes == {"Smiling": 0, "Male": 0, "Wearing_Hat": 0}
    assert source.records[0].attributes == {"Smiling": 1, "Male": 1, "Wearing_Hat": 0}
    assert abs(int(source.read(4)[0, 0, 0]) - 50) <= 3 and source.read(4).shape == (24, 20, 3)
    assert source.where(4) == str(tmp_path / "img_align_celeba" / "000005.jpg")


def test_the_person_is_the_label_in_the_order_of_numbers(tmp_path):
    source = opened(celeba_folder(tmp_path), label="identity")
    assert source.label_names == ("2", "7", "10")
    assert [record.label for record in source.records] == [1, 1, 1, 2, 2, 0]


def test_only_the_people_with_most_pictures_are_kept(tmp_path):
    source = opened(celeba_folder(tmp_path), label="identity", people=2)
    assert source.label_names == ("7", "10") and len(source.records) == 5
    assert np.allclose([source.read(i)[0, 0, 0] for i in range(5)], [10, 20, 30, 40, 50], atol=3)
    with pytest.raises(InputError, match=r"shows 3 people, and source\.people asks for 4"):
        opened(tmp_path, people=4)


def test_the_published_folders_and_the_zip(tmp_path):
    plain = opened(celeba_folder(tmp_path / "plain"))
    celeba_tables(tmp_path / "set" / "Anno", [7, 7, 7, 10, 10, 2], [1, -1, 1, -1, 1, -1])
    (tmp_path / "set" / "Img").mkdir()
    with zipfile.ZipFile(tmp_path / "set" / "Img" / "img_align_celeba.zip", "w") as archive:
        for path in (tmp_path / "plain" / "img_align_celeba").iterdir():
            archive.write(path, f"img_align_celeba/{path.name}")
    source = opened(tmp_path / "set")
    assert source.records == plain.records
    assert all((source.read(i) == plain.read(i)).all() for i in range(6))
    assert "img_align_celeba.zip" in source.where(0)


def test_the_fingerprint_follows_labels_and_pictures(tmp_path):
    first = opened(celeba_folder(tmp_path)).fingerprint
    assert opened(tmp_path).fingerprint == first
    celeba_tables(tmp_path, [7, 7, 7, 10, 10, 2], [1, -1, 1, -1, 1, 1])
    assert opened(tmp_path).fingerprint != first
    celeba_folder(tmp_path)
    picture(tmp_path / "img_align_celeba" / "000001.jpg", 10, (90, 90))
    assert opened(tmp_path).fingerprint != first


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("img_align_celeba", "img_align_celeba is missing.*Download img_align_celeba.zip"),
        ("identity_CelebA.txt", "identity_CelebA.txt is missing; it should be the list of who is shown"),
        ("list_attr_celeba.txt", "list_attr_celeba.txt is missing; it should be the table of attributes"),
    ],
)
def test_missing_files_say_what_to_download(tmp_path, file, words):
    (celeba_folder(tmp_path) / file).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=words):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("identity_CelebA.txt", "000002.jpg 7", "000002.jpg seven", "line 2: expected a file name and the number"),
        ("identity_CelebA.txt", "000002.jpg 7", "000001.jpg 7", r"line 2: 000001\.jpg was listed before"),
        ("identity_CelebA.txt", "000002.jpg 7\n", "", r"000002\.jpg has no label: .*identity_CelebA\.txt has no line"),
        ("list_attr_celeba.txt", "6\n", "", "line 1: expected the number of pictures, got 'Smiling"),
        ("list_attr_celeba.txt", "6\n", "7\n", "announces 7 pictures in line 1 and lists 6"),
        ("list_attr_celeba.txt", "Wearing_Hat", "Male", "line 2: expected the names of the attributes"),
        (
            "list_attr_celeba.txt",
            "000003.jpg   1",
            "000003.jpg   0",
            "line 5: expected only 1 and -1 as values, not '0'",
        ),
        ("list_attr_celeba.txt", "000003.jpg   1", "000003.jpg", "line 5: expected a file name and 3 values"),
        ("list_attr_celeba.txt", "000003", "000002", r"line 5: 000002\.jpg was listed before"),
    ],
)
def test_malformed_label_files_name_the_line(tmp_path, file, old, new, words):
    path = celeba_folder(tmp_path) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=words):
        opened(tmp_path)


def test_a_label_file_that_is_no_text(tmp_path):
    (celeba_folder(tmp_path) / "identity_CelebA.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match=r"identity_CelebA\.txt is no text file"):
        opened(tmp_path)


def test_an_unknown_attribute_is_answered_with_the_nearest(tmp_path):
    celeba_folder(tmp_path)
    with pytest.raises(InputError, match=r"no attribute 'smiles'; the nearest are Smiling.*Known: identity, Smi"):
        opened(tmp_path, label="smiles")
    with pytest.raises(InputError, match="no attribute 'xyz'; none is alike"):
        opened(tmp_path, label="xyz")


def test_pictures_without_labels_and_labels_without_pictures(tmp_path):
    folder = celeba_folder(tmp_path) / "img_align_celeba"
    (folder / "000002.jpg").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 6 listed pictures, 000002\.jpg among them"):
        opened(tmp_path)
    assert len(opened(tmp_path, subset=True).records) == 5
    picture(folder / "000009.jpg")
    with pytest.raises(InputError, match=r"000009\.jpg has no label"):
        opened(tmp_path, subset=True)


def test_two_pictures_of_one_name_are_refused(tmp_path):
    picture(celeba_folder(tmp_path) / "img_align_celeba" / "more" / "000002.jpg")
    with pytest.raises(InputError, match=r"more/000002\.jpg and .* have one name"):
        opened(tmp_path)


def test_a_damaged_picture_is_named_when_it_is_read(tmp_path):
    (celeba_folder(tmp_path) / "img_align_celeba" / "000004.jpg").write_bytes(b"\xff\xd8\xff")
    source = opened(tmp_path)
    with pytest.raises(InputError, match=r"000004\.jpg cannot be read as an image"):
        source.read(3)


MAPPING = "idx    orig_idx    orig_file\n0  4  000005.jpg\n1   0   000001.jpg\n2 3 000004.jpg\n"


def celeba_hq_folder(folder, first=0, name="{}.jpg"):
    celeba_tables(folder, [7, 7, 7, 10, 10, 2], [1, -1, 1, -1, 1, -1])
    (folder / "CelebA-HQ-to-CelebA-mapping.txt").write_text(MAPPING)
    for number in range(3):
        picture(folder / "CelebA-HQ-img" / name.format(number + first), 100 + number)
    return folder


def test_hq_pictures_have_the_labels_of_what_they_were_made_from(tmp_path):
    source = opened_hq(celeba_hq_folder(tmp_path))
    assert [record.key for record in source.records] == ["000001", "000004", "000005"]
    assert [record.identity for record in source.records] == ["7", "10", "10"]
    assert [record.label for record in source.records] == [1, 0, 1]
    assert np.allclose([source.read(i)[0, 0, 0] for i in range(3)], [101, 102, 100], atol=3)
    assert source.where(0).endswith("1.jpg")


def test_hq_copies_numbered_from_one_with_zeros(tmp_path):
    celeba_hq_folder(tmp_path, first=1, name="{:05d}.png")
    with pytest.raises(InputError, match=r"00003\.png: .*no line for picture 3\. Are they numbered from 1"):
        opened_hq(tmp_path)
    source = opened_hq(tmp_path, numbered_from=1)
    assert [source.read(i)[0, 0, 0] for i in range(3)] == [101, 102, 100]


def test_hq_labels_may_lie_with_celeba(tmp_path):
    celeba_hq_folder(tmp_path / "hq")
    celeba_tables(tmp_path / "celeba" / "Anno", [7, 7, 7, 10, 10, 2], [1, -1, 1, -1, 1, -1])
    for name in ("identity_CelebA.txt", "list_attr_celeba.txt"):
        (tmp_path / "hq" / name).unlink()
    (tmp_path / "hq" / "CelebA-HQ-img").rename(tmp_path / "hq" / "data256")
    source = opened_hq(tmp_path / "hq", images="data256", celeba=tmp_path / "celeba", label="Male")
    assert [record.label for record in source.records] == [1, 0, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "CelebA-HQ-img").rename(folder / "x"), "CelebA-HQ-img is missing"),
        (lambda folder: (folder / "CelebA-HQ-to-CelebA-mapping.txt").unlink(), "mapping.txt is missing"),
        (lambda folder: picture(folder / "CelebA-HQ-img" / "face.jpg"), "expected a number as the file's name"),
        (lambda folder: picture(folder / "CelebA-HQ-img" / "00001.jpg"), "are both picture 1"),
        (lambda folder: picture(folder / "CelebA-HQ-img" / "17.jpg"), "has no line for picture 17"),
        (lambda folder: (folder / "CelebA-HQ-img" / "2.jpg").unlink(), r"lacks 1 of 3 listed pictures, 000004\.jpg"),
    ],
)
def test_hq_trees_that_do_not_fit(tmp_path, change, words):
    change(celeba_hq_folder(tmp_path))
    with pytest.raises(InputError, match=words):
        opened_hq(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 4 000005.jpg\n", "line 1: expected the heading idx orig_idx orig_file"),
        (MAPPING + "3 x 000006.jpg\n", "line 5: expected two numbers and a file name, got '3 x 000006.jpg'"),
        (MAPPING + "1 2 000003.jpg\n", "line 5: picture 1 was listed before"),
        (MAPPING.replace("000004", "000044"), r"2\.jpg has no label: .*no line for 000044\.jpg"),
    ],
)
def test_malformed_mappings_name_the_line(tmp_path, text, words):
    (celeba_hq_folder(tmp_path) / "CelebA-HQ-to-CelebA-mapping.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        opened_hq(tmp_path)
