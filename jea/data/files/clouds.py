"""Reading point clouds and meshes: text, .npy, .ply and .off; and the lists of data sets made of such files.

Every fault of a file is a `DataError` that names it and, in text, the line. What a header announces is compared with
the size of the file before anything is allocated for it.
"""
from __future__ import annotations

import io
import math
import os
import re
import struct
import warnings
from pathlib import Path
from typing import NamedTuple, Sequence, Union

import numpy as np

from jea.data.views.clouds import sample_surface
from jea.errors import DataError

PathLike = Union[str, Path]

SUFFIXES = (".txt", ".xyz", ".pts", ".csv", ".npy", ".ply", ".off")
MAX_BYTES = 256 * 1024 * 1024  # of a file; a text, which grows when it is parsed, may have half of it
MAX_POINTS = 2 ** 24
LARGEST = 3.4e38  # coordinate; float32 ends there
MAX_MIXED = 2 ** 18  # rows of a binary PLY that must be read one by one, as their polygons differ
MESH_POINTS = 10_000  # sampled on the surface of a mesh; as many as modelnet40_normal_resampled has


def read_cloud(path: PathLike, *, mesh_points: int = MESH_POINTS) -> np.ndarray:
    """Read a cloud: (N, 3) float64 (maps' coordinates need its digits), N >= 1, all finite.

    .npy        array (N, 3 or more columns) of numbers; the first three columns count
    .ply        ASCII or binary, either byte order; x, y, z of the element "vertex"
    .off        Object File Format, also ModelNet's own files, whose counts stand on the line of "OFF"
    otherwise   text: a point per line, three or more numbers between blanks or commas; # starts a comment

    A mesh (.off or .ply with faces) becomes `mesh_points` points on its surface, the same ones at every call.
    Raises DataError: no such file, not such a file, cut off, empty, more than MAX_BYTES or MAX_POINTS, a coordinate
    that is not finite.
    """
    readers = {".npy": _read_npy, ".ply": _read_ply, ".off": _read_off}
    reader = readers.get(Path(path).suffix.lower())
    if reader is None:
        table, lines = read_table(path)
        return check_cloud(table[:, :3], path, lines)
    points, triangles = reader(path)
    points = check_cloud(points, path)
    if len(triangles):
        rng = np.random.Generator(np.random.PCG64(0))
        try:
            points = sample_surface(points, triangles, mesh_points, rng)[0]
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
    return points.astype(np.float64)


def read_table(path: PathLike, *, columns: int | None = None, rows: int | None = None
               ) -> tuple[np.ndarray, np.ndarray]:
    """A table of numbers, between blanks or commas: values (R, C) float64 and each row's line (R,) in the file.

    columns: how many there must be; default: as in the first row, at least 3. rows: stop after so many lines.
    Raises DataError naming file and line: a line of another length, a word that is not a number, no rows.
    """
    data = _read_bytes(path)
    if rows is not None:
        data = _first_lines(data, rows)
    numbers = _parse(data, path)
    if not len(numbers.lines):
        raise DataError(f"{path}: cloud is empty; expected a point per line")
    widths = np.diff(numbers.ends)
    expected = int(widths[0]) if columns is None else columns
    if expected < 3:
        raise DataError(f"{path}, line {numbers.lines[0]}: {expected} numbers; expected at least x, y and z")
    wrong = np.flatnonzero(widths != expected)
    if len(wrong):
        raise DataError(f"{path}, line {numbers.lines[wrong[0]]}: {widths[wrong[0]]} numbers; expected {expected}")
    return numbers.values.reshape(-1, expected), numbers.lines


def check_cloud(points: np.ndarray, path: PathLike, lines: np.ndarray | None = None) -> np.ndarray:
    """(N, 3) of any number type -> float64; DataError for an empty cloud, NaN, infinity, more than float32 holds."""
    points = np.ascontiguousarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise DataError(f"{path}: cloud has shape {points.shape}; expected (N, 3)")
    if not len(points):
        raise DataError(f"{path}: cloud is empty; expected at least one point")
    if len(points) > MAX_POINTS:
        raise DataError(f"{path}: {len(points)} points, over the limit of {MAX_POINTS}; thin the cloud out first")
    bad = np.flatnonzero(~(np.abs(points) < LARGEST).all(1))
    if len(bad):
        where = f"{path}, line {lines[bad[0]]}" if lines is not None else f"{path}, point {bad[0]}"
        x, y, z = points[bad[0]]
        raise DataError(f"{where}: ({x:g}, {y:g}, {z:g}) is not a finite place ({len(bad)} such points); remove it")
    return points


# -- text ------------------------------------------------------------------------------------------------------------

class _Numbers(NamedTuple):
    """The numbers of a text: those of row r are values[ends[r]:ends[r + 1]], from line lines[r] of the file."""
    values: np.ndarray
    ends: np.ndarray
    lines: np.ndarray


def _read_bytes(path: PathLike, limit: int = MAX_BYTES) -> bytes:
    try:
        size = os.path.getsize(path)
        if size > limit:
            raise DataError(f"{path}: {size} bytes, over the limit of {limit}; thin the cloud out first")
        if not os.path.isfile(path):  # a folder, or a pipe that would never end
            raise DataError(f"{path}: not a file")
        with open(path, "rb") as file:
            data = file.read(size)
    except FileNotFoundError:
        raise DataError(f"{path}: cloud does not exist") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read the cloud: {error.strerror or error}") from None
    if not data:
        raise DataError(f"{path}: cloud is empty (0 bytes); fetch it again")
    return data


def _first_lines(data: bytes, rows: int) -> bytes:
    """The first `rows` lines, without looking at the others."""
    place = 0
    for _ in range(rows):
        place = data.find(b"\n", place) + 1
        if not place:
            return data
    return data[:place]


_BLANKS = bytes.maketrans(b",;\t\r\v\f", b"      ")


def _parse(data: bytes, path: PathLike, first_line: int = 1) -> _Numbers:
    """All numbers of a text, with the rows that they stand in; empty lines do not count."""
    if len(data) > MAX_BYTES // 2:
        raise DataError(f"{path}: {len(data)} bytes of text, over the limit of {MAX_BYTES // 2}; save it as .npy")
    if b"#" in data:
        data = re.sub(rb"#[^\n]*", b"", data)
    text = data.translate(_BLANKS)
    raw = np.frombuffer(text, np.uint8)
    newline = raw == ord("\n")
    blank = newline | (raw == ord(" "))
    starts = ~blank
    starts[1:] &= blank[:-1]
    words = np.flatnonzero(starts)
    line = np.searchsorted(np.flatnonzero(newline), words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # how numpy says that it met something else
        values = np.fromstring(text, np.float64, sep=" ") if len(words) else np.zeros(0)
    if len(values) != len(words) or not _is_number(text, words, len(words) - 1):
        bad = next((k for k in range(max(0, len(values) - 1), len(words)) if not _is_number(text, words, k)), 0)
        raise DataError(f"{path}, line {first_line + line[bad]}: {_word(text, words, bad)[:40]!r} is not a number")
    rows, first = np.unique(line, return_index=True)
    return _Numbers(values, np.append(first, len(words)), rows + first_line)


def _word(text: bytes, words: np.ndarray, k: int) -> str:
    return text[words[k]:words[k] + 400].split(None, 1)[0].decode("ascii", "replace")


def _is_number(text: bytes, words: np.ndarray, k: int) -> bool:
    try:
        return k < 0 or "_" not in _word(text, words, k) and float(_word(text, words, k)) is not None
    except ValueError:
        return False


# -- the other formats -----------------------------------------------------------------------------------------------

def _read_npy(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    data = _read_bytes(path)
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        length = struct.unpack_from("<H" if version == (1, 0) else "<I", data, 8)[0]
        if version not in ((1, 0), (2, 0)) or length > 10_000:
            raise ValueError("it has an unusual header")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception as error:  # numpy raises nearly anything on a broken header
        raise DataError(f"{path}: not a NumPy file that can be read ({error}); write it with numpy.save") from None
    if dtype.kind not in "fiu" or len(shape) != 2 or shape[0] < 0 or shape[1] < 3:
        raise DataError(f"{path}: holds {dtype} {shape}; expected numbers (N, 3 or more columns)")
    if shape[0] * shape[1] * dtype.itemsize > len(data) - stream.tell():
        raise DataError(f"{path}: cut off: {shape} of {dtype} do not fit into {len(data)} bytes; fetch it again")
    values = np.frombuffer(data, dtype, shape[0] * shape[1], stream.tell())
    values = values.reshape(shape, order="F" if fortran else "C")
    return values[:, :3], np.zeros((0, 3), np.int64)


def _read_off(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    data = _read_bytes(path)
    head = re.match(rb"\s*((?:#[^\n]*\n\s*)*)(C?N?OFF)(?![A-Za-z])(?!\s*BINARY)", data)
    if not head:
        raise DataError(f"{path}: does not begin with OFF; expected a text file in Object File Format")
    numbers = _parse(data[head.end():], path, 1 + data.count(b"\n", 0, head.end()))
    if not len(numbers.lines) or np.diff(numbers.ends)[0] < 2:
        raise DataError(f"{path}: the numbers of vertices and faces are missing after OFF")
    counts = numbers.values[:2]
    rows = len(numbers.lines) - 1
    if not ((counts >= 0) & (counts == np.floor(counts))).all() or counts.sum() > rows:
        raise DataError(f"{path}, line {numbers.lines[0]}: {counts[0]:g} vertices and {counts[1]:g} faces announced, "
                        f"{rows} lines follow: broken or cut off; fetch it again")
    vertices, faces = int(counts[0]), int(counts[1])
    points = _columns(numbers, 1, vertices, (0, 1, 2), path)
    return points, _text_faces(numbers, 1 + vertices, faces, vertices, path)


def _columns(numbers: _Numbers, first: int, count: int, columns: Sequence[int], path: PathLike) -> np.ndarray:
    """Columns of `count` rows from row `first` on, (count, len(columns)) float64."""
    starts, widths = numbers.ends[first:first + count], np.diff(numbers.ends)[first:first + count]
    short = np.flatnonzero(widths <= max(columns))
    if len(short):
        raise DataError(f"{path}, line {numbers.lines[first + short[0]]}: {widths[short[0]]} numbers; expected at "
                        f"least {max(columns) + 1}")
    return numbers.values[starts[:, None] + np.asarray(columns)]


def _text_faces(numbers: _Numbers, first: int, count: int, vertices: int, path: PathLike) -> np.ndarray:
    """The faces "n i_1 ... i_n" of `count` rows as triangles (T, 3)."""
    if not count:
        return np.zeros((0, 3), np.int64)
    starts, widths = numbers.ends[first:first + count], np.diff(numbers.ends)[first:first + count]
    sizes = numbers.values[starts]
    short = np.flatnonzero(~(sizes >= 0) | (sizes != np.floor(sizes)) | (sizes > widths - 1))
    if len(short):
        raise DataError(f"{path}, line {numbers.lines[first + short[0]]}: a face of {sizes[short[0]]:g} vertices in "
                        f"{widths[short[0]]} numbers")
    found = []
    for size in np.unique(sizes[sizes >= 3]).astype(np.int64):
        chosen = np.flatnonzero(sizes == size)
        corners = numbers.values[starts[chosen][:, None] + 1 + np.arange(size)]
        _check_corners(corners, vertices, lambda row: f"{path}, line {numbers.lines[first + chosen[row]]}")
        found.append(_fan(corners.astype(np.int64), path))
    return np.concatenate(found) if found else np.zeros((0, 3), np.int64)


def _check_corners(corners: np.ndarray, vertices: int, where) -> None:
    bad = np.flatnonzero(~((corners >= 0) & (corners < vertices)).all(1))
    if len(bad):
        raise DataError(f"{where(bad[0])}: a face has corners {corners[bad[0]].tolist()[:8]}; expected 0 to "
                        f"{vertices - 1}")


def _fan(polygons: np.ndarray, path: PathLike) -> np.ndarray:
    """Polygons (F, n) of vertex indices -> triangles (F (n - 2), 3)."""
    n = polygons.shape[1]
    if polygons.size > MAX_POINTS:
        raise DataError(f"{path}: {len(polygons)} faces of {n} corners are over the limit; simplify the mesh first")
    return np.concatenate([polygons[:, [0, k, k + 1]] for k in range(1, n - 1)])


_PLY_TYPES = {"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
              "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4",
              "float32": "f4", "double": "f8", "float64": "f8"}


class _Element(NamedTuple):
    name: str
    count: int
    properties: list[tuple[str, str | None, str]]  # name, type of a list's length or None, type


def _read_ply(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    data = _read_bytes(path)
    end = re.search(rb"(?:^|\n)end_header[ \t\r]*\n", data[:65536])
    if not data.startswith(b"ply") or not end:
        raise DataError(f"{path}: not a PLY file: it does not begin with ply, or has no end_header")
    form, elements = _ply_header(data[:end.start()].decode("ascii", "replace"), path)
    body, found = end.end(), {}
    if form == "ascii":
        numbers, row = _parse(data[body:], path, 1 + data.count(b"\n", 0, body)), 0
    for element in elements:
        left = len(numbers.lines) - row if form == "ascii" else len(data) - body
        if element.count > left:
            raise DataError(f"{path}: {element.count} x {element.name} announced, but only {left} "
                            f"{'lines' if form == 'ascii' else 'bytes'} follow: cut off; fetch it again")
        if not element.count:
            found[element.name] = np.zeros((0, 3), np.int64)
        elif form == "ascii":
            found[element.name] = _ascii_element(numbers, row, element, found, path)
            row += element.count
        else:
            rows, body = _binary_rows(data, body, element, "<" if form == "binary_little_endian" else ">", path)
            found[element.name] = _binary_element(rows, element, found, path)
        if "vertex" in found and ("face" in found or all(e.name != "face" for e in elements)):
            break
    if "vertex" not in found:
        raise DataError(f"{path}: has no element vertex with x, y and z")
    return found["vertex"], found.get("face", np.zeros((0, 3), np.int64))


def _ply_header(text: str, path: PathLike) -> tuple[str, list[_Element]]:
    form, elements = None, []
    for number, line in enumerate(text.splitlines()[1:], 2):
        words = line.split()
        try:
            if not words or words[0] in ("comment", "obj_info"):
                continue
            if words[0] == "format" and words[1] in ("ascii", "binary_little_endian", "binary_big_endian"):
                form = words[1]
            elif words[0] == "element" and int(words[2]) >= 0:
                elements.append(_Element(words[1], int(words[2]), []))
            elif words[0] == "property" and words[1] == "list":
                if _PLY_TYPES[words[2]][0] == "f":
                    raise ValueError
                elements[-1].properties.append((words[4], _PLY_TYPES[words[2]], _PLY_TYPES[words[3]]))
            elif words[0] == "property":
                elements[-1].properties.append((words[2], None, _PLY_TYPES[words[1]]))
            else:
                raise ValueError
        except (ValueError, IndexError, KeyError):
            raise DataError(f"{path}, line {number}: {line[:60]!r} is not a line of a PLY header") from None
    if form is None:
        raise DataError(f"{path}: the PLY header has no line \"format ascii 1.0\" or \"format binary_... 1.0\"")
    names = [element.name for element in elements]
    if len(set(names)) != len(names) or any(not element.properties for element in elements if element.count):
        raise DataError(f"{path}: the PLY header has an element twice, or one without properties")
    return form, elements


def _places(element: _Element, names: Sequence[str], path: PathLike) -> list[int] | None:
    """The places of scalar properties in the element's list; a list property before them has no fixed place."""
    listed = [name for name, length, _ in element.properties]
    if any(length for _, length, _ in element.properties) or not set(names) <= set(listed):
        raise DataError(f"{path}: element {element.name} has the properties {', '.join(listed)}; expected "
                        f"{', '.join(names)}, and no list")
    return [listed.index(name) for name in names]


def _ascii_element(numbers: _Numbers, first: int, element: _Element, found: dict, path: PathLike):
    if element.name == "vertex":
        places = _places(element, ("x", "y", "z"), path)
        return _columns(numbers, first, element.count, places, path)
    if element.name == "face" and "vertex" in found and element.properties[0][1]:
        return _text_faces(numbers, first, element.count, len(found["vertex"]), path)
    return np.zeros((0, 3), np.int64)


def _binary_element(rows, element: _Element, found: dict, path: PathLike):
    if element.name == "vertex":
        places = _places(element, ("x", "y", "z"), path)
        return np.stack([rows[0][f"p{place}"] for place in places], 1).astype(np.float64)
    if element.name == "face" and "vertex" in found and element.properties[0][1]:
        triangles = [np.zeros((0, 3), np.int64)]
        for block in rows:
            polygons = block["p0"].astype(np.int64).reshape(len(block), -1)
            if polygons.shape[1] >= 3:
                _check_corners(polygons, len(found["vertex"]), lambda row: f"{path}, a face")
                triangles.append(_fan(polygons, path))
        return np.concatenate(triangles)
    return np.zeros((0, 3), np.int64)


def _binary_rows(data: bytes, start: int, element: _Element, order: str, path: PathLike):
    """The rows of an element, as structured arrays (one for each mixture of list lengths), and where they end."""
    lists = any(length for _, length, _ in element.properties)
    kind = _row_type(data, start, element, order, path)
    size = element.count * kind.itemsize
    if size <= len(data) - start:
        rows = np.frombuffer(data, kind, element.count, start)
        if all((rows[name] == rows[name][:1]).all() for name in kind.names if name.startswith("n")):
            return [rows], start + size
    if not lists:
        raise DataError(f"{path}: {element.count} x {element.name} of {kind.itemsize} bytes announced, but only "
                        f"{len(data) - start} bytes follow: cut off; fetch it again")
    if element.count > MAX_MIXED:
        raise DataError(f"{path}: {element.count} polygons of different sizes, over the limit of {MAX_MIXED}; "
                        "make triangles of them first")
    found: dict[np.dtype, list[np.ndarray]] = {}
    for _ in range(element.count):
        kind = _row_type(data, start, element, order, path)
        found.setdefault(kind, []).append(np.frombuffer(data, kind, 1, start))
        start += kind.itemsize
    return [np.concatenate(rows) for rows in found.values()], start


def _row_type(data: bytes, start: int, element: _Element, order: str, path: PathLike) -> np.dtype:
    """The layout of the row at `start`: field p<k> for property k, and n<k> for the length of a list."""
    fields: list = []
    end = start
    for number, (_, length, kind) in enumerate(element.properties):
        shape: tuple = ()
        if length is not None:
            shape = (_list_length(data, end, order + length, element, path),)
            fields.append((f"n{number}", order + length))
            end += np.dtype(length).itemsize
        fields.append((f"p{number}", order + kind, shape))
        end += np.dtype(kind).itemsize * math.prod(shape)
        if end > len(data):
            raise DataError(f"{path}: cut off in the element {element.name}, at byte {len(data)}; fetch it again")
    return np.dtype(fields)


def _list_length(data: bytes, place: int, kind: str, element: _Element, path: PathLike) -> int:
    cut = place + np.dtype(kind).itemsize > len(data)
    length = -1 if cut else int(np.frombuffer(data, kind, 1, place)[0])
    if not 0 <= length <= len(data) - place:
        raise DataError(f"{path}: cut off in the element {element.name}, or a list of {length} entries at byte "
                        f"{place}; fetch it again")
    return length
