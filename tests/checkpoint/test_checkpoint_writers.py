"""The written formats, read back by our readers and by the libraries that own them."""
import hashlib
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest

from jea.checkpoint import CheckpointError, read
from jea.checkpoint.loading import rename_for, write
from jea.checkpoint.writers.torch import write_pth

TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "ß": np.int64([2 ** 40]), "scalar": np.array(2.5),
           "empty": np.zeros((0, 3), np.float32), "flag": np.array([True, False]), "i8": np.int8([-1]),
           "f": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)), "big": np.arange(3, dtype=">i4")}


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors", ".npz"])
def test_round_trip(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    write(path, TENSORS)
    again = read(path).tensors
    assert list(again) == list(TENSORS)
    for key, array in TENSORS.items():
        assert again[key].shape == array.shape and again[key].dtype == array.dtype.newbyteorder("="), key
        np.testing.assert_array_equal(again[key], array)


def test_pth_layout(tmp_path):
    """The records of torch's container, stored, and every storage at a multiple of 64 bytes."""
    path = tmp_path / "x.pth"
    write(path, TENSORS, wrapper="net")
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names == ["archive/data.pkl", "archive/byteorder",
                         *(f"archive/data/{i}" for i in range(len(TENSORS))), "archive/version"]
        assert archive.read("archive/byteorder") == b"little" and archive.read("archive/version") == b"3\n"
        for info in archive.infolist():
            name_length, extra_length = struct.unpack_from("<2H", raw, info.header_offset + 26)
            begin = info.header_offset + 30 + name_length + extra_length
            assert begin % 64 == 0 and info.compress_type == zipfile.ZIP_STORED
            assert raw[begin:begin + info.file_size] == archive.read(info)


def test_pth_with_values_beside_the_state_dict(tmp_path):
    extra = {"step": 30000, "big": 2 ** 70, "negative": -(2 ** 31) - 1, "lr": 0.5, "arch": "x", "none": None,
             "yes": True, "list": [1, "a"], "nested": {"a": {"b": []}}}
    with open(tmp_path / "x.pth", "wb") as file:
        write_pth(file, {"w": np.float32([1])}, "net", extra)
    checkpoint = read(tmp_path / "x.pth")
    assert checkpoint.wrapper == "net" and checkpoint.meta == extra


def test_pkl_is_what_jittor_expects(tmp_path):
    """jittor.safeunpickle: a pickle, its SHA-1 and a magic word."""
    path = tmp_path / "x.pkl"
    write(path, TENSORS)
    raw = path.read_bytes()
    assert raw.endswith(b"HCAJSLHD") and raw[-28:-8] == hashlib.sha1(raw[:-28]).digest()
    loaded = pickle.loads(raw[:-28])
    assert type(loaded) is dict and all(type(array) is np.ndarray for array in loaded.values())
    np.testing.assert_array_equal(loaded["a.weight"], TENSORS["a.weight"])


def test_safetensors_layout(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path, {"a": np.float32([1, 2]), "b": np.int8([3])}, meta={"model": {"name": "toy"}, "note": "n"})
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    assert length % 8 == 0
    assert json.loads(raw[8:8 + length]) == {
        "__metadata__": {"model": '{"name": "toy"}', "note": "n"},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "I8", "shape": [1], "data_offsets": [8, 9]}}
    assert raw[8 + length:] == np.float32([1, 2]).tobytes() + b"\x03"


def test_safetensors_whose_header_length_begins_like_a_pickle(tmp_path):
    lengths = set()
    for letters in range(1, 300, 8):  # the first two bytes of the file are the low bytes of its header's length
        name = "w" * letters
        write(tmp_path / "x.safetensors", {name: np.ones(3, np.float32)})
        lengths.add((tmp_path / "x.safetensors").read_bytes()[0])
        checkpoint = read(tmp_path / "x.safetensors")
        assert checkpoint.format == "safetensors" and list(checkpoint.tensors) == [name]
    assert 0x80 in lengths


def test_safetensors_of_its_own_library(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "x.safetensors"
    library.save_file({"a": TENSORS["a.weight"], "h": np.float16([1.5])}, path, {"format": "np"})
    checkpoint = read(path)
    assert checkpoint.meta == {"format": "np"} and checkpoint.tensors["h"].dtype == np.float32
    write(path, {"a": TENSORS["a.weight"]})
    np.testing.assert_array_equal(library.load_file(path)["a"], TENSORS["a.weight"])


def test_bfloat16_safetensors_are_widened(tmp_path):
    header = b'{"w":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4]}}'
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + b"\x80\x3f\x49\xc0")
    np.testing.assert_array_equal(read(tmp_path / "x").tensors["w"], np.float32([[1], [-3.140625]]))


@pytest.mark.parametrize("name, tensors, reason", [
    ("x.txt", {"a": np.zeros(1)}, "'.txt' says no format"), ("x", {"a": np.zeros(1)}, "says no format"),
    ("x.pth", {"a": np.zeros(1, complex)}, "a.* has type complex128"), ("x.pth", {"a": np.zeros(1, "u4")}, "uint32"),
    ("x.safetensors", {"a": np.zeros(1, complex)}, "complex128"), ("x.pkl", {"a": np.array([None])}, "object"),
])
def test_what_cannot_be_written(tmp_path, name, tensors, reason):
    with pytest.raises(CheckpointError, match=reason) as caught:
        write(tmp_path / name, tensors)
    assert str(caught.value).startswith(str(tmp_path / name)) and list(tmp_path.iterdir()) == []


def test_only_pth_files_are_wrapped(tmp_path):
    with pytest.raises(CheckpointError, match="only a .pth"):
        write(tmp_path / "x.npz", {"a": np.zeros(1)}, wrapper="net")


def test_layout_argument():
    with pytest.raises(ValueError, match="'auto', 'ours' or 'upstream'"):
        rename_for("x.pth", {}, (), "theirs")
    with pytest.raises(CheckpointError, match="no map to upstream's names"):
        rename_for("x.pth", {"a": 1}, (), "upstream")
