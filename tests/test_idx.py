import gzip

import numpy as np
import pytest
from trees import idx_folder, shared, write_idx

from xinv.data.idx import IdxSettings, open_idx
from xinv.errors import InputError


def opened(folder, **more):
    return open_idx(IdxSettings(kind="idx", folder=folder, **more))


def test_training_and_test_images_are_joined_in_order(tmp_path):
    source = opened(idx_folder(tmp_path))
    assert [record.key for record in source.records] == [f"{i:08d}" for i in range(10)]
    assert [record.label for record in source.records] == [0, 1, 2] * 3 + [0]
    assert all(record.identity == record.key for record in source.records)
    assert source.label_names == ("0", "1", "2") and not source.synthetic
    assert source.read(7).shape == (3, 5, 1) and source.read(7).dtype == np.uint8
    assert [source.read(i)[0, 0, 0] for i in range(10)] == list(range(10))


def test_plain_files_are_the_same_source_as_packed_ones(tmp_path):
    packed, plain = opened(idx_folder(tmp_path / "a")), opened(idx_folder(tmp_path / "b", suffix=""))
    assert packed.fingerprint == plain.fingerprint
    other = idx_folder(tmp_path / "c")
    write_idx(other / "t10k-labels-idx1-ubyte.gz", np.array([0, 0, 0, 0]))
    assert opened(other).fingerprint != packed.fingerprint


def test_names_with_a_dot_are_found_too(tmp_path):
    idx_folder(tmp_path, suffix="")
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert len(opened(tmp_path).records) == 10


def test_labels_have_the_names_that_are_given(tmp_path):
    assert opened(idx_folder(tmp_path), label_names=["shirt", "shoe", "bag"]).label_names == ("shirt", "shoe", "bag")
    with pytest.raises(InputError, match="labels go up to 2, and label_names has 2 names; give 3 names"):
        opened(tmp_path, label_names=["shirt", "shoe"])


def test_a_missing_file_says_how_to_get_it(tmp_path):
    idx_folder(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        InputError, match=r"t10k-labels-idx1-ubyte\.gz is missing.*xinv data fetch mnist.*docs/data\.md"
    ):
        opened(tmp_path)


def damage(path, how):
    data = gzip.decompress(path.read_bytes())
    if how == "cut packed":
        path.write_bytes(path.read_bytes()[:-6])
    elif how == "cut":
        path.write_bytes(gzip.compress(data[:-1]))
    elif how == "long":
        path.write_bytes(gzip.compress(data + b"\0"))
    elif how == "header":
        path.write_bytes(gzip.compress(data[:9]))
    elif how == "empty":
        path.write_bytes(gzip.compress(b""))
    elif how == "floats":
        path.write_bytes(gzip.compress(data[:2] + b"\x0d" + data[3:]))
    else:
        path.write_bytes(b"<html>not found</html>")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut packed", "cannot be unpacked"),
        ("cut", "holds 105 bytes, and its header announces 106"),
        ("long", "holds 107 bytes, and its header announces 106"),
        ("header", "holds 9 bytes, and that is less than its header"),
        ("empty", "begins with nothing, expected 00 00 08 03"),
        ("floats", "begins with 00 00 0d 03, expected 00 00 08 03"),
        ("page", "cannot be unpacked"),
    ],
)
def test_damaged_files_are_named(tmp_path, how, words):
    damage(idx_folder(tmp_path) / "train-images-idx3-ubyte.gz", how)
    with pytest.raises(InputError, match=rf"train-images-idx3-ubyte\.gz.*{words}"):
        opened(tmp_path)


def test_labels_in_place_of_images_are_refused(tmp_path):
    idx_folder(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").replace(tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(InputError, match="is no IDX file of images"):
        opened(tmp_path)


def test_files_of_two_sets_are_refused(tmp_path):
    idx_folder(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.zeros(5))
    with pytest.raises(InputError, match="the t10k files do not belong together, one has 4 images and the other 5"):
        opened(tmp_path)
    idx_folder(tmp_path)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", np.zeros((4, 5, 5)))
    with pytest.raises(InputError, match="train images are 5x3 px and the t10k images 5x5 px"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_published_sets(name):
    source = opened(shared(name))
    counts = np.bincount([record.label for record in source.records])
    assert len(source.records) == 70_000 and len(source.label_names) == 10
    assert counts.tolist() == (
        [7000] * 10 if name == "fashion_mnist" else [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]
    )
    assert source.read(69_999).shape == (28, 28, 1)
