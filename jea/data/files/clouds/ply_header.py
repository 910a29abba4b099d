"""The header of a PLY file: its form, its elements and their properties."""
from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jea.errors import DataError

_TYPES = {"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
              "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4",
              "float32": "f4", "double": "f8", "float64": "f8"}


_INDICES = ("vertex_indices", "vertex_index")


class Element(NamedTuple):
    """Properties are (name, type of a list's length or None, type)."""

    name: str
    count: int
    properties: list[tuple[str, str | None, str]]

    @property
    def least_bytes(self) -> int:
        """Of a binary row, whose lists are empty."""
        return sum(np.dtype(length or kind).itemsize for _, length, kind in self.properties)

    @property
    def has_lists(self) -> bool:
        return any(length for _, length, _ in self.properties)


class Lists(NamedTuple):
    """One list property of all rows: its values, row after row, and how many each row has."""

    values: np.ndarray
    sizes: np.ndarray


def read_header(text: str, path: str | Path) -> tuple[str, list[Element]]:
    """The form and the elements that a header announces."""
    form, elements = None, []
    for number, line in enumerate(text.splitlines()[1:], 2):
        words = line.split()
        try:
            if not words or words[0] in ("comment", "obj_info"):
                continue
            if words[0] == "format" and words[1] in ("ascii", "binary_little_endian", "binary_big_endian"):
                form = words[1]
            elif words[0] == "element" and int(words[2]) >= 0:
                elements.append(Element(words[1], int(words[2]), []))
            elif words[0] == "property" and words[1] == "list":
                if _TYPES[words[2]][0] == "f":
                    raise ValueError
                elements[-1].properties.append((words[4], _TYPES[words[2]], _TYPES[words[3]]))
            elif words[0] == "property":
                elements[-1].properties.append((words[2], None, _TYPES[words[1]]))
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


def list_place(element: Element, path: str | Path) -> int:
    """Which property holds the indices: the one named so, else the only list."""
    names = [name for name, length, _ in element.properties if length]
    chosen = [name for name in names if name in _INDICES] or names[:1] * (len(names) == 1)
    if not chosen:
        raise DataError(f"{path}: element {element.name} has the properties "
                        f"{', '.join(name for name, _, _ in element.properties)}; expected a list {_INDICES[0]}")
    return next(k for k, (name, length, _) in enumerate(element.properties) if length and name == chosen[0])


def xyz_places(element: Element, path: str | Path) -> list[int]:
    """The places of x, y and z among a vertex's properties; lists have no fixed place."""
    listed = [name for name, _, _ in element.properties]
    if element.has_lists or not {"x", "y", "z"} <= set(listed):
        raise DataError(f"{path}: element {element.name} has the properties {', '.join(listed)}; expected x, y, z, "
                        f"and no list")
    return [listed.index(name) for name in "xyz"]
