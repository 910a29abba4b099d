"""Pictures that are not a data set: what `--input` names."""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

from jea.data.files.folders import list_files, warn_once
from jea.data.files.pictures import SUFFIXES
from jea.errors import DataError


def list_inputs(path: str | Path, suffixes: Sequence[str] = SUFFIXES, what: str = "picture") -> list[Path]:
    """One picture, or all pictures directly in a folder (not below it), sorted by name.

    A file is taken whatever its suffix; in a folder those with one of `suffixes` count, hidden ones do not; files of
    other types are counted in a warning. Raises DataError for a path that does not exist and for a folder without
    pictures. `what` is its word for them.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such {what} or folder")
    found = list_files(path, suffixes, below=False)
    if not found.files:
        others = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in found.others.most_common(5))
        raise DataError(f"{path}: no {what}s in this folder{f', only {others}' if others else ''}; expected files "
                        f"ending in "
                        f"{', '.join(suffixes)}")
    warn_once(found, path, suffixes)
    return [Path(file) for file in found.files]
