import numpy as np
from PIL import Image

from xinv.data import sheet
from xinv.data.index import Index
from xinv.data.shards import read_shard
from xinv.data.sheet import colours, contact_sheet


def test_contact_sheet_shows_the_images(tiny_images, tmp_path):
    contact_sheet(tiny_images, tmp_path / "sheet.png", rows=1)
    with Image.open(tmp_path / "sheet.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    first = read_shard(tiny_images, Index.load(tiny_images), "target", 0)[0]["png"]
    top, left = sheet.GAP + sheet.TITLE, sheet.GAP
    tile = pixels[top : top + sheet.TILE, left : left + sheet.TILE, 0]
    centre = (np.arange(16) * sheet.TILE + sheet.TILE // 2) // 16
    np.testing.assert_array_equal(tile[np.ix_(centre, centre)], first[:, :, 0])


def test_contact_sheet_of_releases(tiny_releases, tmp_path):
    contact_sheet(tiny_releases, tmp_path / "sheet.png", rows=2)
    with Image.open(tmp_path / "sheet.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    blue = pixels[:, :, 2].astype(int) - pixels[:, :, 0]
    top, step = sheet.GAP + 2 * sheet.TITLE, sheet.TILE + sheet.GAP
    gradient, grad_cam = (blue[top : top + sheet.TILE, sheet.GAP + place * step :][:, : sheet.TILE] for place in (1, 2))
    assert gradient.max() > 40 and gradient.min() < -40  # both signs, in blue and red
    assert grad_cam.max() < 20


def test_colours_put_zero_in_the_middle_of_a_signed_map():
    signed = colours(np.array([[-2.0, 0.0, 1.0]]), signed=True)[0]
    assert signed[0].tolist() == sheet.DIVERGING[0].tolist() and signed[1].tolist() == sheet.DIVERGING[2].tolist()
    assert signed[2].tolist() == sheet.DIVERGING[3].tolist()
    assert colours(np.zeros((2, 2)), signed=False)[0, 0].tolist() == sheet.SEQUENTIAL[0].tolist()
    assert colours(np.array([[np.nan, 1.0]]), signed=False)[0, 1].tolist() == sheet.SEQUENTIAL[-1].tolist()
