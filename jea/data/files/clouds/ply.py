"""PLY clouds and meshes: ASCII or binary, either byte order, elements in any order.

The elements "vertex" (x, y, z), "face" (vertex_indices) and "tristrips" are read; others are passed over, and said so.
Work is linear in the file, but not vectorised where polygons differ in size: about 1 s for two million of them.
"""
from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Sequence

import numpy as np

from jea.data.files.clouds.numbers import Numbers, clean_text, columns, parse, read_cloud_bytes
from jea.data.files.clouds.off import text_faces
from jea.data.files.clouds.ply_binary import read_binary
from jea.data.files.clouds.ply_header import Element, Lists, list_place, read_header, xyz_places
from jea.data.files.clouds.polygons import NO_TRIANGLES, check_corners, fan, strips
from jea.errors import DataError

_log = logging.getLogger(__name__)


def read_ply(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, 3) float64 and triangles (T, 3)."""
    data = read_cloud_bytes(path)
    end = re.search(rb"(?:^|[\r\n])end_header[ \t]*(\r\n|\n|\r)", data[:65536])
    if not data.startswith(b"ply") or not end:
        raise DataError(f"{path}: not a PLY file: it does not begin with ply, or has no end_header")
    form, elements = read_header(data[:end.start()].decode("ascii", "replace"), path)
    known = ("vertex", "face", "tristrips")
    others = [f"{name} ({count})" for name, count, _ in elements if count and name not in known]
    if others:
        _log.warning("%s: only vertices and faces are read, not %s", path, ", ".join(others)[:200])
    body = end.end()
    if form == "ascii":
        found = _read_text(data, body, elements, path)
    else:
        found = read_binary(data, body, elements, "<" if form == "binary_little_endian" else ">", path)
    if "vertex" not in found:
        raise DataError(f"{path}: has no element vertex with x, y and z")
    vertices = found["vertex"]
    parts = [_triangles(name, found.pop(name), len(vertices), path) for name in ("face", "tristrips") if name in found]
    return vertices, NO_TRIANGLES if not parts else parts[0] if len(parts) == 1 else np.concatenate(parts)


def _triangles(name: str, found, vertices: int, path: str | Path) -> np.ndarray:
    if isinstance(found, np.ndarray):  # ASCII faces have been made triangles, line by line
        return found
    if name == "tristrips":
        check_corners(found.values[found.values != -1], vertices, lambda place: f"{path}, a strip")
        return strips(found.values)
    check_corners(found.values, vertices, lambda place: f"{path}, a face")
    return fan(found.values, found.sizes, path)


# -- ASCII -----------------------------------------------------------------------------------------------------------

def _read_text(data: bytes, body: int, elements: Sequence[Element], path: str | Path) -> dict:
    first_line = 1 + len(data[:body].splitlines())
    numbers, row, found = parse(clean_text(data[body:], path), path, first_line), 0, {}
    vertices = next((element.count for element in elements if element.name == "vertex"), 0)
    for element in elements:
        left = len(numbers.lines) - row
        if element.count > left:
            raise DataError(f"{path}: {element.count} x {element.name} announced, but only {left} lines follow: cut "
                            f"off; fetch it again")
        rows = numbers.rows(row, element.count)
        row += element.count
        if element.name == "vertex":
            found["vertex"] = columns(rows, xyz_places(element, path), path) if element.count else np.zeros((0, 3))
        elif element.count and element.name in ("face", "tristrips"):
            place = list_place(element, path)
            if any(length for _, length, _ in element.properties[:place]):
                rows, place = _without_lists(rows, element.properties[:place], path), 0
            if element.name == "face":
                found["face"] = text_faces(rows, vertices, path, before=place)
            else:
                found["tristrips"] = _text_lists(rows, place, path)
    return found


def _text_lists(rows: Numbers, place: int, path: str | Path) -> Lists:
    """The entries of one list of all rows."""
    values = []
    for start, end, line in zip(rows.ends.tolist(), rows.ends[1:].tolist(), rows.lines.tolist()):
        size = rows.values[start + place] if start + place < end else -1
        if not 0 <= size <= end - start - place - 1:
            raise DataError(f"{path}, line {line}: a list of {size:g} entries in {end - start - place} numbers")
        values.append(rows.values[start + place + 1:start + place + 1 + int(size)])
    return Lists(np.concatenate(values).astype(np.int64), np.array([len(v) for v in values], np.int32))


def _without_lists(numbers: Numbers, properties, path: str | Path) -> Numbers:
    """The rows without their first properties, some of which are lists."""
    values, sizes = [], []
    for start, end, line in zip(numbers.ends.tolist(), numbers.ends[1:].tolist(), numbers.lines.tolist()):
        for _, length, _ in properties:
            size = numbers.values[start] if length and start < end else 0
            if not 0 <= size <= end - start - 1:
                raise DataError(f"{path}, line {line}: a list of {size:g} entries in {end - start} numbers")
            start += 1 + int(size)
        values.append(numbers.values[start:end])
        sizes.append(len(values[-1]))
    return Numbers(np.concatenate(values), np.cumsum([0, *sizes]), numbers.lines)
