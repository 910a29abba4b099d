"""Wavefront OBJ: the lines "v x y z" and "f 1 2 3", "f 1/1 2/2 3/3", "f -3 -2 -1"; all others are passed over."""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from jea.data.files.clouds.numbers import Numbers, blocks, clean_text, columns, parse, read_cloud_bytes
from jea.data.files.clouds.polygons import NO_TRIANGLES, check_corners, fan, row_of
from jea.errors import DataError

_SLASHES = re.compile(rb"/[^ \t\n]*")


def read_obj(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, 3) float64 and triangles (T, 3)."""
    data = clean_text(read_cloud_bytes(path), path)
    if b"\\\n" in data:
        data = data.replace(b"\\\n", b" ")  # a line that goes on
    vertices = _numbers_of(data, b"v", path)
    faces = _numbers_of(data, b"f", path)
    if not len(vertices.lines):
        raise DataError(f"{path}: has no line \"v x y z\"; is it a Wavefront OBJ file?")
    points = columns(vertices, (0, 1, 2), path)
    if not len(faces.lines):
        return points, NO_TRIANGLES
    corners, sizes = faces.values, faces.widths
    if (corners < 0).any():
        # A negative corner counts backwards from the vertices that stand before the face.
        so_far = np.repeat(np.searchsorted(vertices.lines, faces.lines), sizes)
        corners = np.where(corners < 0, corners + so_far + 1, corners)
    corners = corners - 1
    check_corners(corners, len(points), lambda place: f"{path}, line {faces.lines[row_of(place, sizes)]}")
    return points, fan(corners.astype(np.int32), sizes, path)


def _numbers_of(data: bytes, kind: bytes, path: str | Path) -> Numbers:
    """The numbers of the lines of one kind, each with its line."""
    kept = []
    for start, end in blocks(data):
        lines = [line.lstrip() for line in data[start:end].split(b"\n")]
        if kind == b"f":
            chosen = [_SLASHES.sub(b"", line)[1:] if line[:2] in (b"f ", b"f\t") else b"" for line in lines]
        else:
            chosen = [line[1:] if line[:2] in (b"v ", b"v\t") else b"" for line in lines]
        kept.append(b"\n".join(chosen))
    return parse(b"".join(kept), path)
