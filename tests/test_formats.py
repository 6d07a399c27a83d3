"""Release formats: values and bytes worked out by hand, what each loses, and that each is a function of its image."""

import itertools

import numpy as np
import pytest
from pydantic import ValidationError

from xinv.data.fields import FieldSchema
from xinv.data.index import Index
from xinv.errors import InputError
from xinv.release.formats import (
    COLOURS,
    FORMATS,
    FormatSettings,
    bytes_per_image,
    decode,
    kept,
    palette,
    release,
    released_bytes,
    units,
)

X = np.array([[-1.0, 0.0], [1.0, 3.0]], dtype=np.float32)[None, None]


def settings(name: str, **more: object) -> FormatSettings:
    return FormatSettings.model_validate({"name": name, **more})


def maps(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, shape).astype(np.float32)


EVERY = [
    settings("raw"),
    settings("minmax"),
    settings("minmax", absolute=True),
    settings("uint8"),
    settings("bits", bits=3),
    settings("bits", bits=11),
    settings("top_k", share=0.3),
    settings("down_sample", factor=3),
    settings("heat_map", colours="blue_red"),
]


def test_raw_is_what_it_was() -> None:
    map_BMhw = maps(2, 3, 4, 5)
    found = release(settings("raw"), map_BMhw)
    assert found.dtype == np.float32
    assert found.tobytes() == map_BMhw.tobytes()
    assert decode(found).tobytes() == map_BMhw.tobytes()
    assert FormatSettings() == settings("raw")


def test_minmax_by_hand() -> None:
    np.testing.assert_array_equal(release(settings("minmax"), X)[0, 0], [[0, 0.25], [0.5, 1]])
    np.testing.assert_array_equal(
        release(settings("minmax", absolute=True), X)[0, 0], np.float32([[1 / 3, 0], [1 / 3, 1]])
    )
    # Each channel of each image by itself; one that is constant, or as large as a float can be, stays finite.
    extreme = np.float32([[[[7, 7]], [[-3e38, 3e38]]], [[[0, 2]], [[5, 1]]]])
    np.testing.assert_array_equal(release(settings("minmax"), extreme), [[[[0, 0]], [[0, 1]]], [[[0, 1]], [[1, 0]]]])


def test_eight_bits_by_hand() -> None:
    found = release(settings("uint8"), X)
    assert found.dtype == np.uint8
    assert found[0, 0].tolist() == [[0, 64], [128, 255]]  # 63.75 and 127.5, rounded to even
    np.testing.assert_allclose(decode(found)[0, 0], [[0, 64 / 255], [128 / 255, 1]], rtol=1e-6)
    assert np.array_equal(found, release(settings("bits", bits=8), X))


def test_few_and_many_bits_by_hand() -> None:
    assert release(settings("bits", bits=1), X)[0, 0].tolist() == [[0, 0], [0, 255]]
    assert release(settings("bits", bits=2), X)[0, 0].tolist() == [[0, 85], [170, 255]]
    found = release(settings("bits", bits=16), X)
    assert found.dtype == np.uint16
    assert found[0, 0].tolist() == [[0, 16384], [32768, 65535]]
    assert decode(found).max() == 1.0


def test_each_bit_halves_the_error_and_no_level_is_lost() -> None:
    map_BMhw = maps(4, 1, 32, 32)
    exact = release(settings("minmax"), map_BMhw)
    errors = []
    for bits in range(1, 17):
        found = release(settings("bits", bits=bits), map_BMhw)
        assert (
            len(
                np.unique(
                    release(settings("bits", bits=bits), np.float32(np.linspace(0, 1, 2**17)).reshape(1, 1, 1, -1))
                )
            )
            == 2**bits
        )
        error = np.abs(decode(found) - exact).max()
        step = 1 / (2**bits - 1)
        assert error <= step / 2 + 0.5 / (255 if bits <= 8 else 65535) + 1e-6
        errors.append(float(np.abs(decode(found) - exact).mean()))
    assert all(more < less for less, more in itertools.pairwise(errors))


def test_top_k_by_hand() -> None:
    assert release(settings("top_k", share=0.25), X)[0, 0].tolist() == [[0, 0], [0, 3]]
    assert release(settings("top_k", share=0.5), X)[0, 0].tolist() == [[-1, 0], [0, 3]]  # of two magnitudes the first
    assert np.array_equal(release(settings("top_k", share=1.0), X), X)
    # The largest of all channels together.
    both = np.concatenate([X, 10 * X], axis=1)
    assert release(settings("top_k", share=0.25), both)[0].tolist() == [[[0, 0], [0, 0]], [[-10, 0], [0, 30]]]
    equal = release(settings("top_k", share=0.5), np.full((1, 1, 50, 40), -2.0, dtype=np.float32))
    assert (equal[0, 0, :25] == -2).all() and (equal[0, 0, 25:] == 0).all()
    assert kept((1, 10, 10), settings("top_k", share=0.07)) == 7  # and not 8, because 0.07 * 100 is a little more
    assert kept((1, 1, 2), settings("top_k", share=1e-9)) == 1


def test_more_kept_less_lost() -> None:
    map_BMhw = maps(3, 2, 8, 8)
    lost = [
        float(np.square(map_BMhw - release(settings("top_k", share=share), map_BMhw)).sum())
        for share in (0.01, 0.1, 0.5, 0.9, 1.0)
    ]
    assert lost == sorted(lost, reverse=True) and lost[-1] == 0


def test_down_sampling_by_hand() -> None:
    assert release(settings("down_sample", factor=2), X)[0, 0].tolist() == [[0.75]]
    rows = np.arange(15, dtype=np.float32).reshape(1, 1, 3, 5)
    # Blocks at the far edges are smaller: their means are over what is there.
    expected = [[(0 + 1 + 5 + 6) / 4, (2 + 3 + 7 + 8) / 4, (4 + 9) / 2], [(10 + 11) / 2, (12 + 13) / 2, 14]]
    assert release(settings("down_sample", factor=2), rows)[0, 0].tolist() == expected
    assert release(settings("down_sample", factor=99), rows)[0, 0].tolist() == [[7.0]]
    assert np.array_equal(release(settings("down_sample", factor=1), rows), rows)


@pytest.mark.parametrize("name", COLOURS)
def test_heat_maps_take_their_colours_from_the_map(name: str) -> None:
    colours = palette(name)
    assert colours.shape == (256, 3) and colours.dtype == np.uint8
    assert len({tuple(colour) for colour in colours.tolist()}) > 250
    found = release(settings("heat_map", colours=name), X)
    assert found.shape == (1, 3, 2, 2) and found.dtype == np.uint8
    for place, level in (((0, 0), 0), ((0, 1), 64), ((1, 0), 128), ((1, 1), 255)):
        assert found[0, :, place[0], place[1]].tolist() == colours[level].tolist()


def test_ends_of_the_colour_maps() -> None:
    assert palette("grey")[[0, 100, 255]].tolist() == [[0, 0, 0], [100, 100, 100], [255, 255, 255]]
    jet = palette("jet").astype(int)
    assert jet[0].argmax() == 2 and jet[255].argmax() == 0 and jet[128].argmax() == 1
    blue_red = palette("blue_red").astype(int)
    assert blue_red[0].argmax() == 2 and blue_red[255].argmax() == 0 and np.ptp(blue_red[128]) < 10


def test_a_heat_map_shows_the_sum_of_an_images_colours_and_other_channels_alone() -> None:
    map_BMhw = maps(2, 6, 4, 4)
    together = release(settings("heat_map"), map_BMhw, colours=3)
    assert together.shape == (2, 6, 4, 4)
    sums = map_BMhw.reshape(2, 2, 3, 4, 4).sum(axis=2)
    assert np.array_equal(together, release(settings("heat_map"), sums))
    assert release(settings("heat_map"), map_BMhw).shape == (2, 18, 4, 4)
    magnitudes = release(settings("heat_map", absolute=True), map_BMhw, colours=3)
    assert np.array_equal(
        magnitudes, release(settings("heat_map"), np.abs(map_BMhw).reshape(2, 2, 3, 4, 4).sum(axis=2))
    )
    # No other format looks at colours.
    assert np.array_equal(release(settings("uint8"), map_BMhw, colours=3), release(settings("uint8"), map_BMhw))


@pytest.mark.parametrize("form", EVERY, ids=lambda form: form.name)
def test_a_map_is_released_the_same_alone_in_a_batch_and_again(form: FormatSettings) -> None:
    map_BMhw = maps(4, 2, 7, 9)
    before = map_BMhw.copy()
    together = release(form, map_BMhw)
    assert together.tobytes() == release(form, map_BMhw).tobytes()
    assert together.flags.c_contiguous
    assert np.array_equal(map_BMhw, before)
    for row in range(4):
        assert np.array_equal(release(form, map_BMhw[row : row + 1])[0], together[row])
    found = decode(together)
    assert found.dtype == np.float32 and np.isfinite(found).all()
    if together.dtype != np.float32 or form.name == "minmax":
        assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize(
    ("form", "shape", "expected"),
    [
        (settings("raw"), (3, 32, 32), 4 * 3072),
        (settings("minmax"), (1, 8, 8), 4 * 64),
        (settings("uint8"), (1, 8, 8), 64),
        (settings("bits", bits=4), (1, 8, 8), 32),
        (settings("bits", bits=3), (1, 3, 3), 4),  # 27 bits
        (settings("bits", bits=12), (1, 8, 8), 96),
        (settings("top_k", share=0.1), (1, 32, 32), 541),  # 103 values of 32 bits and places of 10 bits: 4,326 bits
        (settings("top_k", share=1.0), (1, 1, 1), 4),  # the only place needs no number
        (settings("down_sample", factor=4), (1, 32, 32), 4 * 64),
        (settings("down_sample", factor=3), (2, 8, 7), 4 * 2 * 9),
        (settings("heat_map"), (1, 8, 8), 64),  # one of 256 colours a place
    ],
)
def test_bytes_of_an_image(form: FormatSettings, shape: tuple[int, int, int], expected: int) -> None:
    assert bytes_per_image(form, shape) == expected


def test_bytes_of_a_heat_map_count_the_picture_once() -> None:
    assert bytes_per_image(settings("heat_map"), (6, 8, 8), colours=3) == 2 * 64
    assert bytes_per_image(settings("uint8"), (6, 8, 8), colours=3) == 6 * 64


def release_index(made_by: dict[str, object]) -> Index:
    fields = {
        "prediction.npy": FieldSchema(dtype="float32", shape=(10,)),
        "gradient.npy": FieldSchema(dtype="uint8", shape=(1, 32, 32)),
    }
    return Index(kind="releases", made_by=made_by, fields=fields, partitions={})


def test_released_bytes_of_a_set() -> None:
    index = release_index({"bytes_per_image": {"gradient": 512}})
    assert released_bytes(index, ()) == 40
    assert released_bytes(index, ("gradient",)) == 40 + 512
    with pytest.raises(InputError, match="holds no 'grad_cam'; it has prediction, gradient"):
        released_bytes(index, ("grad_cam",))
    assert released_bytes(release_index({}), ("gradient",)) == 40 + 1024  # of a set older than formats


def test_parameters_that_a_format_does_not_read_are_refused() -> None:
    with pytest.raises(
        ValidationError, match=r"the format uint8 has no bits; it has absolute\. Formats with bits: bits"
    ):
        settings("uint8", bits=4)
    with pytest.raises(ValidationError, match="the format raw has no share; it has no parameters"):
        settings("raw", share=0.5)
    for wrong in ({"bits": 0}, {"bits": 17}):
        with pytest.raises(ValidationError):
            settings("bits", **wrong)
    with pytest.raises(ValidationError):
        settings("jpeg")
    # What is written out with every default is read back.
    for form in EVERY:
        assert FormatSettings.model_validate(form.model_dump(mode="json")) == form


def test_every_format_says_what_its_numbers_are() -> None:
    assert set(FORMATS) == {form.name for form in EVERY}
    assert units(settings("raw"), "logit") == "logit"
    for form in EVERY[1:]:
        assert "logit" in units(form, "logit") and units(form, "logit") != "logit"
