"""PyTorch's tensors and storages as the pickles of its two containers describe them; see torch.py.

In a pickle each storage is a persistent id `("storage", type, key, location, numel)`. A tensor is a view of a storage:
`_rebuild_tensor_v2(storage, offset, size, stride, ...)`. Sources: torch/serialization.py and torch/_utils.py.
"""
from __future__ import annotations

import numpy as np

from jea.checkpoint.errors import Malformed, shown
from jea.checkpoint.readers.pickle_symbols import COMMON, MMENGINE, Symbol, table
from jea.checkpoint.tensors import (
    ITEMSIZE,
    UNREAD,
    LazyTensor,
    UnreadTensor,
    checked_shape,
    checked_view,
    decode,
    is_contiguous,
    loaded_type,
)

STORAGE_TYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16",
    "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
}
#: Those of types that numpy or the models here lack; their tensors are named and not read.
UNREAD_STORAGES = {"ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128"}
_UNTYPED = "untyped"
_SIZES = {**ITEMSIZE, **UNREAD}


class Storage:
    """Describe a storage as the pickle does: `count` elements of `dtype`, from element `first` of `key`."""

    __slots__ = ("key", "dtype", "total", "first", "count", "location")

    def __init__(self, key, dtype, total, first, count, location):
        self.key, self.dtype, self.total = key, dtype, total
        self.first, self.count, self.location = first, count, location

    @property
    def nbytes(self):
        return self.total * _SIZES.get(self.dtype, 1)

    def __str__(self):
        named = f", which names {_name_of(self.dtype)}," if self.dtype in UNREAD else ""
        return f"storage {shown(self.key)!r}{named}"


class TorchTensor(LazyTensor):
    """A strided view of a storage; offset and strides count elements."""

    __slots__ = ("source", "storage", "offset", "stride")

    def __init__(self, source, storage, dtype, offset, shape, stride):
        self.shape = checked_shape(shape, ITEMSIZE[dtype])
        self.source, self.storage, self.dtype = source, storage, dtype
        self.offset, self.stride = offset, stride
        checked_view(self.shape, stride, offset, _capacity(storage, dtype))

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


def _name_of(dtype):
    return next((f"torch.{kind}" for kind, name in UNREAD_STORAGES.items() if name == dtype), f"torch.{dtype}")


def _capacity(storage, dtype):
    return storage.count // _SIZES[dtype] if storage.dtype == _UNTYPED else storage.count


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

    def symbols(self):
        """Return the allow-list for the pickle of the saved object; its tensors will be views of this source."""
        return {**COMMON, **MMENGINE, **table(
            Symbol("torch._utils", "_rebuild_tensor", self._rebuild_tensor),
            Symbol("torch._utils", "_rebuild_tensor_v2", self._rebuild_tensor),
            Symbol("torch._utils", "_rebuild_tensor_v3", self._rebuild_tensor_v3),
            Symbol("torch._utils", "_rebuild_parameter", _rebuild_parameter),
            Symbol("torch._utils", "_rebuild_parameter_with_state", _rebuild_parameter),
            Symbol("torch", "Size", _flat_size),
            Symbol("torch", "device", _device),
            *(Symbol("torch", name) for name in (*STORAGE_TYPES, *UNREAD_STORAGES)),
            Symbol("torch.storage", "UntypedStorage"),
            *(Symbol("torch", name) for name in _SIZES),
        )}

    def _rebuild_tensor(self, machine, storage, offset, size, stride, requires_grad=False, hooks=None,
                        metadata=None):
        dtype = storage.dtype if isinstance(storage, Storage) else None
        return self._tensor(storage, dtype, offset, size, stride, metadata)

    def _rebuild_tensor_v3(self, machine, storage, offset, size, stride, requires_grad, hooks, dtype,
                           metadata=None):
        dtype = dtype.name if isinstance(dtype, Symbol) and dtype.module == "torch" else None
        return self._tensor(storage, dtype, offset, size, stride, metadata)

    def _tensor(self, storage, dtype, offset, size, stride, metadata):
        if not isinstance(storage, Storage) or dtype not in _SIZES or storage.dtype not in (dtype, _UNTYPED):
            raise Malformed("a tensor in the pickle has no storage of a known type")
        if dtype in UNREAD:
            shape = checked_shape(size, UNREAD[dtype])
            checked_view(shape, stride, offset, _capacity(storage, dtype))
            return UnreadTensor(shape, dtype, _name_of(dtype))
        if metadata:
            raise Malformed("a tensor is a conjugate or negative view; save it again after resolve_neg()")
        return TorchTensor(self, storage, dtype, offset, size, stride)

    def _persistent(self, reference):
        """Return the Storage of a persistent id: ("storage", type, key, location, numel[, view])."""
        if type(reference) is not tuple or len(reference) not in (5, 6) or reference[0] != "storage":
            raise Malformed("the pickle refers to something that is not a storage")
        kind, key, location, total = reference[1:5]
        known = {**STORAGE_TYPES, **UNREAD_STORAGES, "UntypedStorage": _UNTYPED}
        if not isinstance(kind, Symbol) or kind.name not in known:
            raise Malformed("a storage in the pickle has an unknown type")
        if type(key) is not str or type(location) is not str or type(total) is not int or total < 0:
            raise Malformed("a storage in the pickle has an odd key, location or length")
        dtype = known[kind.name]
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
        have = self.storage_bytes(storage.key)
        if have != storage.nbytes:
            raise Malformed(f"{storage} should have {storage.nbytes:,} bytes and has {have:,}; the file is damaged, "
                            f"fetch it again")

    def elements(self, storage, dtype, budget):
        """Return the elements of a storage as a 1-D array, read once and shared by all tensors that view it."""
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
        """Return the number of bytes that the file really holds for `key`."""
        raise NotImplementedError

    def read_storage(self, key, budget):
        """Return those bytes as a new uint8 array."""
        raise NotImplementedError
