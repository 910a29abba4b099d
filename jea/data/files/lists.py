"""The lists of data sets: text files with a name per line."""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

from jea.errors import DataError


def read_list(path: Path) -> tuple[str, ...]:
    """The lines of a list that hold something; DataError where there are none, or one is there twice."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the list: {error}") from None
    if not lines:
        raise DataError(f"{path}: the list is empty")
    strange = next((line for line in lines if "/" in line or "\\" in line or line.startswith(".")), None)
    if strange is not None:
        raise DataError(f"{path}: {strange[:80]!r}; expected a name, not a path")
    if len(set(lines)) != len(lines):
        twice = next(line for number, line in enumerate(lines) if line in lines[:number])
        raise DataError(f"{path}: {twice} is listed twice")
    return tuple(lines)


def check_listed(files: Sequence[Path], listed_in: Path) -> None:
    """DataError unless all files of a list exist."""
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: cloud does not exist, but {listed_in} lists it ({len(missing)} of {len(files)} "
                        "are missing)")
