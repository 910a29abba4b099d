"""Reads JSON from files that are not trusted, in time and memory that are linear in its length."""
from __future__ import annotations

import json
import re

from jea.checkpoint.errors import Malformed

_MAX_DEPTH = 100
_MAX_CONTAINERS = 500_000  # a safetensors header has three for each tensor
_OUTSIDE = re.compile(r'["\[\]{}]')
_INSIDE = re.compile(r'(?:[^"\\]+|\\.){0,5000}', re.S)  # it always matches, so it never goes back


def parse_json(text):
    """Return the value of a JSON text: no deep nesting, repeated keys, endless digits or NaN."""
    _check_nesting(text)

    def pairs(items):
        made = dict(items)
        if len(made) != len(items):
            raise Malformed("the JSON header holds a name twice; the file is damaged")
        return made

    def whole(digits):
        if len(digits) > 20:  # int() of a million digits takes minutes
            raise Malformed("the JSON header holds an absurdly large number; the file is damaged")
        return int(digits)

    def real(digits):
        if len(digits) > 100:
            raise Malformed("the JSON header holds a number of absurdly many digits; the file is damaged")
        return float(digits)

    def constant(name):
        raise Malformed(f"the JSON header holds {name}; the file is damaged")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_int=whole, parse_float=real, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise Malformed("the JSON header cannot be read; the file is damaged") from error


def _check_nesting(text):
    """Walk over strings and brackets once, each character at most once: a text without an end costs no more.

    RecursionError is no help: Jittor lifts the limit beyond what the C stack holds.
    """
    depth = containers = position = 0
    while True:
        found = _OUTSIDE.search(text, position)
        if found is None:
            return
        position = found.end()
        if found[0] == '"':
            position = _string_end(text, position)
        elif found[0] in "[{":
            depth, containers = depth + 1, containers + 1
            if depth > _MAX_DEPTH:
                raise Malformed("the JSON header is nested too deeply; the file is damaged")
            if containers > _MAX_CONTAINERS:
                raise Malformed(f"the JSON header holds over {_MAX_CONTAINERS:,} lists and tables; the file is damaged")
        else:
            depth -= 1


def _string_end(text, position):
    """Return where the string that began before `position` ends; the end of the text where it has none."""
    while True:
        end = _INSIDE.match(text, position).end()
        if text[end:end + 1] == '"':
            return end + 1
        if end == position:  # the end of the text, or a backslash there
            return len(text)
        position = end
