"""The lists of data sets: text files with a name per line."""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

from jea.errors import DataError
from jea.reading import decode, read_file

MAX_BYTES = 64 * 1024 * 1024  # of a list; ImageNet's longest has 2.5 MB


def read_lines(path: str | Path, what: str = "list") -> list[str]:
    """The lines of a text file in UTF-8, stripped of blanks; DataError where it is no such file."""
    data = read_file(path, limit=MAX_BYTES, error=DataError, what=what, too_large="is it the right file?",
                     empty=True)
    return [line.strip() for line in decode(data, path, error=DataError, what=what).split("\n")]


def read_list(path: str | Path) -> tuple[str, ...]:
    """The lines of a list that hold something; DataError for none, for one that is no name or that is there twice."""
    names, seen = [], set()
    for number, line in enumerate(read_lines(path), 1):
        if not line:
            continue
        if "/" in line or "\\" in line or line.startswith(".") or not line.isprintable():
            raise DataError(f"{path}, line {number}: {line[:80]!r}; expected a name, not a path")
        if line in seen:
            raise DataError(f"{path}, line {number}: {line} is listed twice")
        seen.add(line)
        names.append(line)
    if not names:
        raise DataError(f"{path}: the list is empty")
    return tuple(names)


def check_listed(files: Sequence[Path], listed_in: Path) -> None:
    """DataError unless all files of a list exist."""
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: cloud does not exist, but {listed_in} lists it ({len(missing)} of {len(files)} "
                        "are missing)")
