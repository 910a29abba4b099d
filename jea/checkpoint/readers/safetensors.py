"""Reads and writes ``.safetensors`` files.

Format: 8 bytes little-endian header length, a JSON header ``{name: {"dtype", "shape", "data_offsets"}}``
(offsets from the end of the header; ``__metadata__`` maps text to text), then the tensors' bytes without
gaps. Source: the format section of the README of huggingface/safetensors.
"""
from __future__ import annotations

import json
import re
import struct

import numpy as np

from jea.checkpoint.errors import Malformed, shown
from jea.checkpoint.tensors import ITEMSIZE, LazyTensor, checked_shape, decode, loaded_type

MAX_HEADER = 4 << 20  # about 100 bytes per tensor
_MAX_DEPTH = 100
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.S)
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
           "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16",
           "U8": "uint8", "BOOL": "bool"}
_CODES = {name: code for code, name in _DTYPES.items()}


class SafeTensor(LazyTensor):
    """Bytes ``begin`` to ``end`` of an open file."""

    __slots__ = ("source", "begin", "end")

    def __init__(self, source, dtype, shape, begin, end):
        self.source, self.dtype, self.shape, self.begin, self.end = source, dtype, shape, begin, end

    def load(self, budget):
        budget.take(self.end - self.begin + self.size * loaded_type(self.dtype).itemsize, "a tensor")
        if not self.size:
            return np.empty(self.shape, loaded_type(self.dtype))
        content = np.empty(self.end - self.begin, np.uint8)
        self.source.file.seek(self.begin)
        if self.source.file.readinto(content.data) != content.size:
            raise Malformed("the file is incomplete, fetch it again")
        return decode(content, self.dtype).reshape(self.shape)


class SafeTensors:
    """``root`` maps names to lazy tensors, ``meta`` is the file's ``__metadata__``."""

    format = "safetensors"

    def __init__(self, file, file_size):
        self.file = file
        length = struct.unpack("<Q", file.read(8))[0]
        if length > min(MAX_HEADER, file_size - 8):
            raise Malformed(f"says that its header has {length:,} bytes, of {file_size:,} in the file; "
                            f"damaged or not a safetensors file")
        header = parse_json(file.read(length).decode("utf-8"))
        if type(header) is not dict:
            raise Malformed("the header is not a JSON object; not a safetensors file")
        self.meta = header.pop("__metadata__", {})
        if type(self.meta) is not dict or not all(type(value) is str for value in self.meta.values()):
            raise Malformed("the header's __metadata__ is not a table of texts; the file is damaged")
        self.root = {name: self._tensor(name, entry, 8 + length) for name, entry in header.items()}
        end = 8 + length
        for tensor in sorted(self.root.values(), key=lambda tensor: (tensor.begin, tensor.end)):
            if tensor.begin != end:
                raise Malformed("tensors overlap or leave gaps; the file is damaged")
            end = tensor.end
        if end != file_size:
            raise Malformed(f"the tensors end at byte {end:,} of {file_size:,}; the file is incomplete or "
                            f"damaged, fetch it again")

    def _tensor(self, name, entry, base):
        if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise Malformed(f"the header's entry {shown(name)!r} is not a tensor; the file is damaged")
        dtype = _DTYPES.get(entry["dtype"]) if type(entry["dtype"]) is str else None
        if dtype is None:
            raise Malformed(f"tensor {shown(name)!r} has type {shown(entry['dtype'])!r}; read are "
                            f"{', '.join(_DTYPES)}. Convert it where it was made")
        shape = checked_shape(entry["shape"], ITEMSIZE[dtype])
        offsets = entry["data_offsets"]
        if type(offsets) is not list or len(offsets) != 2 \
                or not all(type(n) is int and n >= 0 for n in offsets):
            raise Malformed(f"tensor {shown(name)!r} has odd offsets; the file is damaged")
        tensor = SafeTensor(self, dtype, shape, base + offsets[0], base + offsets[1])
        if offsets[1] - offsets[0] != tensor.size * ITEMSIZE[dtype]:
            raise Malformed(f"tensor {shown(name)!r} of shape {shape} and type {dtype} has "
                            f"{offsets[1] - offsets[0]:,} bytes; the file is damaged")
        return tensor


def parse_json(text):
    """JSON from a file that is not trusted: no deep nesting, repeated keys, endless digits or NaN."""
    depth = 0  # no help from RecursionError: Jittor lifts the limit beyond what the C stack holds
    for match in _STRING_OR_BRACKET.finditer(text):
        depth += 1 if match[0] in "[{" else -1 if match[0] in "]}" else 0
        if depth > _MAX_DEPTH:
            raise Malformed("the JSON header is nested too deeply; the file is damaged")

    def pairs(items):
        made = dict(items)
        if len(made) != len(items):
            raise Malformed("the JSON header holds a name twice; the file is damaged")
        return made

    def whole(digits):
        if len(digits) > 20:  # int() of a million digits takes minutes
            raise Malformed("the JSON header holds an absurdly large number; the file is damaged")
        return int(digits)

    def constant(name):
        raise Malformed(f"the JSON header holds {name}; the file is damaged")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_int=whole, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise Malformed("the JSON header cannot be read; the file is damaged") from error


def write_safetensors(file, tensors, meta):
    """Write ``tensors`` (name to array) and ``meta`` (text to text) to an open binary file."""
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
