"""Turns what a checkpoint holds beside its tensors into plain Python values of bounded size.

A pickle of a few kilobytes can name one text, or one list, hundreds of thousands of times. Copied each time it would
fill any memory, so a value that occurs again is named instead of repeated unless it is small, and all texts together
are bounded. What is left out is marked with "...".
"""
from __future__ import annotations

from jea.checkpoint.errors import shown
from jea.checkpoint.readers.pickle_symbols import Symbol
from jea.checkpoint.readers.pickle_values import Chunk, SetStandIn, TupleKey
from jea.checkpoint.tensors import LazyTensor, UnreadTensor

TOO_MUCH = "..."
_MAX_NODES, _MAX_ALL_NODES, _MAX_DEPTH = 20_000, 200_000, 20  # of one entry, of all
_MAX_TEXT, _MAX_ALL_TEXT, _MAX_KEY = 10_000, 1 << 20, 200  # characters
_MAX_ENTRIES = 1_000
_MAX_TUPLE_KEYS = 1_000  # tuples of numbers can be made to collide
_SMALL = 64  # nodes and characters of a value that is repeated rather than named


def plain_meta(entries):
    """Return (`entries` as plain Python values, the names of those left out because tensors are in them)."""
    meta, left_out = {}, []
    plain = _Plain()
    for key, value in entries.items():
        plain.begin(key)
        converted = plain.convert(value, 0)
        if plain.tensors:
            kinds = f" ({', '.join(sorted(plain.unread))})" if plain.unread else ""
            left_out.append(shown(str(key)) + kinds)
        else:
            meta[plain.key(key)] = converted
        if len(meta) >= _MAX_ENTRIES or plain.all_nodes > _MAX_ALL_NODES:
            meta[TOO_MUCH] = "further entries were left out"
            break
    return meta, left_out


def outlined(value):
    """Say in a few words what a value is."""
    if isinstance(value, LazyTensor):
        return f"tensor {value.dtype} {tuple(value.shape)}"
    if isinstance(value, Chunk) and value.is_text:
        return f"a text of {len(value)} bytes"
    if isinstance(value, (bytes, memoryview, Chunk)):
        return f"{len(value)} bytes"
    return f"a value of type {type(value).__name__}"


class _Plain:
    """Copies nested values within limits, so that shared and cyclic ones cannot blow up."""

    def __init__(self):
        self.all_nodes = self.nodes = self.text = self.tensors = self.tuple_keys = 0
        self.unread = set()  # types of tensors in this entry that are not read
        self._entry = ""
        self._seen = {}  # id -> (the entry it was first in, its nodes and characters or None while it is open)

    def begin(self, entry):
        """Go on with the next entry."""
        self.nodes, self.tensors, self.unread, self._entry = 0, 0, set(), shown(str(entry), 60)

    def key(self, key):
        if type(key) is bytes:
            return shown(key)
        if type(key) is TupleKey:
            self.tuple_keys += 1
            key = key.value if self.tuple_keys <= _MAX_TUPLE_KEYS else str(key)
        if type(key) is str:
            key = key if len(key) <= _MAX_KEY else key[:_MAX_KEY] + TOO_MUCH
            self.text += len(key)
        return key

    def convert(self, value, depth):
        self.nodes += 1
        self.all_nodes += 1
        if self._is_full() or depth > _MAX_DEPTH:
            return TOO_MUCH
        if value is None or type(value) in (bool, int, float, complex):
            return value
        if type(value) is str:
            return self._once(value, lambda: self._cut(value)) if len(value) > _SMALL else self._cut(value)
        if isinstance(value, dict):
            return self._once(value, lambda: {self.key(key): self.convert(item, depth + 1)
                                              for key, item in self._first(value.items())})
        if type(value) in (list, tuple, SetStandIn):
            return self._once(value, lambda: [self.convert(item, depth + 1) for item in self._first(value)])
        if isinstance(value, LazyTensor):
            self.tensors += 1
            if isinstance(value, UnreadTensor):
                self.unread.add(value.dtype)
        made = str(value) if isinstance(value, Symbol) else outlined(value)
        self.text += len(made)
        return made

    def _cut(self, text):
        made = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + TOO_MUCH
        self.text += len(made)
        return made

    def _once(self, value, convert):
        """Convert a value, or name it where it has been before and is not small."""
        entry, cost = self._seen.get(id(value), (None, 0))
        if cost is None:
            return "(a value that holds itself)"
        if entry is not None and cost > _SMALL:
            made = f"(the same as before, in {entry})"
            self.text += len(made)
            return made
        self._seen[id(value)] = (self._entry, None)
        before = self.all_nodes + self.text
        made = convert()
        self._seen[id(value)] = (self._entry, self.all_nodes + self.text - before)
        return made

    def _is_full(self):
        return self.nodes > _MAX_NODES or self.all_nodes > _MAX_ALL_NODES or self.text > _MAX_ALL_TEXT

    def _first(self, items):
        for item in items:
            if self._is_full():
                return
            yield item
