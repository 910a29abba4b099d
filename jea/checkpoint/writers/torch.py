"""Writes `.pth` files for `torch.load(path, weights_only=True)`, and `.pkl` files for `jt.load`.

Neither PyTorch nor Jittor is needed.  The `.pth` is the zip container described in `torch_reader`;
its pickle is written opcode by opcode, because the standard pickler would need the real torch classes to name
them.
"""
from __future__ import annotations

import struct
import zipfile

import numpy as np

from jea.checkpoint.errors import Malformed
from jea.checkpoint.readers.torch_tensors import STORAGE_TYPES
from jea.checkpoint.tensors import contiguous_strides

_ALIGNMENT = 64  # bytes; as torch does, so that torch.load(mmap=True) gets aligned tensors
_STORAGE_NAMES = {dtype: name for name, dtype in STORAGE_TYPES.items()}
_ZIP64_FROM = (1 << 31) - 1


def write_pth(file, tensors, wrapper="", extra=None):
    """Write `tensors` (name to array) to an open binary file as a PyTorch checkpoint.

    The saved object is an `OrderedDict` of contiguous tensors, or with `wrapper` a dict that holds it
    under that name beside the plain Python values of `extra`: `write_pth(f, sd, "net", {"step": 30000})`.
    """
    storages = []
    if wrapper:
        content = {wrapper: _StateDict(tensors, storages), **(extra or {})}
    else:
        content = _StateDict(tensors, storages)
    pickled = _Pickler().dumps(content)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        def record(name, content):
            member = zipfile.ZipInfo(f"archive/{name}")
            member.file_size = len(content)
            head = 30 + len(member.filename) + (20 if len(content) * 1.05 > _ZIP64_FROM else 0)
            padding = -(file.tell() + head + 4) % _ALIGNMENT
            member.extra = struct.pack("<2H", 0x4246, padding) + b"Z" * padding  # "FB": torch's own field
            with archive.open(member, "w") as stream:
                stream.write(content)

        record("data.pkl", pickled)
        record("byteorder", b"little")
        for index, array in enumerate(storages):
            array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
            record(f"data/{index}", array.reshape(-1).view(np.uint8).data if array.size else b"")
        record("version", b"3\n")


class _StateDict:
    def __init__(self, tensors, storages):
        self.tensors, self.storages = tensors, storages


class _Pickler:
    """Protocol 2 without a memo: nothing is shared, and nothing but data can be written."""

    def __init__(self):
        self.parts = [b"\x80\x02"]

    def dumps(self, value):
        self._value(value)
        return b"".join(self.parts + [b"."])

    def _text(self, text):
        data = text.encode("utf-8")
        self.parts.append(b"X" + struct.pack("<I", len(data)) + data)

    def _whole(self, number):
        if -1 << 31 <= number < 1 << 31:
            self.parts.append(b"J" + struct.pack("<i", number))
        else:
            data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
            self.parts.append(b"\x8a" + struct.pack("<B", len(data)) + data)

    def _tuple(self, values):
        self.parts.append(b"(")
        for value in values:
            self._value(value)
        self.parts.append(b"t")

    def _items(self, items, write_value):
        self.parts.append(b"(")
        for key, value in items:
            self._value(key)
            write_value(value)
        self.parts.append(b"u")

    def _tensor(self, array, storages):
        if array.dtype.name not in _STORAGE_NAMES:
            raise Malformed(f"a tensor has type {array.dtype}, which a .pth file cannot hold")
        self.parts.append(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        self._text("storage")
        self.parts.append(b"ctorch\n" + _STORAGE_NAMES[array.dtype.name].encode() + b"\n")
        self._text(str(len(storages)))
        self._text("cpu")
        self._whole(array.size)
        self.parts.append(b"tQ")
        self._whole(0)
        self._tuple(array.shape)
        self._tuple(contiguous_strides(array.shape))
        self.parts.append(b"\x89ccollections\nOrderedDict\n)RtR")
        storages.append(array)

    def _value(self, value):
        if value is None:
            self.parts.append(b"N")
        elif isinstance(value, (bool, np.bool_)):
            self.parts.append(b"\x88" if value else b"\x89")
        elif isinstance(value, (int, np.integer)):
            self._whole(int(value))
        elif isinstance(value, (float, np.floating)):
            self.parts.append(b"G" + struct.pack(">d", value))
        elif isinstance(value, str):
            self._text(value)
        elif isinstance(value, _StateDict):
            self.parts.append(b"ccollections\nOrderedDict\n)R")
            self._items(value.tensors.items(), lambda array: self._tensor(array, value.storages))
        elif isinstance(value, dict):
            self.parts.append(b"}")
            self._items(value.items(), self._value)
        elif isinstance(value, tuple):
            self._tuple(value)
        elif isinstance(value, list):
            self.parts.append(b"](")
            for item in value:
                self._value(item)
            self.parts.append(b"e")
        else:
            raise Malformed(f"a value of type {type(value).__name__} cannot be written; use plain numbers, "
                            f"texts, lists and dicts")
