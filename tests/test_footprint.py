"""Bytes on disk foretold from a schema, against shards that were written."""

import tarfile

import numpy as np
import pytest
from test_formats import EVERY, maps

from xinv.data.fields import FieldSchema, schema_of
from xinv.data.footprint import bytes_per_image
from xinv.data.index import Index
from xinv.data.shards import write_shard
from xinv.release.formats import FormatSettings, release, stored


def test_it_is_what_shards_take(tiny_images, tiny_releases):
    """To the byte, but for what a shard's end takes; of PNGs the share is the only guess."""
    for folder in (tiny_images, tiny_releases):
        index = Index.load(folder)
        (entry, *_) = index.partitions["attack"]
        each = bytes_per_image(index.fields, png_share=0.9)
        assert set(each) == set(index.fields)
        assert 0 <= entry.bytes - entry.samples * sum(each.values()) < tarfile.RECORDSIZE + 1024


@pytest.mark.parametrize("form", EVERY, ids=lambda form: form.name)
@pytest.mark.parametrize("colours", [1, 3])
def test_what_a_format_stores_is_foretold(tmp_path, form: FormatSettings, colours: int):
    released = release(form, maps(2, 3, 14, 19), colours)
    schema = stored(form, (3, 14, 19), colours)
    assert (schema.dtype, schema.shape) == (released.dtype.name, released.shape[1:])
    samples = [{"__key__": f"{row}", "map.npy": released[row]} for row in range(2)]
    assert schema_of(samples[0])["map.npy"].shape == schema.shape
    size = write_shard(tmp_path / "000000.tar", samples).bytes
    assert 0 <= size - 2 * bytes_per_image({"map.npy": schema})["map.npy"] < tarfile.RECORDSIZE + 1024


@pytest.mark.parametrize(
    ("form", "gigabytes"),
    [
        (FormatSettings(name="raw"), 798),
        (FormatSettings(name="top_k", share=0.1), 798),
        (FormatSettings(name="uint8"), 231),
        (FormatSettings(name="heat_map"), 231),
        (FormatSettings(name="down_sample", factor=4), 90),
        (FormatSettings(name="down_sample", factor=8), 54),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_thirty_thousand_faces_of_1024_px(form: FormatSettings, gigabytes: float):
    """What docs/scale.md says of 30,000 colour images with gradient, LRP and Grad-CAM."""
    fields = {
        "png": FieldSchema(dtype="uint8", shape=(1024, 1024, 3)),
        "json": FieldSchema(dtype="json", shape=()),
        "prediction.npy": FieldSchema(dtype="float32", shape=(2,)),
        "gradient.npy": stored(form, (3, 1024, 1024), 3),
        "lrp_zplus.npy": stored(form, (3, 1024, 1024), 3),
        "grad_cam.npy": stored(form, (1, 8, 8)),
    }
    found = bytes_per_image(fields)
    assert round(30_000 * sum(found.values()) / 1e9) == gigabytes
    assert found["grad_cam.npy"] <= 1024 and np.isclose(found["png"], 0.45 * 3 * 2**20, rtol=1e-3)
