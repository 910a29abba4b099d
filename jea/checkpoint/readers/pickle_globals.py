"""Lists what a pickle names, without reading it: for files that may be damaged, or made so that readers stop too early.

The pickle is walked opcode by opcode, of all protocols from 0 to 5. Texts are followed through stack and memo, so
that names given by STACK_GLOBAL are known as well as those of GLOBAL and INST. Nothing is made or called.
"""
from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass, field

_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_FIXED = {"uint1": 1, "uint2": 2, "int4": 4, "uint4": 4, "uint8": 8, "float8": 8}
_PREFIXED = {"string1": 1, "unicodestring1": 1, "bytes1": 1, "long1": 1, "string4": 4, "unicodestring4": 4, "bytes4": 4,
             "long4": 4, "unicodestring8": 8, "bytes8": 8, "bytearray8": 8}
_TEXTS = {"SHORT_BINSTRING", "BINSTRING", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "UNICODE"}
_LONGEST_NAME = 300  # bytes of a text that are kept
_NAME = re.compile(r"[^\W\d][\w.<>]*")
COMPUTED = "?"  # the name of what STACK_GLOBAL takes from something else than a text
_MOST_OPCODES = 20_000_000
_WINDOW = 1 << 16
_MARK = object()


@dataclass
class Walk:
    """What walking over one pickle found: its (module, name) pairs, where it ended, and why if it ended too early."""

    begin: int
    end: int = 0
    names: list = field(default_factory=list)
    numbered: bool = False  # names something by a number of copyreg's registry
    has_header: bool = False
    makes_value: bool = False
    is_endless: bool = False
    problem: str = ""

    @property
    def is_pickle(self):
        """Whether this was a pickle rather than other bytes: it makes a value, or names something with a likely name.

        What is computed, or given by a number, counts only then: without a name before it there is nothing to compute
        with.
        """
        return self.makes_value or self.is_endless or self.names_something

    @property
    def names_something(self):
        return any(all(map(_NAME.fullmatch, pair)) for pair in self.names)


class _Cut(Exception):
    pass


class _Window:
    """Hold the bytes of a file between two places, read forwards a window at a time."""

    def __init__(self, file, begin, end):
        self._file, self._stop, self._base, self._data, self._at = file, end, begin, b"", 0

    @property
    def position(self):
        return self._base + self._at

    def take(self, count, keep=None):
        """Return the next `count` bytes, or the first `keep` of them."""
        if count > self._stop - self.position:
            raise _Cut
        kept = count if keep is None else min(count, keep)
        if kept > len(self._data) - self._at:
            self._base, self._at = self.position, 0
            self._file.seek(self._base)
            self._data = self._file.read(min(max(kept, _WINDOW), self._stop - self._base))
        found = self._data[self._at:self._at + kept]
        if len(found) < kept:
            raise _Cut
        if self._at + count <= len(self._data):
            self._at += count
        else:
            self._base, self._at, self._data = self.position + count, 0, b""
        return found

    def line(self):
        kept = b""
        while True:
            left = self._stop - self.position
            if not left:
                raise _Cut
            piece = self.take(min(left, 256))
            end = piece.find(b"\n")
            if end >= 0:
                self._at -= len(piece) - end - 1
                return (kept + piece[:end])[:_LONGEST_NAME]
            kept = (kept + piece)[:_LONGEST_NAME]


def walk(file, begin, end):
    """Walk over the pickle in an open `file` from `begin`, up to `end` at most."""
    window, found = _Window(file, begin, end), Walk(begin)
    stack, memo = [], {}
    try:
        for _ in range(_MOST_OPCODES):
            at = window.position
            opcode = _OPCODES.get(window.take(1)[0])
            if opcode is None:
                found.problem = f"an unknown opcode at byte {at:,}"
                break
            argument = _argument(window, opcode)
            if opcode.name == "STOP":
                found.makes_value = bool(stack) and stack[-1] is not _MARK
                found.problem = "" if found.makes_value else "it makes no value"
                break
            if opcode.name == "PROTO" and at == begin:
                found.has_header = argument <= 5
            _step(opcode.name, opcode, argument, stack, memo, found)
        else:
            found.is_endless, found.problem = True, f"it has over {_MOST_OPCODES:,} opcodes"
    except _Cut:
        found.problem = "it is cut off"
    except ValueError:
        found.problem = f"a damaged opcode at byte {at:,}"
    found.end = window.position
    return found


def _argument(window, opcode):
    """Return the argument of an opcode: a number, a text's bytes as far as they are kept, a pair of lines, or None."""
    if opcode.arg is None:
        return None
    kind = opcode.arg.name
    if opcode.name in ("GLOBAL", "INST"):
        return window.line(), window.line()
    if kind in _FIXED:
        return int.from_bytes(window.take(_FIXED[kind]), "little")
    if kind in _PREFIXED:
        return window.take(int.from_bytes(window.take(_PREFIXED[kind]), "little"), _LONGEST_NAME)
    return window.line()


def _step(name, opcode, argument, stack, memo, found):
    if name in ("GLOBAL", "INST"):
        found.names.append(tuple(_text(part) for part in argument))
    if name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
        index = len(memo) if argument is None else int(argument)
        memo[index] = stack[-1] if stack and isinstance(stack[-1], str) else None
        return
    if name in ("BINGET", "LONG_BINGET", "GET"):
        stack.append(memo.get(int(argument)))
        return
    if name == "DUP":
        stack.append(stack[-1] if stack else None)
        return
    if name == "MARK":
        stack.append(_MARK)
        return
    if name.startswith("EXT"):
        found.numbered = True
    if name == "STACK_GLOBAL":
        parts = [stack.pop() if stack else None for _ in range(2)]
        found.names.append(tuple(part if isinstance(part, str) else COMPUTED for part in reversed(parts)))
        stack.append(None)
        return
    _pop(opcode, stack)
    if name in _TEXTS:
        stack.append(_text(argument, name))
    else:
        stack.extend([None] * len(opcode.stack_after))


def _pop(opcode, stack):
    """Take from the stack what an opcode takes; less where a damaged pickle has less."""
    before = opcode.stack_before
    if pickletools.markobject in before:
        while stack and stack.pop() is not _MARK:
            pass
        before = before[:before.index(pickletools.markobject)]
    for _ in before:
        if stack and stack[-1] is not _MARK:
            stack.pop()
    if opcode.name == "POP" and stack and stack[-1] is _MARK:
        stack.pop()


def _text(raw, name=""):
    if name == "STRING":
        raw = raw.strip().strip(b"'\"")
        return raw.decode("unicode_escape", "replace")
    return raw.decode("raw_unicode_escape" if name == "UNICODE" else "utf-8", "replace")
