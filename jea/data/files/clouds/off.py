"""Object File Format, also ModelNet's own files, whose counts stand on the line of "OFF"."""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from jea.data.files.clouds.numbers import Numbers, clean_text, columns, parse, read_cloud_bytes
from jea.data.files.clouds.polygons import NO_TRIANGLES, check_corners, fan, row_of
from jea.errors import DataError

_HEAD = re.compile(rb"\s*(?:ST)?C?N?OFF(?![A-Za-z])(?!\s*BINARY)")


def read_off(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, 3) float64 and triangles (T, 3). Colours, normals and texture after x, y, z are passed over."""
    data = clean_text(read_cloud_bytes(path), path)
    head = _HEAD.match(data)
    if not head:
        raise DataError(f"{path}: does not begin with OFF; expected a text file in Object File Format")
    numbers = parse(data[head.end():], path, 1 + data.count(b"\n", 0, head.end()))
    if not len(numbers.lines) or numbers.widths[0] < 2:
        raise DataError(f"{path}: the numbers of vertices and faces are missing after OFF")
    counts, rows = numbers.values[:2], len(numbers.lines) - 1
    if not ((counts >= 0) & (counts == np.floor(counts))).all() or counts.sum() > rows:
        raise DataError(f"{path}, line {numbers.lines[0]}: {counts[0]:g} vertices and {counts[1]:g} faces announced, "
                        f"{rows} lines follow: broken or cut off; fetch it again")
    vertices, faces = int(counts[0]), int(counts[1])
    points = columns(numbers.rows(1, vertices), (0, 1, 2), path) if vertices else np.zeros((0, 3))
    return points, text_faces(numbers.rows(1 + vertices, faces), vertices, path)


def text_faces(numbers: Numbers, vertices: int, path: str | Path, *, before: int = 0) -> np.ndarray:
    """The faces "n i_1 ... i_n" of all rows as triangles (T, 3); `before`: numbers before the n."""
    if not len(numbers.lines):
        return NO_TRIANGLES
    widths = numbers.widths - before
    short = np.flatnonzero(widths < 1)
    starts = numbers.ends[:-1].astype(np.int64) + before
    if not len(short):
        sizes = numbers.values[starts]
        short = np.flatnonzero(~(sizes >= 0) | (sizes != np.floor(sizes)) | (sizes > widths - 1))
    if len(short):
        size = f"{numbers.values[starts[short[0]]]:g}" if widths[short[0]] > 0 else "no"
        raise DataError(f"{path}, line {numbers.lines[short[0]]}: a face of {size} vertices in {widths[short[0]]} "
                        f"numbers")
    sizes = sizes.astype(np.int64)
    marks = np.zeros(len(numbers.values) + 1, np.int8)  # 1 where the corners of a face begin, -1 after them
    marks[starts + 1] += 1
    marks[starts + 1 + sizes] -= 1
    corners = numbers.values[np.cumsum(marks[:-1], dtype=np.int8) > 0]
    check_corners(corners, vertices, lambda place: f"{path}, line {numbers.lines[row_of(place, sizes)]}")
    return fan(corners.astype(np.int32), sizes, path)
