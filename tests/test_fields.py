import io

import numpy as np
import pytest

from xinv.data.fields import FieldSchema, codec, decode, encode, schema_of
from xinv.errors import InputError

MAP = FieldSchema(dtype="float32", shape=(2, 3, 4))


def test_codec_is_the_last_part_of_the_name():
    assert (codec("png"), codec("json"), codec("prediction.npy")) == ("png", "json", "npy")
    for name in ("pkl", "pyd", "pth", "npz", "jpg", "prediction.npy.gz", ""):
        with pytest.raises(InputError, match="known kinds are png, json, npy"):
            codec(name)


def test_arrays_come_back_writable_and_in_native_order():
    value = np.arange(24, dtype=">f4").reshape(2, 3, 4)
    found = decode("map.npy", encode("map.npy", value), MAP)
    np.testing.assert_array_equal(found, value)
    assert found.dtype == np.float32 and found.flags.writeable and found.flags.c_contiguous
    turned = np.asfortranarray(value)
    assert encode("map.npy", turned) == encode("map.npy", value)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_arrays_written_by_others_are_read(version):
    value = np.arange(24, dtype="<f4").reshape(2, 3, 4)
    stream = io.BytesIO()
    np.lib.format.write_array(stream, value, version=version)
    np.testing.assert_array_equal(decode("map.npy", stream.getvalue(), MAP), value)


def saved(value: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (saved(np.zeros((2, 3, 4), np.float64)), "dtype float64"),
        (saved(np.zeros((2, 3, 5), np.float32)), r"shape \(2, 3, 5\)"),
        (saved(np.asfortranarray(np.zeros((2, 3, 4), np.float32))), "Fortran order"),
        (saved(np.full((2, 3, 4), None)), "dtype object"),
        (saved(np.zeros((2, 3, 4), np.float32))[:-1], "not 96"),
        (saved(np.zeros((2, 3, 4), np.float32)) + b"x", "not 96"),
        (saved(np.zeros((2, 3, 4), np.float32)).replace(b"(2", b"((", 1), "no readable .npy header"),
        (b"", "no readable .npy header"),
        (b"PK\x03\x04", "no readable .npy header"),
    ],
)
def test_arrays_that_are_not_what_the_schema_says(data, message):
    with pytest.raises(ValueError, match=message):
        decode("map.npy", data, MAP)


@pytest.mark.parametrize("data", [b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_json_that_is_no_object(data):
    with pytest.raises(ValueError, match=r"JSON|Expecting|decode"):
        decode("json", data, FieldSchema(dtype="json", shape=()))


def test_json_cannot_hold_nan():
    with pytest.raises(ValueError, match="JSON compliant"):
        encode("json", {"age": float("nan")})


def test_pictures_that_are_not_what_the_schema_says():
    gray = encode("png", np.zeros((4, 5, 1), dtype=np.uint8))
    with pytest.raises(ValueError, match="a L picture of 5x4"):
        decode("png", gray, FieldSchema(dtype="uint8", shape=(4, 5, 3)))
    with pytest.raises(ValueError, match="no readable PNG"):
        decode("png", gray[:-20], FieldSchema(dtype="uint8", shape=(4, 5, 1)))
    with pytest.raises(ValueError, match="no readable PNG"):
        decode("png", b"GIF89a", FieldSchema(dtype="uint8", shape=(4, 5, 1)))


def test_schema_of_a_sample():
    sample = {"__key__": "a", "png": np.zeros((4, 5), np.uint8), "json": {}, "prediction.npy": np.zeros(3, np.float32)}
    assert schema_of(sample, {"prediction.npy": "logits"}) == {
        "png": FieldSchema(dtype="uint8", shape=(4, 5, 1)),
        "json": FieldSchema(dtype="json", shape=()),
        "prediction.npy": FieldSchema(dtype="float32", shape=(3,), units="logits"),
    }
