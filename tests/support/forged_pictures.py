"""Pictures for the tests of readers: a plain one, and PNG files from their parts."""
import struct
import zlib

import numpy as np


def ramp(height=6, width=9):
    y, x = np.mgrid[:height, :width]
    return np.stack([20 * x, 30 * y, 200 - 10 * x], 2).astype(np.uint8)


def png(width, height, depth, colour_type, rows):
    """A PNG from its parts: what PIL does not write, and headers that lie."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))
