"""jea's own checkpoint format: an uncompressed `.npz` without pickle.

A zip archive of one `<key>.npy` per tensor and `__meta__.npy`, a uint8 array that holds JSON (model name
and arguments, config, step, metrics, version).  `numpy.load(path)` opens it too.  Keys are any texts;
training checkpoints group theirs by prefix: `model/backbone.layer1.0.conv1.weight`, `optimizer/...`.

Written here with zipfile and read with `zip_reader`, because `numpy.savez` takes keys as keyword
arguments (`file` is not a valid one) and `numpy.load` allocates what a header claims before it looks at
the file.
"""
from __future__ import annotations

import re
import struct

import numpy as np

from jea.checkpoint.errors import Malformed, open_regular, reading, shown
from jea.checkpoint.readers.json_text import parse_json
from jea.checkpoint.readers.zip import ZipArchive
from jea.checkpoint.tensors import ITEMSIZE, Budget, LazyTensor, checked_shape, decode, loaded_type

META = "__meta__"
_MAX_META = 4 << 20
_MAX_HEADER = 4096
_HEADER = re.compile(r"\{'descr': '([<>|])([biuf][1248])', 'fortran_order': (False|True), "
                     r"'shape': \(((?:\d{1,18}, ?)*(?:\d{1,18})?)\), \}\s*")
_KINDS = {np.dtype(name).str[1:]: name for name in ITEMSIZE if name != "bfloat16"}


def load_npz(path):
    """Return `(tensors, meta)` of a file that `save_npz` (or `numpy.savez`) wrote; all tensors are read.

    Raises `CheckpointError`.
    """
    with reading(path), open_regular(path) as file:
        size = file.seek(0, 2)
        budget = Budget(size)
        source = Npz(ZipArchive(file, size), budget)
        return {key: tensor.load(budget) for key, tensor in source.root.items()}, source.meta


class NpyTensor(LazyTensor):
    """One `.npy` entry; `header` bytes stand before its numbers."""

    __slots__ = ("archive", "entry", "header", "big_endian", "fortran")

    def __init__(self, archive, name):
        head = archive.peek(name, _MAX_HEADER)
        if head[:6] != b"\x93NUMPY" or len(head) < 12:
            raise Malformed(f"{shown(name)!r} in the archive is not a numpy array")
        if head[6] == 1:
            self.header = 10 + struct.unpack_from("<H", head, 8)[0]
            text = head[10:self.header]
        else:
            self.header = 12 + struct.unpack_from("<I", head, 8)[0]
            text = head[12:self.header]
        match = _HEADER.fullmatch(text.decode("latin-1"))
        if match is None or match[2] not in _KINDS:
            raise Malformed(f"{shown(name)!r} in the archive is not an array of plain numbers (its header: "
                            f"{shown(text)}); objects, text and records are refused")
        self.archive, self.entry = archive, name
        self.big_endian, self.fortran, self.dtype = match[1] == ">", match[3] == "True", _KINDS[match[2]]
        self.shape = checked_shape(tuple(int(n) for n in match[4].replace(" ", "").split(",") if n),
                                   ITEMSIZE[self.dtype])
        if self.header + self.size * ITEMSIZE[self.dtype] != archive.entries[name].size:
            raise Malformed(f"{shown(name)!r} in the archive has shape {self.shape} but "
                            f"{archive.entries[name].size - self.header:,} bytes of data; damaged")

    def load(self, budget):
        content = self.archive.read_array(self.entry, budget)[self.header:]
        if loaded_type(self.dtype).itemsize > ITEMSIZE[self.dtype] or self.fortran:
            budget.take(2 * content.size, f"{shown(self.entry)!r}")
        flat = decode(content, self.dtype, self.big_endian)
        return np.asarray(flat.reshape(self.shape, order="F" if self.fortran else "C"), order="C")


class Npz:
    """`root` maps names to lazy tensors, `meta` is the JSON entry ({} in a file of `numpy.savez`)."""

    format = "npz"

    def __init__(self, archive, budget):
        self.root, self.meta = {}, {}
        for name in archive.entries:
            if not name.endswith(".npy"):
                raise Malformed(f"zip archive with {shown(name)!r} in it: neither a PyTorch checkpoint nor "
                                f"an .npz file")
            tensor = NpyTensor(archive, name)
            if name == f"{META}.npy":
                if tensor.dtype != "uint8" or tensor.size > _MAX_META:
                    raise Malformed("the meta data is not a JSON text")
                self.meta = parse_json(tensor.load(budget).tobytes().decode("utf-8"))
                if type(self.meta) is not dict:
                    raise Malformed("the meta data is not a JSON object")
            else:
                self.root[name[:-len(".npy")]] = tensor
