"""Reads the pickles that ``jt.save`` and ``Module.save`` write, without Jittor.

Format (jittor/__init__.py, safepickle): a pickle of protocol 4, its SHA-1, and ``HCAJSLHD``.  A Var is
pickled as ``jittor.jittor_core.Var(ndarray)``.  A pickle without the trailer is read as well.
"""
from __future__ import annotations

import hashlib

from jea.checkpoint.errors import Malformed
from jea.checkpoint.readers.pickle_machine import COMMON, Machine, NumpyArray, Symbol, table

TRAILER = b"HCAJSLHD"


def _var(machine, value):
    if not isinstance(value, (NumpyArray, int, float)):
        raise Malformed("a Jittor Var in the pickle holds something else than an array")
    return value


_SYMBOLS = {**COMMON, **table(
    Symbol("jittor", "jittor_core.Var", _var), Symbol("jittor", "Var", _var),
    Symbol("jittor_core", "Var", _var))}


class JittorPickle:
    """``root`` is the saved object, with a lazy tensor for each array."""

    format = "jittor-pkl"

    def __init__(self, file):
        content = file.read()
        end = len(content)
        if content.endswith(TRAILER):
            end -= len(TRAILER) + 20
            if end < 0 or hashlib.sha1(memoryview(content)[:end]).digest() != content[end:end + 20]:
                raise Malformed("fails its SHA-1 checksum; the file is damaged, fetch it again")
        machine = Machine(memoryview(content)[:end], symbols=_SYMBOLS)
        self.root = machine.run()
        if machine.position != end:
            raise Malformed("there are bytes after the end of the pickle; the file is damaged")
