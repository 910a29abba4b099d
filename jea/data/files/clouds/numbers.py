"""Numbers of a text, with the lines that they stand in: what all text forms of clouds and meshes are read with.

Work is linear in the text. Memory is at most 10 bytes per byte of it, for lines of one-digit numbers; 2 to 4 for usual
clouds. The text is cut at line ends into blocks of about BLOCK bytes, so that what is needed per character is small.
"""
from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

import numpy as np

from jea.errors import DataError
from jea.reading import read_file

MAX_BYTES = 256 * 1024 * 1024  # of a file; a text, which grows when it is parsed, may have half of it
BLOCK = 512 * 1024

_BLANKS = bytes.maketrans(b",;\t\r\v\f", b"      ")
_NUMBER = rb"[+-]?\d+,\d+(?:[eE][+-]?\d+)?"
# A word such as 0,5 in a line whose words are between blanks or semicolons.
_DECIMAL_COMMA = re.compile(rb"(?m)(?:^|[ \t;])" + _NUMBER + rb"[ \t;]+[^\s;]|[^\s;][ \t;]+" + _NUMBER + rb"[ \t;]*$")


class Numbers(NamedTuple):
    """The numbers of a text: those of row r are values[ends[r]:ends[r + 1]], from line lines[r] of the file."""

    values: np.ndarray  # float64
    ends: np.ndarray
    lines: np.ndarray

    @property
    def widths(self) -> np.ndarray:
        """How many numbers each row has."""
        return np.diff(self.ends)

    def rows(self, first: int, count: int | None = None) -> Numbers:
        """Some rows of these."""
        last = len(self.lines) if count is None else first + count
        start, end = self.ends[first], self.ends[last]
        return Numbers(self.values[start:end], self.ends[first:last + 1] - start, self.lines[first:last])


def read_cloud_bytes(path: str | Path) -> bytes:
    """The bytes of a cloud or a mesh."""
    return read_file(path, limit=MAX_BYTES, error=DataError, what="cloud", too_large="thin the cloud out first")


def clean_text(data: bytes, path: str | Path) -> bytes:
    """Text without byte order mark and comments, its line ends "\\n"; DataError for what is no such text."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: text in UTF-16; save it as UTF-8 or ASCII")
    if data[:4096].count(0) * 10 > len(data[:4096]):
        raise DataError(f"{path}: not a text file: it holds zero bytes; expected a point per line")
    if len(data) > MAX_BYTES // 2:
        raise DataError(f"{path}: {len(data)} bytes of text, over the limit of {MAX_BYTES // 2}; save it as .npy")
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"#" in data:
        data = b"".join(re.sub(rb"#[^\n]*", b"", data[start:end]) for start, end in blocks(data))
    return data


def blocks(data: bytes) -> Iterator[tuple[int, int]]:
    """(start, end) of pieces of about BLOCK bytes that end with a line."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start + BLOCK) + 1
        end = end if end else len(data)
        yield start, end
        start = end


def check_commas(data: bytes, path: str | Path, first_line: int = 1) -> None:
    """DataError for a line in which a comma can be a decimal sign; "1,2,3" and "1, 2, 3" are none."""
    mixed = b"," in data and any(blank in data for blank in (b" ", b"\t", b";"))
    found = _DECIMAL_COMMA.search(data) if mixed else None
    if found:
        word = re.search(_NUMBER, found.group())
        line = first_line + data.count(b"\n", 0, found.start() + word.start())
        raise DataError(f"{path}, line {line}: {word.group()[:40].decode('ascii')!r} can be one number with a decimal "
                        f"comma or two numbers; write decimal points, such as "
                        f"{word.group()[:40].replace(b',', b'.').decode('ascii')}, for example with: sed 's/,/./g'")


def parse(data: bytes, path: str | Path, first_line: int = 1) -> Numbers:
    """All numbers of a cleaned text, with the rows that they stand in; empty lines do not count."""
    text = data.translate(_BLANKS)
    ends, lines, total, line = [np.zeros(1, np.int32)], [], 0, first_line
    for start, end in blocks(text):
        counts = _words_per_line(text[start:end])
        full = np.flatnonzero(counts)
        ends.append((np.cumsum(counts[full]) + total).astype(np.int32))
        lines.append((full + line).astype(np.int32))
        total += int(counts.sum())
        line += text.count(b"\n", start, end)
    values = _values(text)
    if len(values) != total or total and _bad_number(_word(text, total - 1)):
        bad = next((k for k in range(max(0, len(values) - 1), total) if _bad_number(_word(text, k))), 0)
        where = int(np.concatenate(lines)[np.searchsorted(np.concatenate(ends), bad, side="right") - 1])
        raise DataError(f"{path}, line {where}: {_shown(_word(text, bad))!r} is not a number")
    return Numbers(values, np.concatenate(ends), np.concatenate(lines or [np.zeros(0, np.int32)]))


def _words_per_line(block: bytes) -> np.ndarray:
    newlines, words = _places(block)
    return np.diff(np.append(0, np.searchsorted(words, np.append(newlines, len(block)))))


def _places(block: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Where lines end and where words begin."""
    raw = np.frombuffer(block, np.uint8)
    newline = raw == ord("\n")
    blank = newline | (raw == ord(" "))
    starts = ~blank
    starts[1:] &= blank[:-1]
    return np.flatnonzero(newline), np.flatnonzero(starts)


def _values(text: bytes) -> np.ndarray:
    if not text.strip():
        return np.zeros(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # how numpy says that it met something else
        return np.fromstring(text, np.float64, sep=" ")


def _word(text: bytes, k: int) -> bytes:
    """The k-th word, at most its first 400 bytes."""
    for start, end in blocks(text):
        block = text[start:end]
        count = int(_words_per_line(block).sum())
        if k < count:
            place = int(_places(block)[1][k])
            return block[place:place + 400].split(None, 1)[0]
        k -= count
    return b""


def _bad_number(word: bytes) -> bool:
    try:
        return b"_" in word or float(word) is None
    except ValueError:
        return True


def _shown(word: bytes) -> str:
    return word[:40].decode("ascii", "replace")


def columns(numbers: Numbers, places: Sequence[int], path: str | Path) -> np.ndarray:
    """Columns of all rows, (R, len(places)) float64."""
    short = np.flatnonzero(numbers.widths <= max(places))
    if len(short):
        raise DataError(f"{path}, line {numbers.lines[short[0]]}: {numbers.widths[short[0]]} numbers; expected at "
                        f"least {max(places) + 1}")
    return numbers.values[numbers.ends[:-1, None].astype(np.int64) + np.asarray(places)]
