"""Tensors that know their shape and type, and read their numbers only when asked."""
from __future__ import annotations

import numpy as np

from jea.checkpoint.errors import Malformed, shown

#: Bytes per element of every element type that a checkpoint may hold.  numpy has no bfloat16: it is widened.
ITEMSIZE = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
}
#: Bytes per element of types that numpy or the models here lack: their tensors are described and not read.
UNREAD = {"complex32": 4, "complex64": 8, "complex128": 16, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1,
          "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1}
#: What the half-precision types become: models compute in float32, and both fit into it exactly.
WIDENED = {"float16": "float32", "bfloat16": "float32"}

MAX_RANK = 32  # numpy's own limit before version 2
_LARGEST = 2 ** 62


class Budget:
    """Bounds how many bytes reading one file may allocate: a small multiple of the file's own size.

    Sizes in a file are claims.  Storages are checked against the bytes that are really there; this bounds
    what those bytes can be blown up to by stride 0, overlapping views, widening and compression.
    """

    def __init__(self, file_size, factor=4, floor=16 << 20):
        self.file_size = file_size
        self.left = factor * file_size + floor

    def take(self, nbytes, what):
        self.left -= nbytes
        if self.left < 0:
            raise Malformed(f"{what} would need far more memory than the file's {self.file_size:,} bytes can "
                            f"stand for; refused as a decompression bomb")


class LazyTensor:
    """One tensor of a checkpoint.

    `shape` is a tuple of ints, `dtype` the stored element type (a key of `ITEMSIZE`).  `load(budget)`
    returns a C-contiguous numpy array in native byte order, half precision widened to float32.
    """

    __slots__ = ("shape", "dtype")
    contiguous = True
    storage_id = None  # equal for tensors that share memory

    def load(self, budget):
        raise NotImplementedError

    def check(self):
        """Raise `Malformed` if the tensor cannot be loaded; allocates nothing."""

    @property
    def size(self):
        count = 1
        for n in self.shape:
            count *= n
        return count

    @property
    def loaded_dtype(self):
        return WIDENED.get(self.dtype, self.dtype)


class UnreadTensor(LazyTensor):
    """A tensor of a type in `UNREAD`; `names` is what the file calls the type."""

    __slots__ = ("names",)

    def __init__(self, shape, dtype, names):
        self.shape, self.dtype, self.names = shape, dtype, names

    def check(self):
        raise Malformed(f"a tensor is of type {self.dtype} ({self.names}), which is not read")

    def load(self, budget):
        self.check()


def checked_shape(shape, itemsize):
    """Return `shape` as a tuple of non-negative ints whose array could exist; `Malformed` otherwise."""
    if type(shape) not in (tuple, list):
        raise Malformed(f"a tensor's shape is of type {shown(type(shape).__name__)}, not a tuple")
    if len(shape) > MAX_RANK:
        raise Malformed(f"a tensor has {len(shape)} dimensions; at most {MAX_RANK} are supported")
    total = itemsize
    for n in shape:
        if type(n) is not int or n < 0:
            raise Malformed("a tensor's shape holds something else than non-negative whole numbers")
        total *= max(n, 1)
        if total > _LARGEST:
            raise Malformed("a tensor's shape is larger than any memory")
    return tuple(shape)


def checked_view(shape, stride, offset, capacity):
    """Raise unless every element of the strided view lies inside a storage of `capacity` elements."""
    if type(stride) not in (tuple, list) or len(stride) != len(shape):
        raise Malformed("a tensor's strides do not match its shape")
    if type(offset) is not int or offset < 0:
        raise Malformed("a tensor's offset is not a non-negative whole number")
    last, empty = offset, False
    for n, step in zip(shape, stride):
        if type(step) is not int or step < 0:
            raise Malformed("a tensor's strides hold something else than non-negative whole numbers")
        empty = empty or n == 0
        last += (n - 1) * step
    if offset > capacity if empty else last >= capacity:
        raise Malformed(f"a tensor reaches beyond its storage (element {offset if empty else last:,} of "
                        f"{capacity:,})")


def contiguous_strides(shape):
    """Strides, in elements, of a C-contiguous array of `shape`."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def is_contiguous(shape, stride):
    """Tell whether the view is laid out in C order; the stride of an axis of length 1 says nothing."""
    return 0 in shape or all(n == 1 or have == want
                             for n, have, want in zip(shape, stride, contiguous_strides(shape)))


def decode(raw, dtype, big_endian=False):
    """Return `raw` (1-D uint8, a multiple of the element size) as a 1-D native array; half precision widened."""
    order = ">" if big_endian else "<"
    if dtype == "bfloat16":
        wide = raw.view(order + "u2").astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype == "bool":  # any other byte than 0 and 1 would be an invalid numpy bool
        return raw != 0
    values = raw.view(order + np.dtype(dtype).str[1:])
    return values.astype(loaded_type(dtype), copy=False)


def loaded_type(dtype):
    """Return the native numpy type in which tensors of `dtype` are handed out."""
    return np.dtype(WIDENED.get(dtype, dtype))
