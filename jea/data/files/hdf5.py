"""Clouds in HDF5 files. h5py is an optional dependency: the extra `points`."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from jea.data.files.clouds.text import check_cloud
from jea.errors import DataError, shortened
from jea.reading import check_regular

MAX_VALUES = 2 ** 28  # of an array: 1 GiB of float32


def hdf5_files(root: Path, *patterns: str) -> list[Path]:
    """The files of a split, sorted within each pattern."""
    files = []
    for pattern in patterns:
        found = sorted(root.glob(pattern))
        if not found:
            raise DataError(f"{root}: no files {pattern} there; fetch the data set again")
        files += found
    return files


def read_hdf5(path: Path, wanted: dict[str, tuple]) -> dict[str, np.ndarray]:
    """Arrays of an HDF5 file.

    wanted: name -> (None, most columns to read, ...); the first axis is read whole, and a trailing axis of length 1,
    as labels have it, is dropped. Links to other files are not followed.
    Raises DataError: h5py is not installed, a broken file, a missing array or one of another shape or type.
    """
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path}: HDF5 files need h5py: pip install 'jea[points]', or pip install h5py") from None
    check_regular(path, error=DataError, what="HDF5 file")
    found = {}
    try:
        with h5py.File(path, "r") as file:
            for name, shape in wanted.items():
                found[name] = _read_array(h5py, file, name, shape, path)
    except DataError:
        raise
    except Exception as error:  # h5py raises nearly anything on a broken file
        raise DataError(f"{path}: HDF5 file is broken ({type(error).__name__}: {error}); fetch it again") from error
    lengths = {name: len(array) for name, array in found.items()}
    if len(set(lengths.values())) != 1 or not max(lengths.values()):
        raise DataError(f"{path}: holds {', '.join(f'{n} x {name}' for name, n in lengths.items())}; expected as many "
                        "of each, and at least one")
    return found


def _read_array(h5py, file, name: str, shape: tuple, path: Path) -> np.ndarray:
    if name not in file or not isinstance(file.get(name, getlink=True), h5py.HardLink):
        there = ", ".join(map(shortened, list(file)[:10]))
        raise DataError(f"{path}: has no array {name!r}; it has {there or 'nothing'}")
    array = file[name]
    if not isinstance(array, h5py.Dataset) or array.is_virtual or array.external or array.dtype.kind not in "fiu":
        raise DataError(f"{path}: {name} is not an array of numbers")
    there = array.shape[:-1] if len(array.shape) == len(shape) + 1 and array.shape[-1] == 1 else array.shape
    if len(there) != len(shape) or any(need and have < need for have, need in zip(there, shape)) or (
            len(shape) == 3 and there[2] != shape[2]):
        needed = ", ".join("n" if n is None else f"{n} or more" if axis == 1 else str(n)
                           for axis, n in enumerate(shape))
        raise DataError(f"{path}: {name} has shape {array.shape}; expected ({needed})")
    if array.size > MAX_VALUES:
        raise DataError(f"{path}: {name} of shape {array.shape} is over the limit of {MAX_VALUES} numbers")
    values = array[tuple(slice(n) for n in shape)]
    return values.reshape(tuple(values.shape[:len(shape)]))


def check_hdf5_clouds(data: np.ndarray, path: Path) -> np.ndarray:
    """(n, N, 3) -> float32; DataError for NaN and infinity."""
    finite = np.isfinite(data).all((1, 2))
    if not finite.all():
        bad = int(np.argmin(finite))
        check_cloud(data[bad], f"{path}, cloud {bad}")
    return data.astype(np.float32)


def check_labels(labels: np.ndarray, count: int, path: Path) -> None:
    """DataError unless all of (n,) are whole numbers in [0, count)."""
    wrong = np.flatnonzero(~((labels >= 0) & (labels < count) & (labels == np.floor(labels))))
    if len(wrong):
        raise DataError(f"{path}: label {labels[wrong[0]]} of cloud {wrong[0]}; expected 0 to {count - 1}")
