"""Stands for the values of a pickle in memory: keys, containers, bytes that stay in the file, numpy's arrays."""
from __future__ import annotations

import numpy as np

from jea.checkpoint.errors import Malformed
from jea.checkpoint.tensors import ITEMSIZE, LazyTensor, checked_shape

_KEY_TYPES = (str, int, bool, bytes, type(None))
_KEY_PARTS, _KEY_DEPTH = 64, 4


# -- keys

class TupleKey(str):
    """Stand for a tuple as the key of a dict, by its text.

    Hashes of texts are keyed. Those of tuples are not: a file could make thousands of them collide, and hashing tuples
    in tuples takes exponential time.
    """

    __slots__ = ("value",)

    def __new__(cls, value):
        made = super().__new__(cls, repr(value))
        made.value = value
        return made


def checked_key(value):
    """Return what stands for `value` as the key of a dict; `Malformed` for anything but names, numbers and tuples."""
    kind = type(value)
    if kind is tuple and _is_plain_tuple(value):
        return TupleKey(value)
    if kind is float and value == value:
        return value
    # Big whole numbers and NaNs can be made to collide.
    if kind not in _KEY_TYPES or (kind is int and value.bit_length() > 63):
        raise Malformed(f"a dict key of type {kind.__name__}; only names, numbers and short tuples of them are read")
    return value


def _is_plain_tuple(value):
    """Tell whether a tuple holds 1 to 64 names and numbers, in at most 4 levels."""
    level, parts = list(value), 0
    for _ in range(_KEY_DEPTH):
        parts += len(level)
        if not level or parts > _KEY_PARTS:
            return False
        inner = [part for part in level if type(part) is tuple]
        if not all(type(part) in (*_KEY_TYPES, tuple, float) and len(part if type(part) in (str, bytes) else ()) <= 200
                   for part in level):
            return False
        if not inner:
            return True
        level = [part for entry in inner for part in entry[:_KEY_PARTS + 1]]
    return False


# -- stand-ins for containers

class OrderedDictStandIn(dict):
    """Stand for collections.OrderedDict; torch hangs a `_metadata` attribute on it, which is of no use here."""

    def build_state(self, machine, state):
        if not isinstance(state, dict):
            raise Malformed("an OrderedDict has a state that is not a dict")


class NamespaceStandIn(dict):
    """Stand for argparse.Namespace, as the plain dict of its attributes."""

    def build_state(self, machine, state):
        if not isinstance(state, dict):
            raise Malformed("an argparse.Namespace has a state that is not a dict of names")
        machine.copy(len(state))
        self.update(state)


class HistoryBufferStandIn(dict):
    """Stand for mmengine's HistoryBuffer, as the plain dict of its attributes."""

    def build_state(self, machine, state):
        if not isinstance(state, dict):
            raise Malformed("a HistoryBuffer has a state that is not a dict of names")
        machine.copy(len(state))
        self.update(state)


class SetStandIn(list):
    """Stand for a set: its values in the order of the file, as nothing is hashed."""


# -- numpy

class Chunk:
    """Bytes of an open file that stay there until they are asked for: `length` of them from `offset` on.

    `is_text`: they are a long text in UTF-8. `latin`: such a text whose characters are the bytes that are meant.
    """

    __slots__ = ("file", "offset", "length", "is_text", "latin", "_size")

    def __init__(self, file, offset, length, is_text=False, latin=False):
        self.file, self.offset, self.length, self.is_text, self.latin = file, offset, length, is_text, latin
        self._size = None

    def encoded(self):
        """Return the bytes that `_codecs.encode(text, "latin1")` makes of a text."""
        return Chunk(self.file, self.offset, self.length, latin=True)

    def __len__(self):
        if not self.latin:
            return self.length
        if self._size is None:  # characters: bytes that do not continue one
            self._size = sum(int(np.count_nonzero(part & 0xC0 != 0x80)) for part in self._parts())
        return self._size

    def _parts(self, step=1 << 20):
        for begin in range(0, self.length, step):
            part = np.empty(min(step, self.length - begin), np.uint8)
            self.file.seek(self.offset + begin)
            if self.file.readinto(part.data) != part.size:
                raise Malformed("the file is incomplete, fetch it again")
            yield part

    def read(self):
        """Return the content as a new 1-D uint8 array."""
        content, position, left = np.empty(len(self), np.uint8), 0, b""
        for part in self._parts():
            if self.latin:
                whole = left + part.tobytes()
                end = len(whole) - (whole[-1:] >= b"\xc0")  # a character of two bytes may be cut
                left = whole[end:]
                part = np.frombuffer(whole[:end].decode("utf-8").encode("latin-1"), np.uint8)
            content[position:position + part.size] = part
            position += part.size
        if left or position != content.size:
            raise Malformed("bytes in the pickle are not what they were written as; the file is damaged")
        return content


class NumpyDtype:
    """Hold a plain numeric numpy dtype: its name, and the byte order that BUILD sets."""

    __slots__ = ("name", "big_endian")

    def __init__(self, name):
        self.name, self.big_endian = name, False

    def build_state(self, machine, state):
        # (version, byte order, subdtype, names, fields, itemsize, alignment[, flags]) of dtype.__reduce__
        if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", "|", ">", "=") \
                or any(part is not None for part in state[2:5]):
            raise Malformed("a numpy dtype in the pickle is not a plain number type")
        self.big_endian = state[1] == ">"

    def numpy(self):
        return np.dtype((">" if self.big_endian else "<") + np.dtype(self.name).str[1:])


class NumpyArray(LazyTensor):
    """Hold a numpy array of the pickle; its data stays a view of the pickle, or in the file, until `load`."""

    __slots__ = ("element", "data", "fortran")

    def __init__(self):
        self.shape, self.dtype, self.data = (0,), "float32", None

    def build_state(self, machine, state):
        # (version, shape, dtype, is_fortran, data) of ndarray.__reduce__
        if type(state) is not tuple or len(state) != 5 or not isinstance(state[2], NumpyDtype) \
                or type(state[3]) is not bool:
            raise Malformed("a numpy array in the pickle has an unknown state (an array of objects?)")
        _, shape, element, self.fortran, data = state
        shape = checked_shape(shape, ITEMSIZE[element.name])
        if type(data) is str:  # a Python 2 string that happens to be UTF-8
            machine.produce(len(data))
            data = data.encode("utf-8", "surrogatepass")
        if isinstance(data, Chunk) and data.is_text:
            data = Chunk(data.file, data.offset, data.length)
        if not isinstance(data, (bytes, memoryview, Chunk)):
            raise Malformed("a numpy array in the pickle has no raw data (an array of objects?)")
        self.shape, self.dtype, self.element = shape, element.name, element
        if self.size * ITEMSIZE[self.dtype] != len(data):
            raise Malformed(f"a numpy array in the pickle has shape {shape} but {len(data):,} bytes of data")
        self.data = data

    def check(self):
        if self.data is None:
            raise Malformed("a numpy array in the pickle has no data")

    def load(self, budget):
        self.check()
        budget.take(self.size * np.dtype(self.loaded_dtype).itemsize, "a numpy array in the pickle")
        if not self.size:
            return np.empty(self.shape, np.dtype(self.loaded_dtype))
        data = self.data
        if isinstance(data, Chunk):
            budget.take(data.length, "a numpy array in the pickle")
            data = data.read()
        if self.dtype == "bool":
            flat = np.frombuffer(data, np.uint8) != 0
        else:
            flat = np.frombuffer(data, self.element.numpy())
        array = flat.reshape(self.shape, order="F" if self.fortran else "C")
        # An array that was read for this tensor alone needs no copy.
        copy = not isinstance(self.data, Chunk) or None
        return np.array(array, dtype=self.loaded_dtype, order="C") if copy else \
            np.ascontiguousarray(array, dtype=self.loaded_dtype).reshape(self.shape)
