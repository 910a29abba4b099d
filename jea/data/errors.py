"""The error that every data problem ends in."""
from __future__ import annotations

import contextlib
from typing import Iterator, List, Optional

_collected: Optional[List[str]] = None


class DataError(ValueError):
    """A data set, picture or label that cannot be used.

    The message names the file, says what is wrong with it and what to do. It takes exactly one argument, so
    that it survives the way from a worker process to the parent unchanged.
    """

    def __init__(self, message: str):
        super().__init__(message)


def fault(message: str) -> None:
    """Raise a DataError, or inside of `collecting` note the message and go on."""
    if _collected is None:
        raise DataError(message)
    _collected.append(message)


def is_collecting() -> bool:
    """Whether faults are being collected: then files that are missing are found, one by one, when they are read."""
    return _collected is not None


@contextlib.contextmanager
def collecting() -> Iterator[List[str]]:
    """Inside, faults of a data set's files are collected in the list that this gives, so that all become known."""
    global _collected
    previous, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = previous
