"""Turns whatever goes wrong with a checkpoint into a CheckpointError, and text of a file into printable text."""
from __future__ import annotations

import contextlib
import errno
import os
import stat

from jea.errors import CheckpointError
from jea.files import replacing


class Malformed(Exception):
    """Raised where the content is wrong but the path is not at hand; never leaves this package."""


def shown(text, limit=80):
    """Make `text` from a file safe to print: no control or exotic characters, at most `limit` long."""
    if isinstance(text, (bytes, bytearray, memoryview)):
        text = bytes(text[: limit + 1]).decode("latin-1")
    elif not isinstance(text, str):
        text = type(text).__name__
    text = text[: limit + 1].encode("unicode_escape").decode("ascii")
    return text if len(text) <= limit else text[: limit - 3] + "..."


def listed(names, limit=20):
    """List `names`, one per line and indented; at most `limit` of them, then a count."""
    names = list(names)
    lines = [f"    {shown(name, 160)}" for name in names[:limit]]
    if len(names) > limit:
        lines.append(f"    ... and {len(names) - limit} more")
    return "\n".join(lines)


class reading:  # noqa: N801, used like a function
    """Turns whatever goes wrong while `path` is read into a `CheckpointError` that names it.

    A class, as contextlib's generators leave a reference cycle through the traceback on Python 3.12, which kept the
    file's storages in memory until the garbage collector came by.
    """

    def __init__(self, path):
        self._path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, Exception) and not isinstance(error, CheckpointError):
            raise CheckpointError(self._path, _problem(error)) from error


def _problem(error):
    if isinstance(error, Malformed):
        return str(error)
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}; check the path and its permissions"
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    # A reader of hostile files must not leak any other exception.
    return f"is damaged or not a checkpoint ({type(error).__name__}: {shown(str(error), 120)}); fetch it again"


def open_regular(path):
    """Open a file for reading; a `CheckpointError` where there is none, or a folder, a pipe or a device."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise CheckpointError(path, "no such file; check the path") from None
    if stat.S_ISDIR(mode):
        raise CheckpointError(path, "is a folder; give the checkpoint file in it")
    if not stat.S_ISREG(mode):
        raise CheckpointError(path, "is not a regular file")
    return open(path, "rb")


@contextlib.contextmanager
def writing(path):
    """jea.files.replacing for a checkpoint: what goes wrong becomes a CheckpointError, and the old file stays whole."""
    try:
        with replacing(path) as file:
            yield file
    except (IsADirectoryError, FileNotFoundError) as error:
        raise CheckpointError(path, error.strerror) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "Free some space" if full else "Check the folder"
        raise CheckpointError(path, f"cannot be written: {error.strerror or error}; what was there before is "
                                    f"untouched. {remedy} and save again") from error
    except Malformed as error:
        raise CheckpointError(path, str(error)) from error
