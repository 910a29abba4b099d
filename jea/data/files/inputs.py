"""A user's own pictures and clouds, which are no data set: what `--input` names, and arrays in Python."""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
from PIL import Image

from jea.data.files.clouds import reading
from jea.data.files.clouds.text import check_cloud
from jea.data.files.folders import list_files, warn_once
from jea.data.files.pictures import MAX_PIXELS, SUFFIXES, pixels_of, read_image
from jea.errors import DataError


def list_inputs(path: str | Path, suffixes: Sequence[str] = SUFFIXES, what: str = "picture") -> list[Path]:
    """One picture, or all pictures directly in a folder (not below it), sorted by name.

    A file is taken whatever its suffix; in a folder those with one of `suffixes` count, hidden ones do not; files of
    other types are counted in a warning. Raises DataError for a path that does not exist and for a folder without
    pictures. `what` is its word for them.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such {what} or folder")
    found = list_files(path, suffixes, below=False)
    if not found.files:
        others = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in found.others.most_common(5))
        raise DataError(f"{path}: no {what}s in this folder{f', only {others}' if others else ''}; expected files "
                        f"ending in "
                        f"{', '.join(suffixes)}")
    warn_once(found, path, suffixes)
    return [Path(file) for file in found.files]


@dataclass
class Input:
    """Something of the user's own. value: a picture (H, W, 3) uint8 or a cloud (N, 3) float64; name: what messages call
    it; source: its file, None where it came as an array."""
    value: np.ndarray
    name: str
    source: Path | None = None


@dataclass(frozen=True)
class InputKind:
    """What a task takes from its user. unit: the word for one; counted: for what a run has done; ndim: of an array;
    read: a file's value; take: that of an array or another object, given what messages call it."""
    unit: str
    counted: str
    ndim: int
    suffixes: Sequence[str]
    read: Callable
    take: Callable

    def list(self, path: str | Path) -> list[Path]:
        """The file, or those in a folder; see `list_inputs`."""
        return list_inputs(path, self.suffixes, self.unit)

    def input(self, value: Any, name: str = "array") -> Input:
        """Of a file's path, or of what is in memory already, which messages call `name`."""
        if isinstance(value, (str, os.PathLike)):
            path = Path(value).expanduser()
            return Input(self.read(path), str(path), path)
        return Input(self.take(value, name), name)


def _take_picture(value: Any, name: str) -> np.ndarray:
    if isinstance(value, Image.Image):
        if value.width * value.height > MAX_PIXELS:
            raise DataError(f"{name}: picture of {value.width} x {value.height} pixels is over the limit of "
                            f"{MAX_PIXELS} pixels; make it smaller first")
        try:
            return pixels_of(value, name, exif=True)
        except DataError:
            raise
        except Exception as error:  # PIL decodes only now
            raise DataError(f"{name}: picture is broken ({type(error).__name__}: {error})") from error
    if not isinstance(value, np.ndarray):
        raise DataError(f"{name}: is a {type(value).__name__}; expected the path of a picture, a PIL picture or an "
                        "array (H, W, 3) uint8 of numpy")
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
        raise DataError(f"{name}: is {value.dtype} {value.shape}; expected a picture, uint8 (H, W, 3), RGB")
    if value.shape[0] * value.shape[1] > MAX_PIXELS:
        raise DataError(f"{name}: picture of {value.shape[1]} x {value.shape[0]} pixels is over the limit of "
                        f"{MAX_PIXELS} pixels; make it smaller first")
    return np.ascontiguousarray(value)


def _take_cloud(value: Any, name: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        said = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise DataError(f"{name}: is {said}; expected the path of a cloud or a numpy array (N, 3) of numbers")
    return check_cloud(value, name)


PICTURES = InputKind("picture", "images", 3, SUFFIXES, lambda path: read_image(path, exif=True), _take_picture)
CLOUDS = InputKind("cloud", "clouds", 2, reading.SUFFIXES, reading.read_cloud, _take_cloud)
