"""Faults of a data set's files: one ends the work, unless they are being collected (`jea data check`)."""
from __future__ import annotations

import contextlib
from typing import Iterator

from jea.errors import DataError

_collected: list[str] | None = None


def fault(message: str) -> None:
    """Raise a DataError, or inside of `collecting` note the message and go on."""
    if _collected is None:
        raise DataError(message)
    _collected.append(message)


def is_collecting() -> bool:
    """Whether faults are being collected: then files that are missing are found, one by one, when they are read."""
    return _collected is not None


@contextlib.contextmanager
def collecting() -> Iterator[list[str]]:
    """Inside, faults of a data set's files are collected in the list that this gives, so that all become known."""
    global _collected
    previous, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = previous
