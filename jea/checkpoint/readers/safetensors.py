"""Reads `.safetensors` files.

Format: 8 bytes little-endian header length, a JSON header `{name: {"dtype", "shape", "data_offsets"}}`
(offsets from the end of the header; `__metadata__` maps text to text), then the tensors' bytes without
gaps. Source: the format section of the README of huggingface/safetensors.
"""
from __future__ import annotations

import struct

import numpy as np

from jea.checkpoint.errors import Malformed, shown
from jea.checkpoint.readers.json_text import parse_json
from jea.checkpoint.tensors import ITEMSIZE, LazyTensor, checked_shape, decode, loaded_type

MAX_HEADER = 4 << 20  # about 100 bytes per tensor
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
           "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16",
           "U8": "uint8", "BOOL": "bool"}


class SafeTensor(LazyTensor):
    """Bytes `begin` to `end` of an open file."""

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
    """`root` maps names to lazy tensors, `meta` is the file's `__metadata__`."""

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
        dtype = DTYPES.get(entry["dtype"]) if type(entry["dtype"]) is str else None
        if dtype is None:
            raise Malformed(f"tensor {shown(name)!r} has type {shown(entry['dtype'])!r}; read are "
                            f"{', '.join(DTYPES)}. Convert it where it was made")
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
