"""Clouds as NumPy arrays in .npy files."""
from __future__ import annotations

import io
import math
import struct
from pathlib import Path

import numpy as np

from jea.data.files.clouds.numbers import read_cloud_bytes
from jea.data.files.clouds.polygons import NO_TRIANGLES
from jea.errors import DataError

MAX_COLUMNS = 16  # of a point, where the array could also be one row per coordinate


def read_npy(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) of an array (N, 3 or more columns), or (3 to 16 rows, N) with more than 16 columns."""
    data = read_cloud_bytes(path)
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        length = struct.unpack_from("<H" if version == (1, 0) else "<I", data, 8)[0]
        if version not in ((1, 0), (2, 0)) or length > 10_000:
            raise ValueError("it has an unusual header")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception as error:  # numpy raises nearly anything on a broken header
        raise DataError(f"{path}: not a NumPy file that can be read ({str(error)[:200]}); write it with numpy.save"
                        ) from None
    if dtype.kind not in "fiu" or len(shape) != 2 or any(type(n) is not int or n < 0 for n in shape) or not (
            shape[1] >= 3 or 3 <= shape[0] <= MAX_COLUMNS < shape[1]):
        raise DataError(f"{path}: holds {dtype} {shape}; expected numbers (N, 3 or more columns) or (3, N)")
    if math.prod(shape) * dtype.itemsize > len(data) - stream.tell():
        raise DataError(f"{path}: cut off: {shape} of {dtype} do not fit into {len(data)} bytes; fetch it again")
    values = np.frombuffer(data, dtype, math.prod(shape), stream.tell()).reshape(shape, order="F" if fortran else "C")
    if 3 <= shape[0] <= MAX_COLUMNS < shape[1]:
        values = values.T
    return values[:, :3], NO_TRIANGLES
