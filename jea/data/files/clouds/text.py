"""Clouds as text, and the tables of numbers that data sets are made of."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from jea.data.files.clouds import numbers as text_numbers
from jea.data.files.clouds.numbers import Numbers, check_commas, clean_text, parse, read_cloud_bytes
from jea.errors import DataError

MAX_POINTS = 2 ** 24
LARGEST = 3.4e38  # coordinate; float32 ends there

# What the columns of x, y and z are named: by most programs, ParaView, and some scanners.
_NAMES = (("x", "y", "z"), ("points:0", "points:1", "points:2"), ("x_coord", "y_coord", "z_coord"))


def read_table(path: str | Path, *, columns: int | None = None, rows: int | None = None
               ) -> tuple[np.ndarray, np.ndarray]:
    """A table of numbers, between blanks or commas: values (R, C) float64 and each row's line (R,) in the file.

    columns: how many there must be; default: as in the first row, at least 3. rows: stop after so many lines.
    Raises DataError naming file and line: a line of another length, a word that is not a number, no rows.
    """
    data = clean_text(read_cloud_bytes(path), path)
    if rows is not None:
        data = _first_lines(data, rows)
    check_commas(data, path)
    numbers = parse(data, path)
    return _table(numbers, path, columns), numbers.lines


def check_cloud(points: np.ndarray, path: str | Path, lines: np.ndarray | None = None) -> np.ndarray:
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


def read_text(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) float64 and each point's line (N,) in the file."""
    data = clean_text(read_cloud_bytes(path), path)
    data, places, first_line = _header(data, path)
    check_commas(data, path, first_line)
    numbers = parse(data, path, first_line)
    if places is not None:
        return text_numbers.columns(numbers, places, path), numbers.lines
    if len(numbers.lines) > 1 and numbers.widths[0] == 1:
        numbers = _counted(numbers, path)
    return _table(numbers, path, None)[:, :3], numbers.lines


def _header(data: bytes, path: str | Path) -> tuple[bytes, list[int] | None, int]:
    """The text without its line of names, if it has one; the columns of x, y and z then; the line where it begins."""
    start = len(data) - len(data.lstrip())
    end = data.find(b"\n", start)
    end = len(data) if end < 0 else end
    line = data[start:min(end, start + 4096)]
    first = data.count(b"\n", 0, start) + 1
    text = line.decode("utf-8", "replace").lstrip("/").translate(str.maketrans(",;\t", "   "))
    names = [word.strip("\"'").lower() for word in text.split()]
    if len(names) < 3 or any(_is_number(name) for name in names):
        return data, None, 1
    for wanted in _NAMES:
        if set(wanted) <= set(names):
            return data[end:], [names.index(name) for name in wanted], first
    if b"," in line or b";" in line or b"\t" in line:
        raise DataError(f"{path}, line {first}: the columns are named {', '.join(names[:10])[:200]}; expected x, y and "
                        "z among them")
    return data, None, 1


def _is_number(word: str) -> bool:
    try:
        float(word)
        return True
    except ValueError:
        return False


def _counted(numbers: Numbers, path: str | Path) -> Numbers:
    """The rows after a line with their number; another such line and its rows may follow."""
    keep, row, widths = np.ones(len(numbers.lines), bool), 0, numbers.widths
    lengths, firsts = widths.tolist(), numbers.values[numbers.ends[:-1]].tolist()
    while row < len(keep):
        count, left = firsts[row], len(keep) - row - 1
        if lengths[row] != 1 or not 1 <= count <= left or count != int(count) or lengths[row + 1] == 1:
            raise DataError(f"{path}, line {numbers.lines[row]}: {count:g}; expected the number of the points that "
                            f"follow, which are {left}, or at least x, y and z in each line. Cut off? Fetch it again")
        keep[row] = False
        row += int(count) + 1
    values = numbers.values[np.repeat(keep, widths)]
    return Numbers(values, np.append(0, np.cumsum(widths[keep])), numbers.lines[keep])


def _table(numbers: Numbers, path: str | Path, columns: int | None) -> np.ndarray:
    if not len(numbers.lines):
        raise DataError(f"{path}: cloud is empty; expected a point per line")
    widths = numbers.widths
    expected = int(widths[0]) if columns is None else columns
    if expected < 3:
        raise DataError(f"{path}, line {numbers.lines[0]}: {expected} numbers; expected at least x, y and z")
    wrong = np.flatnonzero(widths != expected)
    if len(wrong):
        raise DataError(f"{path}, line {numbers.lines[wrong[0]]}: {widths[wrong[0]]} numbers; expected {expected}")
    return numbers.values.reshape(-1, expected)


def _first_lines(data: bytes, rows: int) -> bytes:
    """The first `rows` lines, without looking at the others."""
    place = 0
    for _ in range(rows):
        place = data.find(b"\n", place) + 1
        if not place:
            return data
    return data[:place]
