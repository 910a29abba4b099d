"""The error that every data problem ends in."""
from __future__ import annotations


class DataError(ValueError):
    """A data set, picture or label that cannot be used.

    The message names the file, says what is wrong with it and what to do. It takes exactly one argument, so
    that it survives the way from a worker process to the parent unchanged.
    """

    def __init__(self, message: str):
        super().__init__(message)
