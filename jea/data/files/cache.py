"""Clouds packed into a few arrays, kept beside the data set as .npy with their checksums."""
from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from pathlib import Path
from typing import Callable, Sequence

import numpy as np

from jea.files import write_bytes
from jea.reading import check_regular, read_file

_FOLDER = ".jea"
_VERSION = 1
_MAX_SUMS = 64 * 1024  # bytes of checksums.json

_log = logging.getLogger(__name__)


class Packed:
    """Clouds one after the other, and numbers of each.

    points (T, 3) float32; ends (n + 1,) int64: cloud k is points[ends[k]:ends[k + 1]]; labels (n,) int32; parts (T,)
    uint8, or empty. On its way to a worker process it takes only the names of its files along, if it has some.
    """

    NAMES = ("points", "ends", "labels", "parts")

    def __init__(self, arrays: dict[str, np.ndarray] | None, folder: Path | None = None):
        self._arrays, self._folder = arrays, folder

    def __getattr__(self, name: str) -> np.ndarray:
        if name not in self.NAMES:
            raise AttributeError(name)
        if self._arrays is None:
            self._arrays = {key: np.load(self._folder / f"{key}.npy", mmap_mode="r") for key in self.NAMES}
        return self._arrays[name]

    def __getstate__(self):
        return {"_arrays": None if self._folder else self._arrays, "_folder": self._folder}

    def __setstate__(self, state):
        self.__dict__.update(state)

    def __len__(self) -> int:
        return len(self.ends) - 1


def pack(clouds: Sequence[np.ndarray], labels, parts: Sequence[np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """The arrays of Packed from lists: clouds (N_k, 3), labels, parts (N_k,)."""
    ends = np.cumsum([0, *(len(cloud) for cloud in clouds)], dtype=np.int64)
    return {"points": np.concatenate(clouds).astype(np.float32), "ends": ends,
            "labels": np.asarray(labels, np.int32).reshape(-1),
            "parts": np.concatenate(parts).astype(np.uint8) if parts is not None else np.zeros(0, np.uint8)}


def cached(root: Path, name: str, sources: Sequence[Path], build: Callable[[], dict[str, np.ndarray]]) -> Packed:
    """What `build` makes, from root/.jea/<name> where that was made of `sources` as they are now.

    The sources' names, sizes and times are compared, and each array's SHA-256. A folder that cannot be written is no
    error: then the data set is read anew in each run.
    """
    folder = root / _FOLDER / name
    wanted = {"version": _VERSION, "sources": _signature(root, sources)}
    try:
        found = json.loads(read_file(folder / "checksums.json", limit=_MAX_SUMS, error=ValueError))
        if {key: found[key] for key in wanted} == wanted and all(
                _sha256(folder / f"{key}.npy") == found["sha256"][key] for key in Packed.NAMES):
            return Packed(None, folder)
        _log.info("%s is of other data or damaged; it is made anew", folder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    _log.info("reading %d files of %s", len(sources), root)
    arrays = build()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key, array in arrays.items():
            stream = io.BytesIO()
            np.save(stream, array, allow_pickle=False)
            write_bytes(folder / f"{key}.npy", stream.getbuffer())
        sums = {key: _sha256(folder / f"{key}.npy") for key in Packed.NAMES}
        write_bytes(folder / "checksums.json", json.dumps(dict(wanted, sha256=sums)).encode())
    except OSError as error:
        _log.info("%s cannot be written (%s): the data are read anew in each run", folder, error.strerror or error)
        return Packed(arrays)
    return Packed(None, folder)


def _signature(root: Path, sources: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in sources:
        state = os.stat(path)
        digest.update(f"{os.path.relpath(path, root)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    check_regular(path, error=ValueError)
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
