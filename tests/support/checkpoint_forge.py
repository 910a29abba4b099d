"""Checkpoints made byte by byte, so that the tests need no PyTorch and can make what PyTorch never would."""
import os
import struct
import zipfile
from pathlib import Path

import jea

#: The environment of subprocesses that import jea, installed or not.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(
    [str(Path(jea.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])}

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
PROTOCOL = b"\x80\x02M\xe9\x03."
SYSTEM = (b"\x80\x02}(X\x10\0\0\0protocol_versionM\xe9\x03X\r\0\0\0little_endian\x88"
          b"X\n\0\0\0type_sizes}u.")
EMPTY = b"ccollections\nOrderedDict\n)R"


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def whole(value):
    if -1 << 31 <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def sequence(values):
    return b"(" + b"".join(whole(value) for value in values) + b"t"


def storage(key, kind, count, view=None):
    extra = b"" if view is None else view
    return b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + whole(count) \
        + extra + b"tQ"


def tensor(key, kind, count, offset, size, stride, raw_offset=None, raw_size=None, raw_stride=None, view=None):
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(key, kind, count, view)
            + (whole(offset) if raw_offset is None else raw_offset)
            + (sequence(size) if raw_size is None else raw_size)
            + (sequence(stride) if raw_stride is None else raw_stride) + b"\x89" + EMPTY + b"tR")


def mapping(entries):
    """The pickle of a dict {str: pickle bytes}, without the protocol header and the final stop."""
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def pickled(body):
    return b"\x80\x02" + body + b"."


def torch_zip(path, body, storages=None, **records):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": pickled(body), "byteorder": b"little", "version": b"3\n", **records}.items():
            archive.writestr(f"archive/{name}", content)
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def torch_legacy(path, body, storages=None, system=SYSTEM):
    """``storages`` is {key: (element count, bytes)}."""
    storages = storages or {}
    keys = b"\x80\x02](" + b"".join(text(key) for key in storages) + b"e."
    path.write_bytes(MAGIC + PROTOCOL + system + pickled(body) + keys
                     + b"".join(struct.pack("<q", count) + content for count, content in storages.values()))
    return path
