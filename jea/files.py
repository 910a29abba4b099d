"""jea's own places on the disk, and the one way in which it writes files.

Configs and bundled weights are in the checkout, or beside an installed wheel (setup.py, data_files).
"""
from __future__ import annotations

import contextlib
import errno
import itertools
import os
import site
import socket
import sys
import time
from pathlib import Path

from jea.errors import ConfigError
from jea.reading import read_yaml

_AROUND = Path(__file__).resolve().parent.parent  # the checkout, site-packages or a --target folder


def shared_folder(name: str) -> Path:
    """The folder "configs" or "weights"."""
    if (_AROUND / "setup.py").is_file():
        return _AROUND / name
    places = [base / "share" / "jea" / name for base in (Path(sys.prefix), _AROUND, Path(site.getuserbase()))]
    return next((place for place in places if place.is_dir()), places[0])


def find_config(name: str) -> Path:
    """A config by path, or by its name in configs/ with or without .yaml."""
    path = Path(name)
    if path.is_file():
        return path
    for candidate in (shared_folder("configs") / path.name, shared_folder("configs") / f"{path.name}.yaml"):
        if candidate.is_file():
            return candidate
    return path  # config.load says that it is not there


def weights_for(stem: str, *, needed: str = "") -> str | None:
    """The weights of a config in weights/index.yaml, or None. needed: where there are none, raise a ConfigError that
    asks for them in these words."""
    folder = shared_folder("weights")
    entry = None
    if (folder / "index.yaml").is_file():
        entry = read_yaml(folder / "index.yaml", what="index of bundled weights").get(stem)
    if entry and (folder / entry["file"]).is_file():
        return str(folder / entry["file"])
    if needed:
        trained = Path("runs") / stem / "best.npz"
        hint = f"; you trained {trained}" if trained.is_file() else ""
        raise ConfigError(f"{stem}: no weights are bundled for this config: say {needed}{hint}")
    return None


def jea_home() -> Path:
    """Where jea keeps what it makes: $JEA_HOME, else ~/.cache/jea. "~" means the home folder."""
    return Path(os.path.abspath(Path(os.environ.get("JEA_HOME") or Path("~", ".cache", "jea")).expanduser()))


def identity(path):
    """What tells a file from all others: its place on the disk, or, where there is none yet, its path."""
    try:
        found = os.stat(path)
        return found.st_dev, found.st_ino
    except OSError:
        return Path(path).resolve()


# -- writing ----------------------------------------------------------------------------------------------------------

_counter = itertools.count()
_in_use = set()
_STALE_AFTER = 24 * 3600  # seconds; for temporary files of other machines, whose processes cannot be seen


@contextlib.contextmanager
def replacing(path):
    """Open a temporary file beside `path` for writing; on leaving, flush it to the disk and rename it.

    A kill at any moment leaves the old file whole. An error (a full disk too) removes the temporary file and is raised
    as it is, an OSError mostly. Temporary files `.<name>.<host>-<pid>-<n>.tmp` of processes that have died are removed
    first. A symbolic link is followed, so that it stays one.
    """
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, "is a folder; give the name of a file to write", str(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "cannot be written: its folder does not exist; make the folder first",
                                str(path))
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
    except BaseException:
        _remove(temporary)
        raise
    finally:
        _in_use.discard(temporary)


def write_bytes(path, data: bytes) -> None:
    """Write a file so that a kill at any moment leaves in it either what it held or all of `data`."""
    with replacing(path) as file:
        file.write(data)


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


def remove_left_over(folder) -> None:
    """Remove the temporary files in a folder whose writers have died, whatever they were to become.

    Those of earlier versions, .<name>.<pid>.tmp, too.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            owner = entry.name[:-len(".tmp")].rpartition(".")[2]
            if entry.name.startswith(".") and entry.name.endswith(".tmp") and entry.path not in _in_use and \
                    (_is_stale(entry, owner) or owner.isdecimal() and not _is_alive(int(owner))):
                _remove(entry.path)
