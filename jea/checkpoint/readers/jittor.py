"""Reads the pickles that `jt.save` and `Module.save` write, without Jittor, and other pickles of named arrays.

Format (jittor/__init__.py, safepickle): a pickle of protocol 4, its SHA-1, and `HCAJSLHD`. A Var is pickled as
`jittor.jittor_core.Var(ndarray)`. A pickle without the trailer is read as well. The arrays stay in the file until
they are asked for.
"""
from __future__ import annotations

import hashlib

from jea.checkpoint.errors import Malformed
from jea.checkpoint.readers.pickle_machine import FileMachine
from jea.checkpoint.readers.pickle_symbols import COMMON, MMENGINE, Symbol, table
from jea.checkpoint.readers.pickle_values import NumpyArray

TRAILER = b"HCAJSLHD"
_DIGEST = 20  # bytes of SHA-1


def _var(machine, value):
    if not isinstance(value, (NumpyArray, int, float)):
        raise Malformed("a Jittor Var in the pickle holds something else than an array")
    return value


SYMBOLS = {**COMMON, **MMENGINE, **table(
    Symbol("jittor", "jittor_core.Var", _var), Symbol("jittor", "Var", _var),
    Symbol("jittor_core", "Var", _var))}


class JittorPickle:
    """Holds the saved object as `root`, with a lazy tensor for each array."""

    format = "jittor-pkl"

    def __init__(self, file, file_size):
        file.seek(max(0, file_size - len(TRAILER) - _DIGEST))
        tail = file.read()
        sealed = tail.endswith(TRAILER)
        end = file_size - len(tail) if sealed else file_size
        machine = FileMachine(file, 0, end, symbols=SYMBOLS)
        self.root = machine.run()
        if machine.offset != end:
            raise Malformed("there are bytes after the end of the pickle; the file is damaged")
        if sealed and _digest(file, end) != tail[:_DIGEST]:
            raise Malformed("fails its SHA-1 checksum; the file is damaged, fetch it again")


def _digest(file, end):
    digest = hashlib.sha1()
    file.seek(0)
    while end:
        part = file.read(min(end, 1 << 20))
        if not part:
            raise Malformed("the file is incomplete, fetch it again")
        digest.update(part)
        end -= len(part)
    return digest.digest()
