"""`digits`: 1,797 real handwritten digits of 8 x 8 pixels, which come with scikit-learn (the extra `digits`).

They are the test part of UCI's "Optical Recognition of Handwritten Digits", with grey values from 0 to 16. The file is
read directly; scikit-learn itself is not imported.
"""
from __future__ import annotations

import gzip
import importlib.util
import io
from pathlib import Path

import numpy as np

from jea.data.classification.base import ClassificationDataset
from jea.data.dataset import check_split
from jea.errors import DataError
from jea.reading import read_file

_SPLITS = ("train", "val")
_COUNT, _SIDE, _WHITE = 1797, 8, 16
_MAX_BYTES = 4 * 1024 * 1024  # the file has 58 kB, and 0.5 MB unpacked


class Digits(ClassificationDataset):
    """Handwritten digits in 10 classes: splits train (1,438 pictures) and val (359, a fifth, always the same).

    White on black, 8 x 8 pixels; the views resize them to the model's size. Raises DataError where scikit-learn is not
    installed.
    """

    num_classes, class_names = 10, tuple("0123456789")

    def __init__(self, *, split: str = "train"):
        check_split(split, _SPLITS, "digits")
        self.split = split
        self.root = _file()
        pictures, labels = _read(self.root)
        order = np.random.Generator(np.random.PCG64(0)).permutation(_COUNT)
        held_out = _COUNT // 5
        own = np.sort(order[held_out:] if split == "train" else order[:held_out])
        self._pictures, self._labels = pictures[own], labels[own]

    def __len__(self) -> int:
        return len(self._labels)

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Picture (8, 8, 3) uint8, grey, and the digit."""
        return np.repeat(self._pictures[index][:, :, None], 3, axis=2), self.label(index)

    def label(self, index: int) -> int:
        return int(self._labels[index])


def _file() -> Path:
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise DataError("data.name: digits needs scikit-learn, whose package holds the pictures: pip install "
                        "'jea[digits]', "
                        "or pip install scikit-learn")
    return Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (1797, 8, 8) uint8 and labels (1797,)."""
    data = read_file(path, limit=_MAX_BYTES, error=DataError, what="file of digits")
    try:
        with gzip.open(io.BytesIO(data)) as file:
            text = file.read(_MAX_BYTES)
        table = np.loadtxt(io.BytesIO(text), np.int64, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: the file of digits is broken ({str(error)[:200]}); install scikit-learn "
                        "again") from None
    if table.shape != (_COUNT, _SIDE ** 2 + 1) or table.min() < 0 or table.max() > _WHITE or table[:, -1].max() > 9:
        raise DataError(f"{path}: a table {table.shape}; expected {_COUNT} rows of {_SIDE ** 2} values from 0 to "
                        f"{_WHITE} and a digit; install scikit-learn again")
    grey = (table[:, :-1] * 255 + _WHITE // 2) // _WHITE
    return grey.astype(np.uint8).reshape(-1, _SIDE, _SIDE), table[:, -1]
