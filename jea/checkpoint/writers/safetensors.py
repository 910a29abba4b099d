"""Writes `.safetensors` files; the format is described in readers/safetensors.py."""
from __future__ import annotations

import json
import struct

import numpy as np

from jea.checkpoint.errors import Malformed, shown
from jea.checkpoint.readers.safetensors import DTYPES

_CODES = {name: code for code, name in DTYPES.items()}


def write_safetensors(file, tensors, meta):
    """Write `tensors` (name to array) and `meta` (text to text) to an open binary file."""
    header, begin = {"__metadata__": meta} if meta else {}, 0
    for name, array in tensors.items():
        if array.dtype.name not in _CODES:
            raise Malformed(f"{shown(name)} has type {array.dtype}, which safetensors cannot hold")
        header[name] = {"dtype": _CODES[array.dtype.name], "shape": list(array.shape),
                        "data_offsets": [begin, begin + array.nbytes]}
        begin += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for array in tensors.values():
        if array.size:
            array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
            file.write(array.reshape(-1).view(np.uint8).data)
