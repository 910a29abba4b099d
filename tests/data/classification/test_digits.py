"""The digits of scikit-learn's package: counts, values, a fixed split, and what is said without them."""
import gzip
import importlib.util
import sys

import numpy as np
import pytest

from jea.data import DATASETS, DataError
from jea.data.classification import digits
from jea.data.classification.digits import Digits

needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")


@needs_sklearn
def test_pictures_and_split():
    train, val = Digits(split="train"), Digits(split="val")
    assert len(train) == 1438 and len(val) == 359 and DATASETS["digits"] is Digits
    found = [data.load(k) for data in (train, val) for k in range(len(data))]
    pictures, labels = np.stack([p for p, _ in found]), np.array([c for _, c in found])
    assert pictures.shape == (1797, 8, 8, 3) and pictures.dtype == np.uint8 and pictures.max() == 255
    assert (pictures[..., :1] == pictures).all()
    # Known of this data set: how often each digit occurs, and the mean grey value, 4.884 of 16.
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert pictures.mean() / 255 * 16 == pytest.approx(4.8842, abs=0.01)
    assert (np.bincount([label for _, label in found[1438:]], minlength=10) > 20).all()
    assert "sklearn" not in sys.modules  # only its file is read
    assert train.label(3) == train.load(3)[1]


@needs_sklearn
def test_the_first_picture_is_a_zero():
    pictures, labels = digits._read(digits._file())
    assert labels[:10].tolist() == list(range(10))
    assert np.rint(pictures[0] / 255 * 16).astype(int)[0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"digits needs scikit-learn.*pip install 'jea\[digits\]'"):
        Digits()


@pytest.mark.parametrize("content, said", [
    (b"", "empty"), (b"no gzip", "is broken"), (gzip.compress(b"1,2,3\n"), r"a table \(1, 3\); expected 1797 rows"),
    (gzip.compress(b"a,b\n"), "is broken"), (gzip.compress(b"1,2\n" * 99)[:-12], "is broken"),
    (gzip.compress(b"17," * 64 + b"9\n"), "a table"), (gzip.compress(bytes(200_000_000), 9), "is broken"),
])
def test_broken_files(tmp_path, monkeypatch, content, said):
    (tmp_path / "digits.csv.gz").write_bytes(content)
    monkeypatch.setattr(digits, "_file", lambda: tmp_path / "digits.csv.gz")
    with pytest.raises(DataError, match=said):
        Digits()


def test_splits():
    with pytest.raises(DataError, match="digits: unknown split 'test'; there are train, val"):
        Digits(split="test")
