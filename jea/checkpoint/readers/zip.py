"""Reads zip archives strictly, for the two zip-based formats (torch's `.pth` and numpy's `.npz`).

The standard library's zipfile believes what the archive says about itself, and differs from version to
version.  Here every claim is checked against the file before anything is allocated: the central directory
must lie inside the file, names must be plain and unique, the entries together must not hold more bytes than
the file (overlapping entries are how zip bombs without compression work), and compressed ones are bounded.

Format: PKWARE APPNOTE 6.3, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to 4.3.16
(ends).
"""
from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from jea.checkpoint.errors import Malformed, shown

MAX_ENTRIES = 100_000
MAX_DIRECTORY = 32 << 20  # bytes
STORED, DEFLATED = 0, 8
_ENCRYPTED = 0x1 | 0x40
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_BROKEN = "broken or incomplete zip archive ({}); fetch the file again"


@dataclass(frozen=True)
class Entry:
    """One member: `packed` bytes in the file from its header at `offset`, `size` bytes of content."""

    name: str
    method: int
    crc: int
    packed: int
    size: int
    offset: int


class ZipArchive:
    """The entries of an open zip file; the reading methods charge what they allocate to a Budget."""

    def __init__(self, file, file_size):
        self.file, self.file_size = file, file_size
        self.entries = {entry.name: entry for entry in self._directory()}

    def _at(self, offset, count):
        self.file.seek(offset)
        data = self.file.read(count)
        if len(data) != count:
            raise Malformed(_BROKEN.format("it ends too early"))
        return data

    def _directory(self):
        start, size, count = self._find_directory()
        if count > MAX_ENTRIES:
            raise Malformed(f"zip archive with {count:,} entries; no checkpoint has over {MAX_ENTRIES:,}")
        if size > MAX_DIRECTORY:
            raise Malformed(f"zip archive whose directory has {size:,} bytes; no checkpoint has over {MAX_DIRECTORY:,}")
        directory, position, entries, names, stored = self._at(start, size), 0, [], set(), 0
        for _ in range(count):
            if position + _CENTRAL.size > size:
                raise Malformed(_BROKEN.format("its directory is cut off"))
            (magic, _, _, flags, method, _, _, crc, packed, unpacked, name_length, extra_length,
             comment_length, _, _, _, offset) = _CENTRAL.unpack_from(directory, position)
            if magic != b"PK\x01\x02":
                raise Malformed(_BROKEN.format("bad directory entry"))
            position += _CENTRAL.size
            name = directory[position:position + name_length]
            position += name_length
            extra = directory[position:position + extra_length]
            position += extra_length + comment_length
            if position > size:
                raise Malformed(_BROKEN.format("its directory is cut off"))
            name = _plain_name(name)
            if name in names:
                raise Malformed(f"zip archive holds {shown(name)!r} twice")
            names.add(name)
            if flags & _ENCRYPTED:
                raise Malformed(f"zip entry {shown(name)!r} is encrypted; decrypt the archive first")
            if method not in (STORED, DEFLATED):
                raise Malformed(f"zip entry {shown(name)!r} uses compression method {method}; only stored "
                                f"and deflated entries are read")
            unpacked, packed, offset = _zip64_fields(extra, unpacked, packed, offset)
            if method == STORED and packed != unpacked:
                raise Malformed(_BROKEN.format(f"entry {shown(name)!r} has two sizes"))
            stored += packed + _LOCAL.size + name_length
            if stored > self.file_size or offset + _LOCAL.size + packed > start:
                raise Malformed(f"zip entries claim more bytes than the file has (at {shown(name)!r}); "
                                f"refused: broken, or a zip bomb")
            entries.append(Entry(name, method, crc, packed, unpacked, offset))
        if position != size:
            raise Malformed(_BROKEN.format("its directory has another length than it says"))
        return entries

    def _find_directory(self):
        tail_length = min(self.file_size, _END.size + 0xFFFF)
        tail_start = self.file_size - tail_length
        tail = self._at(tail_start, tail_length)
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or at + _END.size > len(tail):
            raise Malformed(_BROKEN.format("it has no directory at its end, so its end is missing"))
        _, disk, first_disk, _, count, size, start, comment = _END.unpack_from(tail, at)
        if at + _END.size + comment != len(tail):
            raise Malformed(_BROKEN.format("there are bytes after its end"))
        end = tail_start + at
        if end >= _LOCATOR64.size:
            magic, _, end64, _ = _LOCATOR64.unpack(self._at(end - _LOCATOR64.size, _LOCATOR64.size))
            if magic == b"PK\x06\x07":
                if end64 + _END64.size + _LOCATOR64.size > end:
                    raise Malformed(_BROKEN.format("bad zip64 end"))
                magic, _, _, _, disk, first_disk, _, count, size, start = _END64.unpack(
                    self._at(end64, _END64.size))
                if magic != b"PK\x06\x06":
                    raise Malformed(_BROKEN.format("bad zip64 end"))
                end = end64
        if disk or first_disk:
            raise Malformed("multi-part zip archive; join the parts first")
        if start + size != end:
            raise Malformed(_BROKEN.format("its directory is not where it should be"))
        return start, size, count

    def read(self, name, limit, budget):
        """Return the content of a small entry as bytes; `Malformed` if it is over `limit` bytes."""
        entry = self.entries[name]
        if entry.size > limit:
            raise Malformed(f"{shown(name)!r} in the archive has {entry.size:,} bytes, over {limit:,}")
        return self.read_array(name, budget).tobytes()

    def read_array(self, name, budget):
        """Return the content of an entry as a writable 1-D uint8 array (one copy, from the file into place)."""
        entry = self.entries[name]
        self._seek_to_content(entry)
        budget.take(entry.size, f"zip entry {shown(name)!r}")
        if entry.method == STORED:
            content = np.empty(entry.size, np.uint8)
            if self.file.readinto(content.data) != entry.size:
                raise Malformed(_BROKEN.format(f"entry {shown(name)!r} is cut off"))
        else:
            content = self._inflate(entry)
        # A CRC of 0 means "not computed": torch.serialization.set_crc32_options(False).
        if entry.crc and zlib.crc32(content) != entry.crc:
            raise Malformed(f"zip entry {shown(name)!r} fails its checksum; damaged, fetch the file again")
        return content

    def peek(self, name, count):
        """Return the first `count` bytes of an entry, or all if it has fewer."""
        entry = self.entries[name]
        self._seek_to_content(entry)
        if entry.method == STORED:
            return self.file.read(min(count, entry.size))
        return zlib.decompressobj(-15).decompress(self.file.read(min(count, entry.packed)), count)

    def _seek_to_content(self, entry):
        magic, *_, name_length, extra_length = _LOCAL.unpack(self._at(entry.offset, _LOCAL.size))
        begin = entry.offset + _LOCAL.size + name_length + extra_length
        if magic != b"PK\x03\x04" or self._at(entry.offset + _LOCAL.size, name_length) != entry.name.encode():
            raise Malformed(_BROKEN.format(f"entry {shown(entry.name)!r} is not where the directory says"))
        if begin + entry.packed > self.file_size:
            raise Malformed(_BROKEN.format(f"entry {shown(entry.name)!r} reaches beyond the end of the file"))
        self.file.seek(begin)

    def _inflate(self, entry):
        content, position, left = np.empty(entry.size, np.uint8), 0, entry.packed
        decompressor = zlib.decompressobj(-15)
        pending = b""
        while not decompressor.eof:
            if not pending:
                pending = self.file.read(min(left, 1 << 20))
                left -= len(pending)
            room = entry.size - position
            piece = decompressor.decompress(pending, min(room + 1, 1 << 20))
            starved = not pending and not piece
            pending = decompressor.unconsumed_tail
            if len(piece) > room or starved:
                raise Malformed(_BROKEN.format(f"entry {shown(entry.name)!r} has another size than it says"))
            content[position:position + len(piece)] = np.frombuffer(piece, np.uint8)
            position += len(piece)
        if position != entry.size:
            raise Malformed(_BROKEN.format(f"entry {shown(entry.name)!r} has another size than it says"))
        return content


def _plain_name(raw):
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed(f"zip archive holds a name that is not UTF-8: {shown(raw)}") from None
    if "\0" in name:
        raise Malformed(f"zip archive holds a name with a NUL character: {shown(name)}")
    return name


def _zip64_fields(extra, unpacked, packed, offset):
    """The three numbers, taken from the zip64 extra field (id 1) where the directory says 0xFFFFFFFF."""
    values = [unpacked, packed, offset]
    if 0xFFFFFFFF not in values:
        return values
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        field, extra = extra[4:4 + length], extra[4 + length:]
        if kind == 1:
            for i, value in enumerate(values):
                if value == 0xFFFFFFFF:
                    if len(field) < 8:
                        raise Malformed(_BROKEN.format("bad zip64 field"))
                    values[i], field = struct.unpack_from("<Q", field)[0], field[8:]
            return values
    return values
