from pathlib import Path

import numpy as np
import pytest

from xinv.data.records import Record, Source, fingerprint, label_counts
from xinv.errors import InputError

RECORDS = (Record("00000000", 0, "a", {}), Record("00000001", 1, "b", {}))


def test_an_image_is_named_by_its_file_or_by_its_key():
    plain = Source(RECORDS, ("x", "y"), "0" * 64, False, lambda i: np.zeros((1, 1, 1), np.uint8))
    assert plain.where(1) == "image 00000001"
    named = Source(RECORDS, ("x", "y"), "0" * 64, False, plain.read, lambda i: f"photo{i}.jpg")
    assert named.where(1) == "photo1.jpg"


def test_fingerprints_tell_where_one_part_ends():
    assert fingerprint([b"ab", b"c"]) != fingerprint([b"a", b"bc"]) != fingerprint([b"abc"])
    assert fingerprint([b"ab", b"c"]) == fingerprint([b"ab", b"c"]) and len(fingerprint([])) == 64


def test_a_set_of_one_label_is_refused():
    label_counts(RECORDS, ("x", "y"), Path("set"))
    with pytest.raises(InputError, match=r"set: .* at least two labels; this source has y"):
        label_counts(RECORDS[1:], ("x", "y"), Path("set"))
