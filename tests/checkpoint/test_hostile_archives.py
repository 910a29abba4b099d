"""Archives that were made to do harm: zip, .npz and .safetensors files that lie or blow up."""
import os
import pickle
import struct
import zipfile
import zlib

import checkpoint_forge as forge
import numpy as np
import pytest
from checkpoint_limits import refused

from jea.checkpoint import CheckpointError, read


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code in the checkpoint was executed"


# -- zip archives

def raw_zip(entries, *, count=None, comment=b""):
    """A zip with full control: entries are dicts of name, data, and overrides of the directory's fields."""
    body, directory = bytearray(), bytearray()
    for entry in entries:
        name, data = entry["name"].encode(), entry.get("data", b"")
        offset = entry.get("offset", len(body))
        extra = entry.get("extra", b"")
        local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, entry.get("method", 0), 0, 0, zlib.crc32(data),
                            len(data), len(data), len(name), 0) + name + data
        if "offset" not in entry:
            body += local
        directory += struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, entry.get("flags", 0), entry.get("method", 0),
                                 0, 0, entry.get("crc", zlib.crc32(data)), entry.get("packed", len(data)),
                                 entry.get("size", len(data)), len(name), len(extra), 0, 0, 0, 0,
                                 entry.get("claimed_offset", offset)) + name + extra
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count or len(entries), count or len(entries), len(directory),
                      len(body), len(comment))
    return bytes(body + directory + end + comment)


PKL = dict(name="archive/data.pkl", data=forge.pickled(forge.mapping(
    {"w": forge.tensor("0", "FloatStorage", 1, 0, (1,), (1,))})))
ONE = dict(name="archive/data/0", data=b"\0\0\x80?")


def test_the_raw_zip_is_readable_when_nothing_is_wrong(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(raw_zip([PKL, ONE]))
    assert read(path).tensors["w"] == 1


def test_zip64_fields_are_read(tmp_path):
    """Sizes and offset of 0xFFFFFFFF stand in the extra field of the directory; as for entries beyond 4 GiB."""
    offset = 30 + len(PKL["name"]) + len(PKL["data"])
    other = struct.pack("<2H", 0x4246, 2) + b"ZZ"
    for field, reason in ((struct.pack("<2H3Q", 1, 24, 4, 4, offset), None),
                          (struct.pack("<2H3Q", 1, 24, 4, 4, 2 ** 63), "more bytes than the file has"),
                          (struct.pack("<2HQ", 1, 8, 4), "bad zip64 field"), (b"", "more bytes than the file has")):
        path = tmp_path / "x"
        path.write_bytes(raw_zip([PKL, {**ONE, "size": 2 ** 32 - 1, "packed": 2 ** 32 - 1, "extra": other + field,
                                        "claimed_offset": 2 ** 32 - 1}]))
        if reason:
            refused(path, reason)
        else:
            assert read(path).tensors["w"] == 1


@pytest.mark.parametrize("entries, reason", [
    ([PKL, ONE, ONE], "holds 'archive/data/0' twice"),
    ([PKL, {**ONE, "flags": 1}], "encrypted"),
    ([PKL, {**ONE, "method": 12}], "compression method 12"),
    ([PKL, {**ONE, "size": 1 << 31}], "two sizes"),
    ([PKL, {**ONE, "size": 1 << 31, "packed": 1 << 31}], "more bytes than the file has"),
    ([PKL, {**ONE, "crc": 5}], "fails its checksum"),
    ([PKL, {**ONE, "offset": 1 << 30}], "more bytes than the file has"),
    ([PKL, {**ONE, "offset": 7}], "is not where the directory says"),
    ([PKL, ONE, dict(name="../../etc/passwd")], r"holds the path '../../etc/passwd'"),
    ([PKL, ONE, dict(name="/etc/passwd")], "holds the path"),
    ([PKL, ONE, dict(name="a\\..\\b")], "holds the path"),
    ([PKL, ONE, dict(name="c:/b")], "holds the path"),
    ([PKL, ONE, dict(name="a\0b")], "NUL"),
    ([{**PKL, "name": "a/b/data.pkl"}, ONE], "not a PyTorch checkpoint"),
    ([PKL, {**PKL, "name": "other/data.pkl"}], "not a PyTorch checkpoint"),
    ([PKL, {**ONE, "name": "archive/data/sub/0"}], "'0' is missing"),
])
def test_zip_tricks(tmp_path, entries, reason):
    path = tmp_path / "x"
    path.write_bytes(raw_zip(entries))
    refused(path, reason)


def test_overlapping_entries_are_refused(tmp_path):
    """The zip bomb without compression: many directory entries that point at the same bytes."""
    pickled = {**PKL, "data": forge.pickled(b"}")}
    block = dict(name="archive/data/0", data=bytes(1 << 20))
    offset = 30 + len(pickled["name"]) + len(pickled["data"])
    copies = [{**block, "name": f"archive/data/{i}", "offset": offset} for i in range(1, 64)]
    path = tmp_path / "x"
    path.write_bytes(raw_zip([pickled, block, *copies]))
    refused(path, "more bytes than the file has")


def deflated(path, content_size, claimed=None):
    body = forge.mapping({"w": forge.tensor("0", "ByteStorage", content_size, 0, (content_size,), (1,))})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", forge.pickled(body))
        with archive.open("archive/data/0", "w") as stream:
            for _ in range(content_size >> 20):
                stream.write(bytes(1 << 20))
    return path


def test_compressed_archives_are_read_within_bounds(tmp_path):
    assert read(deflated(tmp_path / "x", 1 << 20)).tensors["w"].size == 1 << 20
    refused(deflated(tmp_path / "bomb", 256 << 20), "decompression bomb")


@pytest.mark.parametrize("size", [1, 999_999, 1_000_001, 4 << 20])
def test_compressed_entries_with_a_wrong_size(tmp_path, size):
    data = zlib.compress(bytes(1_000_000))[2:-4]
    body = forge.mapping({"w": forge.tensor("0", "ByteStorage", size, 0, (size,), (1,))})
    path = tmp_path / "x"
    path.write_bytes(raw_zip([{**PKL, "data": forge.pickled(body)},
                              dict(name="archive/data/0", data=data, method=8, size=size, crc=0)]))
    refused(path, "another size than it says")


def test_endless_directory(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(raw_zip([dict(name=f"archive/{i}") for i in range(30_000)]))
    refused(path, "not a PyTorch checkpoint|neither a PyTorch checkpoint")


# -- npz

def npy(header, data=b""):
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize("content, reason", [
    (npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", pickle.dumps([Call(print, 1)])),
     "not an array of plain numbers"),
    (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n"), "bytes of data"),
    (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n"), "not an array of plain numbers"),
    (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os'),), }\n"), "not an array"),
    (npy(b"(" * 3000), "not an array of plain numbers"),
    (npy(b"{'descr': '<U4', 'fortran_order': False, 'shape': (1,), }\n", bytes(16)), "not an array"),
    (npy(b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }\n", bytes(4)), "not an array"),
    (b"\x93NUMPY", "not a numpy array"),
    (b"", "not a numpy array"),
    (b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 31) + b"{}", "not an array of plain numbers"),
])
def test_npz_entries_that_lie(tmp_path, content, reason):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", content)
    refused(path, reason)


def test_object_arrays_written_by_numpy_are_refused(tmp_path, canary):
    path = tmp_path / "x.npz"
    np.savez(path, w=np.array([Call(os.system, f"touch {canary}")], dtype=object))
    refused(path, "not an array of plain numbers")


@pytest.mark.parametrize("meta", [b"[" * 100_000, b'{"a": ' + b"9" * 100_000 + b"}", b'{"a": 1, "a": 2}', b"[1]",
                                  b"\xff", b'{"a": NaN}'])
def test_npz_meta_that_lies(tmp_path, meta):
    path = tmp_path / "x.npz"
    np.savez(path, w=np.zeros(1), __meta__=np.frombuffer(meta, np.uint8))
    refused(path, "JSON|damaged")


# -- safetensors

def safetensors(header, data=b""):
    return struct.pack("<Q", len(header)) + header + data


F4 = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize("content, reason", [
    (struct.pack("<Q", 2 ** 63) + F4 + b"}", "bytes, of"),
    (struct.pack("<Q", 5000) + F4 + b"}", "bytes, of"),
    (safetensors(F4 + b"}"), "end at byte"),
    (safetensors(F4 + b"}", bytes(5)), "end at byte"),
    (safetensors(F4 + b',"v":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)), "overlap"),
    (safetensors(F4 + b',"v":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}', bytes(12)), "overlap or leave gaps"),
    (safetensors(F4 + b',"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)), "a name twice"),
    (safetensors(F4.replace(b"[1]", b"[2]") + b"}", bytes(4)), "4 bytes; the file is damaged"),
    (safetensors(F4.replace(b"[1]", b"[-1]") + b"}", bytes(4)), "non-negative"),
    (safetensors(F4.replace(b"[1]", b"[true]") + b"}", bytes(4)), "non-negative"),
    (safetensors(F4.replace(b"[1]", b"[1.0]") + b"}", bytes(4)), "non-negative"),
    (safetensors(F4.replace(b"[1]", b"[" + b"9" * 5000 + b"]") + b"}", bytes(4)), "absurdly large"),
    (safetensors(F4.replace(b"F32", b"F8_E4M3") + b"}", bytes(4)), "has type 'F8_E4M3'"),
    (safetensors(F4.replace(b"[0,4]", b"[4,0]") + b"}", bytes(4)), "-4 bytes"),
    (safetensors(F4.replace(b"[0,4]", b"[0]") + b"}", bytes(4)), "odd offsets"),
    (safetensors(b'{"w":5}'), "is not a tensor"),
    (safetensors(b'{"w":' + b"[" * 100_000), "nested too deeply"),
    (safetensors(b'{"w":' + b'{"a":' * 100_000), "nested too deeply"),
    (safetensors(b'{"w":["[[["'), "cannot be read"),
    (safetensors(b"{}"), "holds no tensors"),
    (safetensors(b'{"__metadata__":{"a":1}}'), "table of texts"),
])
def test_safetensors_that_lie(tmp_path, content, reason):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    refused(path, reason)


def test_special_files_do_not_hang(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read(pipe)
