"""Point Cloud Library's PCD files: ASCII and binary, of the fields x, y and z."""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from jea.data.files.clouds.numbers import clean_text, columns, parse, read_cloud_bytes
from jea.data.files.clouds.polygons import NO_TRIANGLES
from jea.errors import DataError

_KINDS = {"F": "f", "I": "i", "U": "u"}


def read_pcd(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) float64."""
    data = read_cloud_bytes(path)
    end = re.search(rb"(?:^|\n)DATA[ \t]+(\w+)[ \t\r]*\n", data[:65536])
    if not end:
        raise DataError(f"{path}: not a PCD file: its header has no line DATA")
    header = _header(data[:end.start()].decode("ascii", "replace"), path)
    names, kinds, count = header["names"], header["kinds"], header["points"]
    missing = [name for name in "xyz" if name not in names]
    if missing:
        raise DataError(f"{path}: has no field {', '.join(missing)}; it has {', '.join(names[:20])}")
    form = end.group(1).decode("ascii", "replace").lower()
    if form == "ascii":
        numbers = parse(clean_text(data[end.end():], path), path, 1 + data.count(b"\n", 0, end.end()))
        if len(numbers.lines) != count:
            raise DataError(f"{path}: {count} points announced, {len(numbers.lines)} lines follow: cut off? Fetch it "
                            f"again")
        places = np.cumsum([0, *(repeat for _, repeat in kinds)])
        return columns(numbers, [int(places[names.index(name)]) for name in "xyz"], path), NO_TRIANGLES
    if form != "binary":
        raise DataError(f"{path}: DATA {form[:40]}; ascii and binary are read: convert it with "
                        f"pcl_convert_pcd_ascii_binary")
    dtype = np.dtype([(f"f{k}", kind, (repeat,)) for k, (kind, repeat) in enumerate(kinds)])
    if count * dtype.itemsize > len(data) - end.end():
        raise DataError(f"{path}: {count} points of {dtype.itemsize} bytes announced, {len(data) - end.end()} bytes "
                        f"follow: cut off; fetch it again")
    rows = np.frombuffer(data, dtype, count, end.end())
    return np.stack([rows[f"f{names.index(name)}"][:, 0] for name in "xyz"], 1).astype(np.float64), NO_TRIANGLES


def _header(text: str, path: str | Path) -> dict:
    lines: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = line.split()
        if words and not line.startswith("#"):
            lines[words[0].upper()] = words[1:]
    names = lines.get("FIELDS", [])
    try:
        sizes, types = [int(n) for n in lines["SIZE"]], lines["TYPE"]
        repeats = [int(n) for n in lines.get("COUNT", ["1"] * len(names))]
        points = int(lines["POINTS"][0]) if "POINTS" in lines else int(lines["WIDTH"][0]) * int(lines["HEIGHT"][0])
        if not len(names) == len(sizes) == len(types) == len(repeats) or not names or points < 0:
            raise ValueError
        kinds = [(np.dtype(f"<{_KINDS[kind]}{size}"), repeat) for kind, size, repeat in zip(types, sizes, repeats)]
        named = [name for name in names if name != "_"]  # "_" is padding
        if len(set(named)) != len(named) or min(repeats) < 1 or sum(repeats) > 100_000:
            raise ValueError
    except (KeyError, IndexError, ValueError, TypeError):
        raise DataError(f"{path}: the PCD header's FIELDS, SIZE, TYPE, COUNT and POINTS do not fit together") from None
    return {"names": names, "kinds": kinds, "points": points}
