import io
import zipfile

import numpy as np
import pytest
from PIL import Image
from trees import picture

from xinv.data.pictures import decode, open_pictures
from xinv.errors import InputError


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def test_pictures_are_listed_in_order_and_read_one_by_one(tmp_path):
    picture(tmp_path / "b" / "2.PNG", 20)
    picture(tmp_path / "b" / "10.jpg", 10)
    picture(tmp_path / "a" / "1.png", 30, mode="L")
    picture(tmp_path / ".thumbs" / "1.png")
    picture(tmp_path / "a" / "._1.png")
    (tmp_path / "notes.txt").write_text("no image")
    pictures = open_pictures(tmp_path)
    assert list(pictures.stamps) == ["a/1.png", "b/10.jpg", "b/2.PNG"]
    assert pictures.read("a/1.png").shape == (24, 20, 1) and pictures.read("b/2.PNG").shape == (24, 20, 3)
    assert pictures.read("b/2.PNG")[0, 0].tolist() == [20, 0, 235]
    assert pictures.where("b/2.PNG") == str(tmp_path / "b" / "2.PNG")


def test_the_listing_changes_with_names_and_sizes(tmp_path):
    picture(tmp_path / "1.png", 30)
    first = open_pictures(tmp_path).listing()
    assert open_pictures(tmp_path).listing() == first
    (tmp_path / "1.png").rename(tmp_path / "2.png")
    assert open_pictures(tmp_path).listing() != first
    (tmp_path / "2.png").rename(tmp_path / "1.png")
    picture(tmp_path / "1.png", 30, (200, 240))
    assert open_pictures(tmp_path).listing() != first


def test_a_zip_is_read_in_place(tmp_path):
    file = picture(tmp_path / "1.png", 40)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(file, "set/1.png")
        archive.write(file, "__MACOSX/set/._1.png")
        archive.writestr("set/readme.txt", "no image")
    pictures = open_pictures(tmp_path / "set.zip")
    assert list(pictures.stamps) == ["set/1.png"]
    assert pictures.read("set/1.png")[0, 0].tolist() == [40, 0, 215]
    data = bytearray((tmp_path / "set.zip").read_bytes())
    data[data.index(b"IDAT") + 8] ^= 1
    (tmp_path / "set.zip").write_bytes(data)
    with pytest.raises(InputError, match=r"set\.zip: member set/1\.png cannot be read"):
        open_pictures(tmp_path / "set.zip").read("set/1.png")


def test_places_without_pictures(tmp_path):
    with pytest.raises(InputError, match="holds no image files"):
        open_pictures(tmp_path)
    (tmp_path / "set.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"is no folder and no readable \.zip"):
        open_pictures(tmp_path / "set.zip")


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "1.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(InputError, match=r"1\.png is a link to a file that is not there"):
        open_pictures(tmp_path)


def test_a_picture_that_vanished_is_named(tmp_path):
    path = picture(tmp_path / "1.png")
    pictures = open_pictures(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"1\.png was listed and cannot be read now"):
        pictures.read("1.png")


def test_every_kind_of_pixels_becomes_gray_or_colour():
    ramp = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    colour = Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))
    assert (decode(encoded(ramp), "x")[:, :, 0] == np.asarray(ramp)).all()
    assert (decode(encoded(colour), "x") == np.asarray(colour)).all()
    assert decode(encoded(ramp.convert("1")), "x").shape == (8, 8, 1)
    assert decode(encoded(colour.convert("P")), "x").shape == (8, 8, 3)
    assert decode(encoded(colour.convert("CMYK"), "JPEG"), "x").shape == (8, 8, 3)
    assert (decode(encoded(colour.convert("RGBA")), "x") == np.asarray(colour)).all()
    assert decode(encoded(ramp.convert("LA")), "x").shape == (8, 8, 1)


def test_photographs_are_turned_upright():
    tall = Image.new("RGB", (4, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    assert decode(encoded(tall, "JPEG", exif=exif), "x").shape == (4, 8, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as an image .empty"),
        (b"GIF89a, or so", "not one of BMP, JPEG"),
        (encoded(Image.new("RGB", (64, 64), (9, 8, 7)), "JPEG")[:-40], "truncated"),
        (encoded(Image.effect_noise((64, 64), 50))[:-900], "cannot be read as an image"),
        (encoded(Image.new("I;16", (8, 8))), "I;16; expected 8 bits a channel"),
        (encoded(Image.new("RGBA", (8, 8), (1, 2, 3, 128))), "is transparent in places"),
    ],
)
def test_damaged_and_unfit_pictures_are_named(content, words):
    with pytest.raises(InputError, match=rf"a/7\.png.*{words}"):
        decode(content, "a/7.png")
