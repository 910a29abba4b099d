"""Pictures that are not a data set: what `--input` names."""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

from jea.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def list_inputs(path: str | Path, suffixes: Sequence[str] = SUFFIXES, what: str = "picture") -> list[Path]:
    """One picture, or all pictures directly in a folder (not below it), sorted by name.

    A file is taken whatever its suffix; in a folder those with one of `suffixes` count, hidden ones do not.
    Raises DataError for a path that does not exist and for a folder without pictures. `what` is its word for them.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such {what} or folder")
    files = sorted(file for file in path.iterdir()
                   if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file())
    if not files:
        raise DataError(f"{path}: no {what}s in this folder; expected files ending in {', '.join(suffixes)}")
    return files
