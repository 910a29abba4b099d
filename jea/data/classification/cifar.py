"""CIFAR-10 and CIFAR-100, python version, read without executing the pickles.

    cifar-10-batches-py/data_batch_1 ... data_batch_5, test_batch, batches.meta
    cifar-100-python/train, test, meta

A batch is a pickled dict (of Python 2): "data" uint8 (N, 3072), the 32 x 32 planes of red, green and blue one after
the other, and a list of N labels.
"""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np

from jea.checkpoint.errors import reading
from jea.checkpoint.readers.pickle_machine import Machine
from jea.checkpoint.readers.pickle_values import NumpyArray
from jea.checkpoint.tensors import Budget
from jea.data.classification.base import ClassificationDataset
from jea.data.dataset import check_split
from jea.errors import CheckpointError, DataError, quoted
from jea.reading import read_file

_BYTES = 3 * 32 * 32
_MAX_BYTES = 512 * 1024 * 1024  # CIFAR-100's training pictures have 155 MB


class CIFAR10(ClassificationDataset):
    """CIFAR-10: 50,000 training and 10,000 test pictures of 32 x 32 pixels in 10 classes.

    root: the folder cifar-10-batches-py, or the one that holds it.
    split: train or test; val is another name of test, as CIFAR has no other held-out part.

    All pictures are read into memory (150 MB). Faults raise DataError.
    """

    folder = "cifar-10-batches-py"
    files: dict[str, Sequence[str]] = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}
    meta, names_key, labels_key, num_classes = "batches.meta", "label_names", "labels", 10

    def __init__(self, *, root: str | Path, split: str = "train"):
        self.split = split
        check_split(split, (*self.files, "val"), self.folder)
        part = "test" if split == "val" else split
        self.root = _find(Path(root).expanduser(), self.folder, self.meta)
        self._paths = [self.root / name for name in self.files[part]]
        self.class_names = self._class_names()
        self._pictures: np.ndarray | None = None  # N 3 32 32
        self._labels: np.ndarray | None = None
        self._read()

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Picture (32, 32, 3) uint8 RGB and its class."""
        if self._pictures is None:
            self._read()
        return np.ascontiguousarray(self._pictures[index].transpose(1, 2, 0)), int(self._labels[index])

    def __getstate__(self) -> dict:
        # A worker process reads the files itself, instead of being sent 150 MB.
        return {**self.__dict__, "_pictures": None, "_labels": None}

    def _read(self) -> None:
        batches = [self._batch(path) for path in self._paths]
        self._pictures = np.concatenate([pictures for pictures, _ in batches])
        self._labels = np.concatenate([labels for _, labels in batches])
        self._count = len(self._labels)

    def _batch(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        found = _read_pickle(path)
        data, labels = found.get("data"), found.get(self.labels_key)
        if not isinstance(data, NumpyArray) or data.dtype != "uint8" or data.shape[1:] != (_BYTES,):
            raise DataError(f"{path}: \"data\" is not a uint8 array (N, {_BYTES}); is this the python version?")
        if type(labels) is not list or len(labels) != data.shape[0] or not labels:
            raise DataError(f"{path}: \"{self.labels_key}\" is not a list of {data.shape[0]} labels")
        wrong = [label for label in labels if type(label) is not int or not 0 <= label < self.num_classes]
        if wrong:
            raise DataError(f"{path}: label {quoted(wrong[0])}; expected 0 to {self.num_classes - 1}")
        pictures = data.load(Budget(data.size)).reshape(-1, 3, 32, 32)
        return pictures, np.array(labels, np.int64)

    def _class_names(self) -> tuple[str, ...]:
        path = self.root / self.meta
        names = _read_pickle(path).get(self.names_key)
        if type(names) is not list or len(names) != self.num_classes or not all(type(n) is str for n in names):
            raise DataError(f"{path}: \"{self.names_key}\" is not a list of {self.num_classes} names")
        return tuple(names)


class CIFAR100(CIFAR10):
    """CIFAR-100: as CIFAR-10 with 100 classes (the fine labels); root: cifar-100-python or the folder around it."""

    folder = "cifar-100-python"
    files = {"train": ["train"], "test": ["test"]}
    meta, names_key, labels_key, num_classes = "meta", "fine_label_names", "fine_labels", 100


def _find(root: Path, folder: str, meta: str) -> Path:
    for candidate in (root, root / folder):
        if (candidate / meta).is_file():
            return candidate
    state = "" if root.is_dir() else " (it is not a folder)"
    raise DataError(f"{root}: no {folder} there{state}; looked for the file {meta} in it and in {root / folder}")


def _read_pickle(path: Path) -> dict:
    data = read_file(path, limit=_MAX_BYTES, error=DataError, what="batch", empty=True)
    try:
        with reading(path):
            found = Machine(data).run()
    except CheckpointError as error:
        raise DataError(str(error)) from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds {type(found).__name__}, not a dict; is this the python version of CIFAR?")
    # Saved again by Python 3, the keys may be bytes.
    return {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in found.items()}
