import hashlib

import numpy as np
import pytest
from trees import shared

from xinv.data.npz import LfwEmotionSettings, NpzSettings, open_lfw_emotion, open_npz
from xinv.errors import InputError

IMAGES = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)


def packed(path, **arrays):
    np.savez(path, **arrays)
    return path


def opened(path, **more):
    return open_npz(NpzSettings(kind="npz", file=path, **more))


def test_numbers_name_themselves_and_identities_are_optional(tmp_path):
    path = packed(tmp_path / "a.npz", images=IMAGES, labels=np.array([0, 1, 0, 1, 2, 2]))
    source = opened(path)
    assert [record.label for record in source.records] == [0, 1, 0, 1, 2, 2]
    assert source.label_names == ("0", "1", "2")
    assert source.records[4].key == source.records[4].identity == "00000004"
    assert source.read(4).shape == (4, 4, 1) and (source.read(4)[:, :, 0] == IMAGES[4]).all()
    assert source.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.where(4) == f"{path}, image 4"


def test_arrays_of_any_name_with_names_for_labels_and_people(tmp_path):
    path = packed(
        tmp_path / "a.npz",
        x=np.repeat(IMAGES[..., None], 3, axis=3),
        y=np.array(["sad", "glad", "sad", "glad", "sad", "sad"]),
        who=np.array([1, 1, 0, 0, 1, 0], dtype=np.int16),
        people=np.array(["Ann", "Bob"]),
    )
    source = opened(path, images="x", labels="y", identities="who", identity_names="people")
    assert source.label_names == ("glad", "sad") and [record.label for record in source.records] == [1, 0, 1, 0, 1, 1]
    assert [record.identity for record in source.records] == ["Bob", "Bob", "Ann", "Ann", "Bob", "Ann"]
    assert source.read(0).shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("arrays", "settings", "words"),
    [
        ({}, {"images": "pictures"}, "has no array 'pictures'; it has images, labels"),
        ({"images": IMAGES / 255}, {}, r"images is float64 of shape \(6, 4, 4\); expected uint8"),
        ({"images": IMAGES.reshape(6, 1, 4, 4)}, {}, r"shape \(6, 1, 4, 4\).*\(N, H, W, 3\)"),
        ({"labels": np.zeros(5, int)}, {}, r"labels is int64 of shape \(5,\); expected .* shape \(6,\)"),
        ({"labels": np.zeros(6)}, {}, "labels is float64"),
        ({"labels": np.array([0, 1, -1, 0, 1, 0])}, {}, "image 2 has labels -1; expected 0 to 1"),
        ({"names": np.array(["a"])}, {"label_names": "names"}, "image 1 has labels 1; expected 0 to 0"),
        ({"labels": np.zeros(6, int)}, {}, "at least two labels"),
        ({"labels": np.array([{}] * 6)}, {}, "labels holds Python objects, which are never loaded"),
        (
            {"labels": np.array(list("ababab")), "names": np.array(["a", "b"])},
            {"label_names": "names"},
            "names already",
        ),
    ],
)
def test_wrong_arrays_are_named(tmp_path, arrays, settings, words):
    path = packed(tmp_path / "a.npz", **{"images": IMAGES, "labels": np.array([0, 1, 0, 1, 0, 1]), **arrays})
    with pytest.raises(InputError, match=words):
        opened(path, **settings)


def test_files_that_are_no_npz(tmp_path):
    with pytest.raises(InputError, match=r"a\.npz is missing"):
        opened(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", IMAGES)
    with pytest.raises(InputError, match="is a single array"):
        opened(tmp_path / "a.npy")
    (tmp_path / "b.npz").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"b\.npz is no \.npz file"):
        opened(tmp_path / "b.npz")
    path = packed(tmp_path / "c.npz", images=IMAGES, labels=np.array([0, 1, 0, 1, 0, 1]))
    data = bytearray(path.read_bytes())
    data[data.index(IMAGES.tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"c\.npz: images cannot be read"):
        opened(path)


@pytest.fixture
def lfw(tmp_path):
    return packed(
        tmp_path / "lfw.npz",
        images=IMAGES,
        emotion=np.array([0, 1, 2, 1, 0, 3], dtype=np.uint8),
        emotion_names=np.array(["neutral", "happiness", "anger", "unlabelled"]),
        identity=np.array([0, 0, 1, 1, 1, 0], dtype=np.int16),
        identity_names=np.array(["Ann", "Bob"]),
    )


def test_emotions_are_kept_in_the_order_asked(lfw):
    source = open_lfw_emotion(LfwEmotionSettings(kind="lfw_emotion", file=lfw, emotions=["happiness", "neutral"]))
    assert source.label_names == ("happiness", "neutral")
    assert [(record.key[-1], record.label, record.identity) for record in source.records] == [
        ("0", 1, "Ann"),
        ("1", 0, "Ann"),
        ("3", 0, "Bob"),
        ("4", 1, "Bob"),
    ]
    assert (source.read(2)[:, :, 0] == IMAGES[3]).all() and source.where(2).endswith("image 3")


def test_without_a_choice_every_labelled_image_is_kept(lfw):
    source = open_lfw_emotion(LfwEmotionSettings(kind="lfw_emotion", file=lfw))
    assert source.label_names == ("neutral", "happiness", "anger") and len(source.records) == 5


def test_unknown_emotions_list_the_known_ones(lfw):
    with pytest.raises(InputError, match="no emotion 'joy'; its emotions are neutral, happiness, anger"):
        open_lfw_emotion(LfwEmotionSettings(kind="lfw_emotion", file=lfw, emotions=["joy", "anger"]))
    with pytest.raises(InputError, match="one emotion twice"):
        open_lfw_emotion(LfwEmotionSettings(kind="lfw_emotion", file=lfw, emotions=["anger", "anger"]))


def test_the_real_faces():
    path = shared("lfw_emotion/lfw_emotion_64.npz")
    source = open_lfw_emotion(LfwEmotionSettings(kind="lfw_emotion", file=path, emotions=["neutral", "happiness"]))
    assert np.bincount([record.label for record in source.records]).tolist() == [6713, 5306]
    assert source.read(0).shape == (64, 64, 1)
