"""STL meshes, binary and ASCII."""
from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from jea.data.files.clouds.numbers import blocks, clean_text, columns, parse, read_cloud_bytes
from jea.data.files.clouds.polygons import MAX_TRIANGLES
from jea.errors import DataError

_FACET = np.dtype([("normal", "<f4", (3,)), ("corners", "<f4", (9,)), ("attribute", "<u2")])


def read_stl(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (3 T, 3) float64 and triangles (T, 3); equal corners are not joined."""
    data = read_cloud_bytes(path)
    count = struct.unpack_from("<I", data, 80)[0] if len(data) >= 84 else -1
    if len(data) == 84 + count * _FACET.itemsize and count > 0:
        points = np.frombuffer(data, _FACET, count, 84)["corners"].reshape(-1, 3).astype(np.float64)
    elif data.lstrip()[:5].lower() == b"solid" and b"\0" not in data[:4096]:
        points = _text_corners(clean_text(data, path), path)
    else:
        raise DataError(f"{path}: not an STL file: it begins with no \"solid\", and {len(data)} bytes are not those of "
                        f"{max(count, 0)} facets; cut off? Fetch it again")
    if not len(points):
        raise DataError(f"{path}: the mesh has no facets")
    if len(points) > 3 * MAX_TRIANGLES:
        raise DataError(f"{path}: {len(points) // 3} facets, over the limit of {MAX_TRIANGLES}; simplify the mesh "
                        f"first")
    return points, np.arange(len(points), dtype=np.int32).reshape(-1, 3)


def _text_corners(data: bytes, path: str | Path) -> np.ndarray:
    kept = []
    for start, end in blocks(data):
        lines = (line.strip() for line in data[start:end].split(b"\n"))
        kept.append(b"\n".join(line[6:] if line[:6].lower() == b"vertex" else b"" for line in lines))
    points = parse(b"".join(kept), path)
    if not len(points.lines) or len(points.lines) % 3:
        raise DataError(f"{path}: {len(points.lines)} lines \"vertex x y z\"; expected three for each facet. Cut off? "
                        f"Fetch it again")
    return columns(points, (0, 1, 2), path)
