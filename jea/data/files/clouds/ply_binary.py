"""The elements of binary PLY files. Rows of one length are one array; others are walked through, one by one."""
from __future__ import annotations

import struct
from array import array
from pathlib import Path
from typing import Sequence

import numpy as np

from jea.data.files.clouds.ply_header import Element, Lists, list_place, xyz_places
from jea.errors import DataError

MAX_MIXED = 2 ** 23  # rows that may be walked through

_GATHERED = 2 ** 20  # entries of lists at once


def read_binary(data: bytes, start: int, elements: Sequence[Element], order: str, path: str | Path) -> dict:
    """{"vertex": (N, 3) float64, "face": Lists, "tristrips": Lists}, as far as they are there; order: "<" or ">"."""
    found: dict = {}
    for element in elements:
        if not element.count:
            if element.name == "vertex":
                found["vertex"] = np.zeros((0, 3))
            continue
        place = list_place(element, path) if element.name in ("face", "tristrips") else None
        places = xyz_places(element, path) if element.name == "vertex" else None
        rows = _equal_rows(data, start, element, order)
        if rows is None and not element.has_lists or element.count > len(data) - start:
            size = f" of {element.least_bytes} bytes" if not element.has_lists else ""
            raise DataError(f"{path}: {element.count} x {element.name}{size} announced, but only {len(data) - start} "
                            f"bytes follow: cut off; fetch it again")
        if rows is None:
            lists, start = _walk(data, start, element, order, place, path)
            if place is not None:
                found[element.name] = lists
            continue
        start += rows.nbytes
        if places is not None:
            found["vertex"] = np.stack([rows[f"p{k}"] for k in places], 1).astype(np.float64)
        elif place is not None:
            values = rows[f"p{place}"].reshape(element.count, -1)
            found[element.name] = Lists(_whole(values.reshape(-1)), np.full(element.count, values.shape[1], np.int32))
    return found


def _equal_rows(data: bytes, start: int, element: Element, order: str) -> np.ndarray | None:
    """The rows as one structured array, where they all fit and their lists have one length; else None."""
    fields: list = []
    end = start
    for number, (_, length, kind) in enumerate(element.properties):
        size = 1
        if length is not None:
            width = np.dtype(length).itemsize
            if end + width > len(data):
                return None
            size = int(np.frombuffer(data, order + length, 1, end)[0])
            if not 0 <= size <= len(data) - end:
                return None
            fields.append((f"n{number}", order + length))
            end += width
        fields.append((f"p{number}", order + kind, (size,) if length is not None else ()))
        end += np.dtype(kind).itemsize * size
    if element.count * (end - start) > len(data) - start:
        return None
    rows = np.frombuffer(data, np.dtype(fields), element.count, start)
    equal = all((rows[name] == rows[name][:1]).all() for name in rows.dtype.names if name.startswith("n"))
    return rows if equal else None


def _whole(values: np.ndarray) -> np.ndarray:
    """Indices as int32; what is no whole number of that range becomes -2, which no vertex has."""
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        values = np.where((np.abs(values) < 2 ** 31) & (values == np.floor(values)), values, -2)
    elif values.dtype.itemsize == 4:
        values = np.where(values < 2 ** 31, values, -2)
    return values.astype(np.int32)


def _walk(data: bytes, start: int, element: Element, order: str, place: int | None, path: str | Path):
    """Go through rows of different lengths; returns the Lists of property `place`, and where the rows end."""
    if element.count > MAX_MIXED:
        raise DataError(f"{path}: {element.count} x {element.name} with lists of different lengths, over the limit of "
                        f"{MAX_MIXED}; make triangles of them first")
    steps: list = []  # (bytes to go on, reader of a list's length or None, bytes of its entries, is it the wanted one)
    for number, (_, length, kind) in enumerate(element.properties):
        width = np.dtype(kind).itemsize
        if length is None:
            steps.append((width, None, 0, False))
        else:
            unpack = struct.Struct(order + np.dtype(length).char).unpack_from
            steps.append((np.dtype(length).itemsize, unpack, width, number == place))
    starts, sizes, end = array("q"), array("i"), len(data)
    for _ in range(element.count):
        for width, unpack, entry, wanted in steps:
            if unpack is not None:
                size = unpack(data, start)[0] if start + width <= end else end
                if not 0 <= size <= end - start:
                    raise DataError(f"{path}: cut off in the element {element.name}, or a list of {size} entries at "
                                    f"byte {start}; fetch it again")
                if wanted:
                    starts.append(start + width)
                    sizes.append(size)
                start += size * entry
            start += width
        if start > end:
            raise DataError(f"{path}: cut off in the element {element.name}, at byte {end}; fetch it again")
    if place is None:
        return None, start
    kind = np.dtype(order + element.properties[place][2])
    return Lists(_gather(data, np.array(starts), np.array(sizes), kind), np.array(sizes, np.int32)), start


def _gather(data: bytes, starts: np.ndarray, sizes: np.ndarray, kind: np.dtype) -> np.ndarray:
    """The entries of the lists at bytes `starts`, as int32."""
    raw, values, ends = np.frombuffer(data, np.uint8), np.empty(int(sizes.sum()), np.int32), np.cumsum(sizes)
    done = row = 0
    while row < len(sizes):
        if sizes[row] >= _GATHERED:  # a long list stands in one piece
            entries = np.frombuffer(data, kind, sizes[row], starts[row])
            last = row + 1
        else:
            last = max(row + 1, int(np.searchsorted(ends, done + _GATHERED, side="right")))
            some = sizes[row:last]
            within = np.arange(int(some.sum())) - np.repeat(np.cumsum(some) - some, some)
            places = np.repeat(starts[row:last], some) + within * kind.itemsize
            entries = raw[places[:, None] + np.arange(kind.itemsize)].reshape(-1).view(kind)
        values[done:done + len(entries)] = _whole(entries)
        done, row = done + len(entries), last
    return values
