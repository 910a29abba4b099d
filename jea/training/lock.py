"""One run at a time in a folder."""
from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from jea import ranks
from jea.errors import TrainingError
from jea.training.log import say

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def locked(out: Path):
    """Hold a folder inside the block; TrainingError where another process does.

    The lock is the operating system's and belongs to this process: it ends with it, however that ends, and leaves no
    file. Under mpirun the first rank holds it for all.
    """
    descriptor = _lock(out) if fcntl is not None and ranks.is_first() else None
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(out: Path) -> int | None:
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise TrainingError(f"{out}: another run is writing into this folder; wait for its end, or choose another "
                                "--out") from None
        say(f"{out}: this file system has no locks ({error.strerror}): see to it that no other run writes there")
        return None
    return descriptor
