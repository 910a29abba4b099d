"""Finds the entries of zip and tar archives that may be broken on purpose; for scanning, as zip.py refuses such files.

Programs disagree about archives: one goes by the directory at the end, another by the headers before each entry; one
stops at a flag that another ignores. So both are looked at, and every place where content may begin is taken.
"""
from __future__ import annotations

import io
import itertools
import struct
import zlib
from dataclasses import dataclass

from jea.checkpoint.errors import shown

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_MAGIC_LOCAL, _MAGIC_CENTRAL, _MAGIC_END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_FLAGGED = "has flags of an encrypted entry, at which some programs stop and others do not"
_CHUNK = 1 << 20
_INFLATED = 64 << 20  # most bytes of one entry, and 16 times the file of all
_MOST_ENTRIES = 100_000


@dataclass
class Found:
    """One entry: its content is in `file` from `begin` to `end`."""

    name: str
    file: object
    begin: int
    end: int


def has_zip(file, size):
    """Tell whether a file begins or ends as a zip archive does: programs look at either."""
    file.seek(0)
    if file.read(4) == _MAGIC_LOCAL:
        return True
    return _end_of(file, size) is not None


def part(file, begin, end):
    """Return a part of a file as a file of its own."""
    return _Part(file, begin, end)


class _Part(io.RawIOBase):
    def __init__(self, file, begin, end):
        self._file, self._begin, self._size, self._at = file, begin, end - begin, 0

    def seek(self, offset, whence=0):
        self._at = offset if whence == 0 else self._size + offset
        return self._at

    def read(self, count=-1):
        left = max(0, self._size - self._at)
        self._file.seek(self._begin + self._at)
        data = self._file.read(left if count < 0 else min(count, left))
        self._at += len(data)
        return data


def _end_of(file, size):
    """Return (place of the end record, its fields), or None."""
    length = min(size, _END.size + 0xFFFF)
    file.seek(size - length)
    tail = file.read(length)
    at = tail.rfind(_MAGIC_END)
    if at < 0 or at + _END.size > len(tail):
        return None
    return size - length + at, _END.unpack_from(tail, at)


def of_zip(file, size, verdict):
    """Yield what every directory entry and every header before an entry points at; oddities go to the `verdict`."""
    directory = _directory(file, size, verdict)
    headers = list(_headers(file, size))
    if len(headers) >= _MOST_ENTRIES:
        verdict.problems.append(f"has over {_MOST_ENTRIES:,} entries")
    if not headers:
        verdict.problems.append("is a zip archive without entries")
    elif headers[0][0] > 0:
        verdict.findings.append(f"has {headers[0][0]:,} bytes before its zip archive: other programs may take it for "
                                f"something else")
    places = {place: name for place, name in headers}
    for place, name in directory:
        local = places.get(place)
        if local is None:
            verdict.problems.append(f"has no entry where its directory says that {shown(name)!r} is")
        elif local != name:
            verdict.findings.append(f"calls an entry {shown(name)!r} in its directory and {shown(local)!r} before its "
                                    f"content: two programs see two archives")
    listed = {place for place, _ in directory}
    if directory and listed <= set(places):
        hidden = [name for place, name in headers if place not in listed]
        if hidden:
            verdict.problems.append(f"holds {len(hidden)} entries that its directory does not list, such as "
                                    f"{shown(hidden[0])!r}")
    names = [name for _, name in directory]
    if len(set(names)) < len(names):
        verdict.findings.append("lists an entry twice: two programs take two different ones")
    budget = _INFLATED + 16 * size
    for number, (place, name) in enumerate(headers):
        following = headers[number + 1][0] if number + 1 < len(headers) else size
        begin, method, flags, packed = _content(file, place)
        end = following if packed is None else min(begin + packed, size)
        if flags & _ENCRYPTED:
            verdict.problems.append(f"{shown(name)!r}: {_FLAGGED}")
        if method == 0:
            yield Found(name, file, min(begin, end), end)
        elif method == 8:
            content, whole = _inflated(file, begin, max(end, following), min(budget, _INFLATED))
            budget -= len(content)
            if not whole:
                verdict.problems.append(f"{shown(name)!r}: cannot be unpacked whole")
            yield Found(name, io.BytesIO(content), 0, len(content))
        else:
            verdict.problems.append(f"{shown(name)!r}: is packed by method {method}, which is not read")


def _directory(file, size, verdict):
    """[(place, name)] of the central directory, as far as it can be read."""
    end = _end_of(file, size)
    if end is None:
        verdict.problems.append("has no zip directory at its end")
        return []
    at, (_, _, _, _, _, _, _, comment) = end
    if at + _END.size + comment != size:
        verdict.problems.append("has bytes behind its zip archive")
    entries, position = [], None
    for begin in _find(file, size, _MAGIC_CENTRAL):
        if position is not None and begin != position:
            continue  # these four letters inside of something else
        file.seek(begin)
        raw = file.read(_CENTRAL.size)
        if len(raw) < _CENTRAL.size:
            break
        fields = _CENTRAL.unpack(raw)
        name_length, extra_length, comment_length, offset, flags = (fields[at] for at in (10, 11, 12, 16, 3))
        name = file.read(name_length).decode("utf-8", "replace")
        extra = file.read(extra_length)
        position = begin + _CENTRAL.size + name_length + extra_length + comment_length
        if offset == 0xFFFFFFFF and len(extra) >= 12:
            offset = struct.unpack("<Q", extra[-8:])[0]
        if flags & _ENCRYPTED:
            verdict.problems.append(f"{shown(name)!r}: {_FLAGGED}")
        entries.append((offset, name))
        if len(entries) >= _MOST_ENTRIES:
            break
    return entries


def _headers(file, size):
    """Return (place, name) of every header before an entry."""
    for begin in itertools.islice(_find(file, size, _MAGIC_LOCAL), _MOST_ENTRIES):
        file.seek(begin)
        raw = file.read(_LOCAL.size)
        if len(raw) == _LOCAL.size:
            yield begin, file.read(_LOCAL.unpack(raw)[9]).decode("utf-8", "replace")


def _find(file, size, magic):
    """Yield the place of each occurrence of four bytes in a file."""
    base, kept = 0, b""
    while base < size:
        file.seek(base)
        data = file.read(_CHUNK)
        if not data:
            return
        block, start = kept + data, base - len(kept)
        at = block.find(magic)
        while at >= 0:
            yield start + at
            at = block.find(magic, at + 1)
        kept = block[-3:]
        base += len(data)


def _content(file, place):
    """Return (begin of the content, method, flags, packed size or None where it is not said) of an entry."""
    file.seek(place)
    _, _, flags, method, _, _, _, packed, _, name_length, extra_length = _LOCAL.unpack(file.read(_LOCAL.size))
    unknown = flags & 8 or packed == 0xFFFFFFFF
    return place + _LOCAL.size + name_length + extra_length, method, flags, None if unknown else packed


def _inflated(file, begin, end, limit):
    """Return (what the deflated bytes from `begin` become, at most `limit` of it; whether that is all)."""
    decompressor, content = zlib.decompressobj(-15), bytearray()
    file.seek(begin)
    left = end - begin
    while left > 0 and not decompressor.eof and len(content) < limit:
        data = decompressor.unconsumed_tail or file.read(min(left, 1 << 16))
        if not data:
            break
        try:
            content += decompressor.decompress(data, 1 << 20)
        except zlib.error:
            return bytes(content), False
        if not decompressor.unconsumed_tail:
            left -= len(data)
    return bytes(content), decompressor.eof


def of_tar(file, size):
    """Yield (name, begin, end) of the files in a tar archive."""
    position = 0
    for _ in range(_MOST_ENTRIES):
        file.seek(position)
        header = file.read(512)
        if len(header) < 512 or not header.strip(b"\0"):
            return
        try:
            length = int(header[124:136].strip(b"\0 ") or b"0", 8)
        except ValueError:
            return
        begin = position + 512
        yield header[:100].rstrip(b"\0").decode("utf-8", "replace"), begin, min(begin + length, size)
        position = begin + length + -length % 512
