"""Holds the allow-list of the pickle interpreter: what a pickle may name, and what naming or calling it means here.

A global becomes a `Symbol`, never the real object. Each entry is one exact pair (module, name); there is no pattern,
no import and no attribute access, and no switch that adds to the list at run time.
"""
from __future__ import annotations

import re

import numpy as np

from jea.checkpoint.errors import Malformed, shown
from jea.checkpoint.readers.pickle_values import (
    Chunk,
    HistoryBufferStandIn,
    NamespaceStandIn,
    NumpyArray,
    NumpyDtype,
    OrderedDictStandIn,
    SetStandIn,
)
from jea.checkpoint.tensors import ITEMSIZE


class Symbol:
    """A global that the file names. `build(machine, *args)` is what calling it means here, if anything."""

    __slots__ = ("module", "name", "build", "is_class")

    def __init__(self, module, name, build=None, is_class=False):
        self.module, self.name, self.build, self.is_class = module, name, build, is_class

    def __str__(self):
        return f"{self.module}.{self.name}"


def table(*symbols):
    """Return the allow-list {(module, name): Symbol} of the given symbols."""
    return {(symbol.module, symbol.name): symbol for symbol in symbols}


def _ordered_dict(machine, items=()):
    made = OrderedDictStandIn()
    if type(items) not in (tuple, list):
        raise Malformed("an OrderedDict is made from something else than a list of pairs")
    machine.copy(len(items))
    for pair in items:
        if type(pair) not in (tuple, list) or len(pair) != 2:
            raise Malformed("an OrderedDict is made from something else than a list of pairs")
        made[machine.key(pair[0])] = pair[1]
    return made


def _counter(machine, counts=None):
    """collections.Counter, such as a MultiStepLR's milestones: the plain dict of its counts."""
    if counts is None:
        return {}
    if type(counts) is not dict:
        raise Malformed("a Counter is made from something else than a dict of counts")
    machine.copy(len(counts))
    return dict(counts)


def _set(machine, values=()):
    if type(values) not in (tuple, list):
        raise Malformed("a set is made from something else than a list")
    machine.copy(len(values))
    return SetStandIn(values)


def _complex(machine, real, imaginary=0.0):
    if not all(type(part) in (int, float) for part in (real, imaginary)):
        raise Malformed("a complex number is made from something else than two numbers")
    return complex(real, imaginary)


def _bytearray(machine, content=b""):
    if not isinstance(content, (bytes, memoryview)):
        raise Malformed("a bytearray is made from something else than bytes")
    return content


def _namespace(machine):
    return NamespaceStandIn()


_HISTORY_BUFFER = Symbol("mmengine.logging.history_buffer", "HistoryBuffer", lambda machine: HistoryBufferStandIn(),
                         is_class=True)


def _getattr(machine, owner, name):
    """How protocol 2 names a method of mmengine's HistoryBuffer. It stays a name: nothing is looked up or called."""
    if owner is not _HISTORY_BUFFER or type(name) is not str or len(name) > 100:
        raise Malformed("__builtin__.getattr is used for something else than a method of mmengine's HistoryBuffer; "
                        "refused, nothing was executed")
    return Symbol(_HISTORY_BUFFER.module, f"{_HISTORY_BUFFER.name}.{name}")


def _encode(machine, text, encoding="utf-8"):
    """`_codecs.encode`: how protocol 2 writes bytes, as text with one character per byte."""
    if encoding not in ("latin1", "latin-1"):
        raise Malformed("_codecs.encode is used for something else than bytes")
    if isinstance(text, Chunk) and text.is_text:
        return text.encoded()
    if type(text) is not str:
        raise Malformed("_codecs.encode is used for something else than bytes")
    machine.produce(len(text))
    return text.encode("latin-1")


# -- numpy

_DTYPE_NAMES = {np.dtype(name).str[1:]: name for name in ITEMSIZE if name != "bfloat16"}


def _dtype(machine, code, align=False, copy=True):
    code = re.sub("^[<>=|]", "", code) if type(code) is str else code
    if type(code) is not str or code not in _DTYPE_NAMES:
        raise Malformed(f"a numpy array or number of type {shown(code)!r}; only plain numbers are read (no "
                        f"objects, text, complex numbers or records)")
    return NumpyDtype(_DTYPE_NAMES[code])


def _scalar(machine, dtype, data):
    if not isinstance(dtype, NumpyDtype) or not isinstance(data, (bytes, memoryview)) \
            or len(data) != ITEMSIZE[dtype.name]:
        raise Malformed("a numpy number in the pickle has data of another size than its type")
    return np.frombuffer(data, dtype.numpy())[0].item()


def _reconstruct(machine, kind, shape, typecode):
    if not isinstance(kind, Symbol) or str(kind) != "numpy.ndarray":
        raise Malformed("numpy's _reconstruct is used for something else than an ndarray")
    return NumpyArray()


#: What every pickle may name: containers, plain values, and numpy's arrays and numbers.
COMMON = table(
    Symbol("collections", "OrderedDict", _ordered_dict),
    Symbol("collections", "Counter", _counter),
    Symbol("argparse", "Namespace", _namespace, is_class=True),
    Symbol("_codecs", "encode", _encode),
    *(Symbol(module, name, build) for module in ("builtins", "__builtin__")  # Python 3's name and Python 2's
      for name, build in (("set", _set), ("complex", _complex), ("bytearray", _bytearray))),
    Symbol("numpy", "ndarray"),
    Symbol("numpy", "dtype", _dtype),
    *(Symbol(module, name, build) for module in ("numpy.core.multiarray", "numpy._core.multiarray")
      for name, build in (("scalar", _scalar), ("_reconstruct", _reconstruct))),
)

#: What the training files of mmengine (mmdetection 3.x) name beside that.
MMENGINE = table(_HISTORY_BUFFER, Symbol("__builtin__", "getattr", _getattr))

#: What BUILD may set the state of.
BUILDABLE = {kind: kind.build_state for kind in (OrderedDictStandIn, NamespaceStandIn, HistoryBufferStandIn, NumpyDtype,
                                                 NumpyArray)}
