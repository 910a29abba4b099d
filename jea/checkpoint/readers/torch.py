"""Reads PyTorch checkpoints (`.pth`, `.pt`, `.pth.tar`, `.t7`) without PyTorch.

Two containers exist. Since torch 1.6 a checkpoint is a zip archive: `<prefix>/data.pkl` is a pickle of the saved
object, and `<prefix>/data/<key>` are the storages that it refers to. Before that it was five pickles in a row (magic
number, protocol version, system information, object, list of storage keys) followed by the storages, each with its
length in front. Source: torch/serialization.py. Pickles go through pickle_machine.py, tensors are those of
torch_tensors.py.
"""
from __future__ import annotations

import struct

import numpy as np

from jea.checkpoint.errors import Malformed, shown
from jea.checkpoint.readers.pickle_machine import FileMachine, Machine
from jea.checkpoint.readers.pickle_symbols import COMMON
from jea.checkpoint.readers.torch_tensors import TorchSource

#: The pickles of a checkpoint hold names and shapes: about 150 bytes per tensor.
MAX_PICKLE = 64 << 20
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_HEAD = b"\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little") + b"."
_LEGACY_PROTOCOL = 1001


def is_legacy(head):
    """Tell whether a file that begins with `head` is in the container before torch 1.6, a pickle of a magic number."""
    framed = head[2:3] == b"\x95"  # FRAME and its length, from protocol 4 on
    return head[:1] == b"\x80" and head[11 if framed else 2:].startswith(_LEGACY_HEAD)


class TorchZip(TorchSource):
    """Read the container since torch 1.6. `archive` is a ZipArchive; `root` is the saved object."""

    format = "torch-zip"

    def __init__(self, archive, budget):
        super().__init__()
        self.archive = archive
        for name in archive.entries:
            parts = name.split("/")
            if ".." in parts or name.startswith("/") or "\\" in name or ":" in parts[0]:
                raise Malformed(f"the archive holds the path {shown(name)!r}; refused")
        pickles = [name for name in archive.entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Malformed("zip archive without one <name>/data.pkl, so not a PyTorch checkpoint")
        self.prefix = pickles[0][:-len("data.pkl")]
        if self.prefix + "constants.pkl" in archive.entries:
            raise Malformed("is a TorchScript program, not a checkpoint; save the model's state_dict instead")
        if self.prefix + "byteorder" in archive.entries:  # since torch 2.0
            order = archive.read(self.prefix + "byteorder", 16, budget).strip()
            if order not in (b"little", b"big"):
                raise Malformed(f"unknown byte order {shown(order)!r}")
            self.byte_order_big = order == b"big"
        content = archive.read(pickles[0], MAX_PICKLE, budget)
        machine = Machine(content, symbols=self.symbols(), persistent=self._persistent, file_size=archive.file_size)
        self.root = machine.run()
        if machine.position != len(content):
            raise Malformed("there are bytes after the end of the pickle; the file is damaged")

    def _entry(self, key):
        name = f"{self.prefix}data/{key}"
        if "/" in key or name not in self.archive.entries:
            raise Malformed(f"storage {shown(key)!r} is missing from the archive; the file is incomplete, "
                            f"fetch it again")
        return name

    def storage_bytes(self, key):
        return self.archive.entries[self._entry(key)].size

    def read_storage(self, key, budget):
        return self.archive.read_array(self._entry(key), budget)


class TorchLegacy(TorchSource):
    """Read the container before torch 1.6, from an open file."""

    format = "torch-legacy"

    def __init__(self, file, file_size):
        super().__init__()
        self.file, self._storages, self._places = file, {}, {}
        position = 0

        def next_pickle(symbols=COMMON, persistent=None):
            nonlocal position
            machine = FileMachine(file, position, min(file_size, position + MAX_PICKLE), symbols=symbols,
                                  persistent=persistent)
            value = machine.run()
            position = machine.offset
            return value

        if next_pickle() != LEGACY_MAGIC:
            raise Malformed("not a PyTorch checkpoint: wrong magic number")
        protocol = next_pickle()
        if protocol != _LEGACY_PROTOCOL:
            raise Malformed("unknown version of PyTorch's old file format")
        system = next_pickle()
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise Malformed("written on a big-endian machine in PyTorch's old file format; load it with "
                            "PyTorch and save it again")
        self.root = next_pickle(self.symbols(), self._persistent)
        keys = next_pickle()
        if type(keys) is not list or not all(type(key) is str for key in keys) or len(set(keys)) != len(keys):
            raise Malformed("the list of storages is damaged; fetch the file again")
        self._locate(keys, position, file_size)

    def note_storage(self, storage):
        known = self._storages.setdefault(storage.key, storage)
        if (known.dtype, known.total) != (storage.dtype, storage.total):
            raise Malformed(f"storage {shown(storage.key)!r} is described in two ways; the file is damaged")

    def _locate(self, keys, position, file_size):
        for key in keys:
            if key not in self._storages:
                raise Malformed(f"storage {shown(key)!r} belongs to no tensor; the file is damaged")
            storage = self._storages[key]
            nbytes = storage.nbytes
            self.file.seek(position)
            length = self.file.read(8)
            if position + 8 + nbytes > file_size or len(length) != 8:
                raise Malformed(f"{storage} ends beyond the end of the file; the file is incomplete, fetch it again")
            if struct.unpack("<q", length)[0] != storage.total:
                raise Malformed(f"storage {shown(key)!r} has another length than its tensors say; damaged")
            self._places[key] = (position + 8, nbytes)
            position += 8 + nbytes
        if position != file_size:
            raise Malformed("there are bytes after the last storage; the file is damaged")

    def _place(self, key):
        if key not in self._places:
            raise Malformed(f"storage {shown(key)!r} is missing; the file is incomplete, fetch it again")
        return self._places[key]

    def storage_bytes(self, key):
        return self._place(key)[1]

    def read_storage(self, key, budget):
        start, nbytes = self._place(key)
        budget.take(nbytes, f"storage {shown(key)!r}")
        content = np.empty(nbytes, np.uint8)
        self.file.seek(start)
        if self.file.readinto(content.data) != nbytes:
            raise Malformed("the file is incomplete, fetch it again")
        return content
