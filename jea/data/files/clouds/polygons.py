"""Polygons of a mesh as triangles. Work and memory are linear in the corners, whatever the polygons' sizes."""
from __future__ import annotations

from pathlib import Path
from typing import Callable

import numpy as np

from jea.errors import DataError

MAX_TRIANGLES = 2 ** 24
NO_TRIANGLES = np.zeros((0, 3), np.int32)


def fan(corners: np.ndarray, sizes: np.ndarray, path: str | Path) -> np.ndarray:
    """Triangles (T, 3) int32 of polygons: the first corner with each of the edges that it does not touch.

    corners: the polygons' corners, one polygon after the other; sizes: (F,) how many each has. Polygons of fewer than
    three corners have no triangle.
    """
    counts = np.maximum(sizes.astype(np.int32) - 2, 0)
    total = int(counts.sum(dtype=np.int64))
    if total > MAX_TRIANGLES:
        raise DataError(f"{path}: faces of {total} triangles, over the limit of {MAX_TRIANGLES}; simplify the mesh "
                        f"first")
    ends = np.cumsum(counts, dtype=np.int32)
    first = np.repeat(np.cumsum(sizes, dtype=np.int32) - sizes.astype(np.int32), counts)
    second = np.arange(1, total + 1, dtype=np.int32)
    second -= np.repeat(ends - counts, counts)
    second += first
    triangles = np.empty((total, 3), np.int32)
    triangles[:, 0] = corners[first]
    triangles[:, 1] = corners[second]
    second += 1
    triangles[:, 2] = corners[second]
    return triangles


def row_of(place: int, sizes: np.ndarray) -> int:
    """Which polygon a corner belongs to."""
    return int(np.searchsorted(np.cumsum(sizes), place, side="right"))


def strips(indices: np.ndarray) -> np.ndarray:
    """Triangles (T, 3) int32 of strips of vertex indices, each ended by -1: every three neighbours are one."""
    triples = np.stack([indices[:-2], indices[1:-1], indices[2:]], 1) if len(indices) > 2 else NO_TRIANGLES
    return np.ascontiguousarray(triples[(triples >= 0).all(1)], np.int32)


def check_corners(corners: np.ndarray, vertices: int, where: Callable[[int], str]) -> None:
    """DataError unless all corners are whole numbers in [0, vertices); where(place) names the place of a wrong one."""
    wrong = ~((corners >= 0) & (corners < vertices))
    if corners.dtype.kind == "f":
        wrong |= corners != np.floor(corners)
    bad = np.flatnonzero(wrong)
    if len(bad):
        raise DataError(f"{where(int(bad[0]))}: a face has the corner {corners[bad[0]]:g}; expected whole numbers "
                        f"from 0 to {vertices - 1}")
