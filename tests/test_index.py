"""The index of a set: what it takes for one, and what it refuses."""

import pytest
from damage import edit_index

from xinv.data.index import Index
from xinv.data.shards import read_shard, verify
from xinv.errors import InputError


def test_unknown_partition(tiny_images):
    with pytest.raises(InputError, match="no partition 'test' in this set; it has target, "):
        read_shard(tiny_images, Index.load(tiny_images), "test", 0)


def test_index_cannot_ask_for_pickles(own_images):
    edit_index(own_images, lambda index: index["fields"].update(pkl={"dtype": "float32", "shape": [1], "units": ""}))
    with pytest.raises(InputError, match=r"index\.json is no valid index: .*\.pkl is of no known kind"):
        Index.load(own_images)
    assert len(verify(own_images)) == 1


def test_folder_without_an_index(tmp_path):
    (line,) = verify(tmp_path)
    assert "holds no finished set of shards" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.update(version=2), "version"),
        (lambda index: index.update(surprise=1), "surprise"),
        (lambda index: index["partitions"].update({"../up": []}), "no name for a partition"),
        (lambda index: index["partitions"]["attack"][0].update(sha256="00"), "sha256"),
        (lambda index: index["partitions"]["attack"][0].update(samples=0), "samples"),
        (lambda index: index["fields"].pop("json"), "needs the fields json"),
    ],
)
def test_index_that_makes_no_sense(own_images, change, message):
    edit_index(own_images, change)
    with pytest.raises(InputError, match=message):
        Index.load(own_images)


def test_index_that_is_no_json(own_images):
    (own_images / "index.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        Index.load(own_images)
