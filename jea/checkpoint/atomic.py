"""Files that are either the old ones or the new ones, never something between."""
from __future__ import annotations

import errno
import itertools
import os
import socket
import time
from contextlib import contextmanager

from .errors import CheckpointError, Malformed

_counter = itertools.count()
_in_use = set()
_STALE_AFTER = 24 * 3600  # seconds; for temporary files of other machines, whose processes cannot be seen


@contextmanager
def replacing(path):
    """Open a temporary file beside ``path`` for writing; on leaving, flush it to the disk and rename it.

    A kill at any moment leaves the old file whole.  An error (a full disk too) removes the temporary file and
    raises :class:`CheckpointError`.  Temporary files ``.<name>.<host>-<pid>-<n>.tmp`` of processes that have
    died are removed first.  A symbolic link is followed, so that it stays one.
    """
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    if os.path.isdir(target):
        raise CheckpointError(path, "is a folder; give the name of a file to write")
    if not os.path.isdir(folder):
        raise CheckpointError(path, "cannot be written: its folder does not exist; make the folder first")
    temporary = os.path.join(folder, f".{name}.{_host()}-{os.getpid()}-{next(_counter)}.tmp")
    _in_use.add(temporary)
    try:
        _remove_stale(folder, name)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(folder)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            remedy = "Free some space" if full else "Check the folder"
            raise CheckpointError(path, f"cannot be written: {error.strerror or error}; what was there "
                                        f"before is untouched. {remedy} and save again") from error
        if isinstance(error, Malformed):
            raise CheckpointError(path, str(error)) from error
        raise
    finally:
        _in_use.discard(temporary)


def _host():
    return socket.gethostname().replace(os.sep, "_").replace("-", "_")


def _remove(path):
    try:
        os.unlink(path)
    except OSError:
        pass


def _sync_folder(folder):
    """Make the rename itself durable, where the system can (POSIX)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _remove_stale(folder, name):
    prefix = f".{name}."
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.name.endswith(".tmp") and entry.path not in _in_use \
                    and _is_stale(entry, entry.name[len(prefix):-len(".tmp")]):
                _remove(entry.path)


def _is_stale(entry, owner):
    host, _, rest = owner.partition("-")
    pid = rest.partition("-")[0]
    if not pid.isdecimal():
        return False
    if host == _host():
        return int(pid) == os.getpid() or not _is_alive(int(pid))
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_AFTER
    except OSError:
        return False


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it exists and belongs to someone else
        return True
    return True
