"""Files of a folder and of those below it: each folder once, and what is left out is counted.

Work and memory are linear in the number of entries.
"""
from __future__ import annotations

import collections
import logging
import os
from pathlib import Path
from typing import Iterable, Sequence

from jea.errors import DataError

_log = logging.getLogger(__name__)
_warned: set[str] = set()


class Listing:
    """What a folder holds.

    files: paths of the files with a wanted ending, sorted. others: how many have which other suffix.
    hidden: how many begin with a dot. repeats: (link, folder) for links to folders that are listed already, as loops
    do.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self.others: collections.Counter = collections.Counter()
        self.hidden = 0
        self.repeats: list[tuple[str, str]] = []

    def notes(self, root: str | Path, wanted: Sequence[str]) -> list[str]:
        """What was left out, as lines for people."""
        lines = []
        if self.others:
            kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix,
                              count in self.others.most_common(10))
            lines.append(f"{root}: {sum(self.others.values())} files of other types are left out ({kinds}); read are "
                         f"{', '.join(wanted)}")
        if self.hidden:
            lines.append(f"{root}: {self.hidden} hidden files, whose names begin with a dot, are left out")
        for link, folder in self.repeats[:10]:
            lines.append(f"{link}: leads to {folder}, which is read already; it is not read again")
        if len(self.repeats) > 10:
            lines.append(f"{root}: {len(self.repeats) - 10} more such links")
        return lines

    def add(self, other: Listing) -> None:
        """Take the counts of another listing, not its files."""
        self.others.update(other.others)
        self.hidden += other.hidden
        self.repeats += other.repeats


def list_files(top: str | Path, ends: Sequence[str], *, below: bool = True, beside: Iterable[str | Path] = (),
               passed_over: Sequence[str] = ()) -> Listing:
    """List the files whose names end in one of `ends` (in any case), in a folder and, with `below`, in those under it.

    Symbolic links to folders are followed, but each folder is read once, told by device and inode: the real one rather
    than a link to it. Hidden files and folders are left out.

    Args:
        beside: folders that are not to be read through links either, such as those of other classes, or above `top`.
        passed_over: endings of files that belong there and are not counted as others.
    Raises:
        DataError: a folder cannot be read.
    """
    found, ends, passed = Listing(), tuple(end.lower() for end in ends), tuple(end.lower() for end in passed_over)
    seen = {_identity(folder): str(folder) for folder in beside}
    folders, links = [str(top)], []
    while folders or links:
        folder = folders.pop() if folders else links.pop()  # links wait until all real folders are listed
        key = _identity(folder)
        if key in seen and folder != str(top):
            found.repeats.append((folder, seen[key]))
            continue
        seen[key] = folder
        for entry in _entries(folder):
            name = entry.name.lower()
            if is_folder(entry):
                if below and not name.startswith("."):
                    (links if entry.is_symlink() else folders).append(entry.path)
            elif name.startswith("."):
                found.hidden += 1
            elif name.endswith(ends):
                found.files.append(entry.path)
            elif not passed or not name.endswith(passed):
                found.others[os.path.splitext(name)[1]] += 1
    found.files.sort()
    found.repeats.sort()
    return found


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot read the folder: {error.strerror or error}") from None


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder, or a link to one that is there."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: str | Path) -> tuple:
    try:
        state = os.stat(folder)
    except OSError:
        return (str(folder),)  # gone meanwhile, or not to be read: told when it is listed
    return state.st_dev, state.st_ino


def warn_once(listing: Listing, root: str | Path, wanted: Sequence[str]) -> None:
    """Log what was left out of a folder that training or `--input` reads, once in a process."""
    if listing.others and str(root) not in _warned:
        _warned.add(str(root))
        _log.warning("%s", listing.notes(root, wanted)[0])
