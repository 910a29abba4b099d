"""The text of the kernels' headers, as Jittor compiles it."""
from __future__ import annotations

import functools
import re
from pathlib import Path

FOLDER = Path(__file__).parents[1]
_INCLUDE = re.compile(r'#include "([^"]+)"')


@functools.lru_cache(maxsize=None)
def header(name: str) -> str:
    """The text of a header below jea/ops, with the neighbours that it includes in place of their #include lines.

    Text, not an #include that Jittor's compiler would follow, so that an edited header is compiled anew. Without
    comments and indentation, since Jittor copies and hashes it at each run of an operator; #line directives and the
    empty lines that are left give a compiler's message the header's own name and line numbers.
    """
    return "".join(_lines(name, set()))


def _lines(name: str, seen: set):
    seen.add(name)
    yield f'#line 1 "jea/ops/{name}"\n'
    for number, line in enumerate(_read(name).splitlines(), 1):
        text = line.strip()
        include = _INCLUDE.fullmatch(text)
        if include and include[1] not in seen:
            yield from _lines(include[1], seen)
            yield f'#line {number + 1} "jea/ops/{name}"\n'
        elif include or text == "#pragma once" or text.startswith("//"):
            yield "\n"
        else:
            yield text + "\n"


def _read(name: str) -> str:
    path = FOLDER / name
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RuntimeError(f"jea's kernel {path} cannot be read ({error.strerror}): reinstall jea") from error
