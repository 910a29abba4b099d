"""Reads PyTorch checkpoints (``.pth``, ``.pt``, ``.pth.tar``, ``.t7``) without PyTorch.

Two containers exist.  Since torch 1.6 a checkpoint is a zip archive: ``<prefix>/data.pkl`` is a pickle of the
saved object in which each storage is a persistent id ``("storage", type, key, location, numel)``, and
``<prefix>/data/<key>`` are the storages.  Before that it was five pickles in a row (magic number, protocol
version, system information, object, list of storage keys) followed by the storages, each with its length in
front.  A tensor is a view of a storage: ``_rebuild_tensor_v2(storage, offset, size, stride, ...)``.

Sources: torch/serialization.py and torch/_utils.py.  Pickles go through :mod:`.safe_pickle`.
"""
from __future__ import annotations

import struct

import numpy as np

from jea.checkpoint.errors import Malformed, shown
from jea.checkpoint.readers.pickle_machine import COMMON, Machine, Symbol, table
from jea.checkpoint.tensors import ITEMSIZE, LazyTensor, checked_shape, checked_view, decode, is_contiguous, loaded_type

#: The pickles of a checkpoint hold names and shapes: about 150 bytes per tensor.
MAX_PICKLE = 64 << 20
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_HEAD = b"\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little") + b"."
_LEGACY_PROTOCOL = 1001

STORAGE_TYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16",
    "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
}
_UNTYPED = "untyped"


class Storage:
    """A storage, as the pickle says: ``count`` elements of ``dtype``, from element ``first`` of ``key``."""

    __slots__ = ("key", "dtype", "total", "first", "count", "location")

    def __init__(self, key, dtype, total, first, count, location):
        self.key, self.dtype, self.total = key, dtype, total
        self.first, self.count, self.location = first, count, location


class TorchTensor(LazyTensor):
    """A strided view of a storage; offset and strides count elements."""

    __slots__ = ("source", "storage", "offset", "stride")

    def __init__(self, source, storage, dtype, offset, shape, stride):
        self.shape = checked_shape(shape, ITEMSIZE[dtype])
        self.source, self.storage, self.dtype = source, storage, dtype
        self.offset, self.stride = offset, stride
        capacity = storage.count // ITEMSIZE[dtype] if storage.dtype == _UNTYPED else storage.count
        checked_view(self.shape, stride, offset, capacity)

    @property
    def contiguous(self):
        return is_contiguous(self.shape, self.stride)

    @property
    def storage_id(self):
        return self.storage.key

    def check(self):
        self.source.check_storage(self.storage)

    def load(self, budget):
        if not self.size:
            self.check()
            return np.empty(self.shape, loaded_type(self.dtype))
        flat = self.source.elements(self.storage, self.dtype, budget)[self.offset:]
        if self.contiguous:
            return flat[:self.size].reshape(self.shape)
        budget.take(self.size * flat.itemsize, f"a tensor of shape {self.shape}")
        strides = tuple(step * flat.itemsize for step in self.stride)
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, self.shape, strides))


def is_legacy(head):
    """Whether a file that begins with ``head`` is in the container before torch 1.6: a pickle of its magic number."""
    framed = head[2:3] == b"\x95"  # FRAME and its length, from protocol 4 on
    return head[:1] == b"\x80" and head[11 if framed else 2:].startswith(_LEGACY_HEAD)


def _flat_size(machine, size=()):
    return checked_shape(size, 1)


def _device(machine, kind, index=None):
    if type(kind) is not str or (index is not None and type(index) is not int):
        raise Malformed("a torch.device in the pickle has odd arguments")
    return kind if index is None else f"{kind}:{index}"


def _rebuild_parameter(machine, data, requires_grad=True, hooks=None, state=None):
    if not isinstance(data, TorchTensor):
        raise Malformed("a Parameter in the pickle holds something else than a tensor")
    return data


class TorchSource:
    """What both containers share: the meaning of globals and persistent ids, and the storages' elements."""

    byte_order_big = False

    def __init__(self):
        self._decoded = {}

    def _machine(self, data, position=0):
        """An interpreter for the pickle of the saved object; its tensors will be views of this source."""
        return Machine(data, position, persistent=self._persistent, symbols={**COMMON, **table(
            Symbol("torch._utils", "_rebuild_tensor", self._rebuild_tensor),
            Symbol("torch._utils", "_rebuild_tensor_v2", self._rebuild_tensor),
            Symbol("torch._utils", "_rebuild_tensor_v3", self._rebuild_tensor_v3),
            Symbol("torch._utils", "_rebuild_parameter", _rebuild_parameter),
            Symbol("torch._utils", "_rebuild_parameter_with_state", _rebuild_parameter),
            Symbol("torch", "Size", _flat_size),
            Symbol("torch", "device", _device),
            *(Symbol("torch", name) for name in STORAGE_TYPES),
            Symbol("torch.storage", "UntypedStorage"),
            *(Symbol("torch", name) for name in ITEMSIZE),
        )})

    def _rebuild_tensor(self, machine, storage, offset, size, stride, requires_grad=False, hooks=None,
                        metadata=None):
        dtype = storage.dtype if isinstance(storage, Storage) else None
        return self._tensor(storage, dtype, offset, size, stride, metadata)

    def _rebuild_tensor_v3(self, machine, storage, offset, size, stride, requires_grad, hooks, dtype,
                           metadata=None):
        dtype = dtype.name if isinstance(dtype, Symbol) and dtype.module == "torch" else None
        return self._tensor(storage, dtype, offset, size, stride, metadata)

    def _tensor(self, storage, dtype, offset, size, stride, metadata):
        if not isinstance(storage, Storage) or dtype not in ITEMSIZE \
                or storage.dtype not in (dtype, _UNTYPED):
            raise Malformed("a tensor in the pickle has no storage of a known type")
        if metadata:
            raise Malformed("a tensor is a conjugate or negative view; save it again after resolve_neg()")
        return TorchTensor(self, storage, dtype, offset, size, stride)

    def _persistent(self, reference):
        """The Storage of a persistent id: ("storage", type, key, location, numel[, view])."""
        if type(reference) is not tuple or len(reference) not in (5, 6) or reference[0] != "storage":
            raise Malformed("the pickle refers to something that is not a storage")
        kind, key, location, total = reference[1:5]
        if not isinstance(kind, Symbol) or not (kind.name in STORAGE_TYPES or kind.name == "UntypedStorage"):
            raise Malformed("a storage in the pickle has an unknown type")
        if type(key) is not str or type(location) is not str or type(total) is not int or total < 0:
            raise Malformed("a storage in the pickle has an odd key, location or length")
        dtype = STORAGE_TYPES.get(kind.name, _UNTYPED)
        first, count = 0, total
        if len(reference) == 6 and reference[5] is not None:  # legacy: a view (key, offset, length)
            view = reference[5]
            if type(view) is not tuple or len(view) != 3 or type(view[1]) is not int \
                    or type(view[2]) is not int or min(view[1:]) < 0 or view[1] + view[2] > total:
                raise Malformed("a storage in the pickle is a view beyond its own end")
            first, count = view[1:]
        storage = Storage(key, dtype, total, first, count, location)
        self.note_storage(storage)
        return storage

    def note_storage(self, storage):
        """Called for every storage that the pickle mentions."""

    def check_storage(self, storage):
        itemsize = ITEMSIZE.get(storage.dtype, 1)
        have = self.storage_bytes(storage.key)
        if have != storage.total * itemsize:
            raise Malformed(f"storage {shown(storage.key)!r} should have {storage.total * itemsize:,} bytes "
                            f"and has {have:,}; the file is damaged, fetch it again")

    def elements(self, storage, dtype, budget):
        """The elements of a storage as a 1-D array, read once and shared by all tensors that view it."""
        self.check_storage(storage)
        flat = self._decoded.get((storage.key, dtype))
        if flat is None:
            raw = self.read_storage(storage.key, budget)
            if loaded_type(dtype).itemsize > ITEMSIZE[dtype]:
                budget.take(2 * raw.size, f"storage {shown(storage.key)!r}")
            usable = raw.size - raw.size % ITEMSIZE[dtype]
            flat = self._decoded[storage.key, dtype] = decode(raw[:usable], dtype, self.byte_order_big)
        return flat[storage.first:storage.first + storage.count]

    def storage_bytes(self, key):
        """The number of bytes that the file really holds for ``key``."""
        raise NotImplementedError

    def read_storage(self, key, budget):
        """Those bytes as a new uint8 array."""
        raise NotImplementedError


class TorchZip(TorchSource):
    """The container since torch 1.6.  ``archive`` is a ZipArchive; ``root`` is the saved object."""

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
        machine = self._machine(content)
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
    """The container before torch 1.6, from an open file at its start."""

    format = "torch-legacy"

    def __init__(self, file, file_size):
        super().__init__()
        self.file, self._storages, self._places = file, {}, {}
        head = file.read(min(file_size, MAX_PICKLE))
        position = 0

        def next_pickle(make_machine=Machine):
            nonlocal position
            machine = make_machine(head, position)
            value = machine.run()
            position = machine.position
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
        self.root = next_pickle(self._machine)
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
            nbytes = storage.total * ITEMSIZE.get(storage.dtype, 1)
            self.file.seek(position)
            length = self.file.read(8)
            if position + 8 + nbytes > file_size or len(length) != 8:
                raise Malformed(f"storage {shown(key)!r} ends beyond the end of the file; the file is "
                                f"incomplete, fetch it again")
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
