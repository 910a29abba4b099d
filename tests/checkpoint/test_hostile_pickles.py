"""Pickles that were made to do harm: none may execute anything, hang or take much memory."""
import io
import os
import pickle
import struct

import checkpoint_forge as forge
import numpy as np
import pytest
from checkpoint_limits import refused

from jea.checkpoint import read
from jea.checkpoint.errors import shown

CONTAINERS = {
    "zip": lambda path, body: forge.torch_zip(path, body),
    "legacy": lambda path, body: forge.torch_legacy(path, body),
    "pkl": lambda path, body: path.write_bytes(forge.pickled(body)) and path,
}


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


def stolen(function, *arguments):
    """The opcodes of a pickled call, without header and stop."""
    return pickle.dumps(Call(function, *arguments), 2)[2:-1]


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code in the checkpoint was executed"


def attacks(canary):
    command = f"touch {canary}"
    name = forge.text(command)
    inner = pickle.dumps(Call(os.system, command), 2)
    namespace = b"cargparse\nNamespace\n)\x81"
    return {
        "os.system": (stolen(os.system, command), r"names posix\.system"),
        "eval": (stolen(eval, f"open({str(canary)!r}, 'w')"), r"names __builtin__\.eval"),
        "exec": (stolen(exec, f"open({str(canary)!r}, 'w')"), r"names __builtin__\.exec"),
        "open": (stolen(open, str(canary), "w"), r"names _?io\.open"),
        "getattr chain": (b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n" + forge.text("os") + b"\x85R"
                          + forge.text("system") + b"tR" + name + b"\x85R", r"names builtins\.getattr"),
        "attrgetter": (b"coperator\nattrgetter\n" + forge.text("system") + b"\x85R", r"names operator\.attrgetter"),
        "copyreg": (b"ccopyreg\n_reconstructor\n", r"names copyreg\._reconstructor"),
        "nested pickle": (b"c_pickle\nloads\n" + b"B" + struct.pack("<I", len(inner)) + inner + b"\x85R",
                          r"names _pickle\.loads"),
        "torch.load": (b"ctorch.storage\n_load_from_bytes\n", r"names torch\.storage\._load_from_bytes"),
        "torch.hub": (b"ctorch.hub\nload\n", r"names torch\.hub\.load"),
        "numpy.load": (b"cnumpy\nload\n", r"names numpy\.load"),
        "subclass path": (b"\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93", r"names collections\.OrderedDict\._"),
        "dotted torch": (b"\x8c\x05torch\x8c\x0bserialization.load\x93".replace(b"\x0b", b"\x12"), "names torch"),
        "INST": (b"(" + name + b"ios\nsystem\n", "opcode INST"),
        "OBJ": (b"(cos\nsystem\n" + name + b"o", "names os.system"),
        "OBJ allowed": (b"(cargparse\nNamespace\no", "opcode OBJ"),
        "EXT1": (b"\x82\x01", "opcode EXT1"),
        "EXT4": (b"\x84\x01\0\0\0", "opcode EXT4"),
        "NEWOBJ": (b"csubprocess\nPopen\n" + name + b"\x85\x81", r"names subprocess\.Popen"),
        "NEWOBJ_EX": (namespace + b")}\x92", "opcode NEWOBJ_EX"),
        "NEWOBJ of a function": (b"c_codecs\nencode\n" + forge.text("x") + forge.text("latin1") + b"\x86\x81",
                                 "cannot be called"),
        "PERSID": (b"Pstorage\n", "opcode PERSID"),
        "call a value": (forge.text("x") + b")R", "calls a value of type str"),
        "call a storage type": (b"cnumpy\nndarray\n)R", "calls numpy.ndarray"),
        "BUILD on a dict": (b"}}b", "sets the state of a value of type dict"),
        "BUILD on a symbol": (b"cargparse\nNamespace\n" + forge.mapping({"__setstate__": b"N"}) + b"b",
                              "sets the state of argparse.Namespace"),
        "BUILD with slots": (namespace + b"N" + forge.mapping({"__class__": b"N"}) + b"\x86b", "not a dict of names"),
    }


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", attacks(""))
def test_code_is_never_executed(tmp_path, canary, container, name):
    body, reason = attacks(canary)[name]
    error = refused(CONTAINERS[container](tmp_path / "evil.pth", body), reason)
    assert len(str(error)) < 600


@pytest.mark.parametrize("container", CONTAINERS)
def test_namespace_attributes_are_only_data(tmp_path, container):
    body = b"}" + forge.text("args") + b"cargparse\nNamespace\n)\x81" + forge.mapping(
        {"__setstate__": forge.text("x"), "__class__": forge.text("y"), "__reduce__": b"N"}) + b"bs"
    refused(CONTAINERS[container](tmp_path / "x", body), "holds no tensors")


def test_nested_pickles_are_never_opened(tmp_path, canary):
    """Code in bytes, in another record and behind the end stays what it is: bytes."""
    inner = pickle.dumps(Call(os.system, f"touch {canary}"), 2)
    body = forge.mapping({"w": forge.tensor("0", "FloatStorage", 1, 0, (1,), (1,)),
                          "extra": b"B" + struct.pack("<I", len(inner)) + inner})
    path = forge.torch_zip(tmp_path / "x", body, {"0": b"\0\0\x80?"}, **{"code.pkl": inner, "data/evil.pkl": inner})
    assert read(path).tensors["w"] == 1
    trailing = tmp_path / "trailing"
    trailing.write_bytes(forge.pickled(b"}") + inner)
    refused(trailing, "bytes after the end of the pickle")


@pytest.mark.parametrize("change, reason", [
    (dict(raw_size=forge.sequence([-1])), "non-negative"),
    (dict(raw_size=b"(\x88t"), "non-negative whole numbers"),
    (dict(raw_size=b"(" + b"G" + struct.pack(">d", 1.0) + b"t"), "non-negative whole numbers"),
    (dict(raw_size=forge.text("1")), "not a tuple"),
    (dict(size=(2 ** 40, 2 ** 40), stride=(0, 0)), "larger than any memory"),
    (dict(size=(2 ** 62,) * 9, stride=(0,) * 9), "larger than any memory"),
    (dict(size=(1,) * 33, stride=(1,) * 33), "33 dimensions"),
    (dict(size=(0, 2 ** 61), stride=(1, 1)), "larger than any memory"),
    (dict(size=(13,)), "beyond its storage"),
    (dict(size=(12,), offset=1), "beyond its storage"),
    (dict(size=(2,), stride=(12,)), "beyond its storage"),
    (dict(size=(3,), stride=(2 ** 62,)), "beyond its storage"),
    (dict(size=(0,), offset=13), "beyond its storage"),
    (dict(stride=(-1,)), "strides"),
    (dict(stride=(1, 1)), "do not match its shape"),
    (dict(raw_stride=b"(\x88t"), "strides"),
    (dict(offset=-1), "offset"),
    (dict(raw_offset=b"\x88"), "offset"),
    (dict(raw_offset=b"N"), "offset"),
    (dict(size=(2 ** 35,), stride=(0,)), "decompression bomb"),
    (dict(count=11), "should have 44 bytes and has 48|another length|ends beyond|bytes after"),
    (dict(count=2 ** 60), "should have|ends beyond"),
    (dict(count=-1), "odd key, location or length"),
    (dict(key="9"), "is missing|belongs to no tensor"),
    (dict(key="../0"), "is missing|belongs to no tensor"),
    (dict(kind="ComplexFloatStorage"), "names torch.ComplexFloatStorage"),
], ids=lambda value: ",".join(map(str, value)) if isinstance(value, dict) else "")
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_tensors_that_lie(tmp_path, container, change, reason):
    what = dict(key="0", kind="FloatStorage", count=12, offset=0, size=(2,), stride=(1,))
    what.update(change)
    body, raw = forge.mapping({"w": forge.tensor(**what)}), bytes(48)
    path = tmp_path / "x"
    refused(forge.torch_zip(path, body, {"0": raw}) if container == "zip" else
            forge.torch_legacy(path, body, {"0": (12, raw)}), reason)


@pytest.mark.parametrize("reference", [
    b"N", b")", forge.text("storage"), b"(" + forge.text("storage") + b"t",
    b"(" + forge.text("module") + b"ctorch\nFloatStorage\n" + forge.text("0") + forge.text("cpu") + b"K\x01t",
    b"(" + forge.text("storage") + b"ctorch\nSize\n" + forge.text("0") + forge.text("cpu") + b"K\x01t",
    b"(" + forge.text("storage") + b"ctorch\nFloatStorage\n" + b"K\x00" + forge.text("cpu") + b"K\x01t",
    b"(" + forge.text("storage") + b"ctorch\nFloatStorage\n" + forge.text("0") + forge.text("cpu") + b"\x88t",
])
def test_odd_persistent_ids(tmp_path, reference):
    refused(forge.torch_zip(tmp_path / "x", reference + b"Q"), "storage")


def test_many_views_of_one_storage_do_not_multiply_it(tmp_path):
    raw = bytes(4 << 20)
    view = forge.tensor("0", "FloatStorage", 1 << 20, 0, (1024, 1024), (1, 1024))
    body = b"}(" + b"".join(forge.text(str(i)) + view for i in range(64)) + b"u"
    refused(forge.torch_zip(tmp_path / "x", body, {"0": raw}), "decompression bomb")


def nested(opening, closing, depth):
    return opening * depth + closing * depth


@pytest.mark.parametrize("container", ["zip", "pkl"])
@pytest.mark.parametrize("body, reason", [
    (nested(b"(", b"t", 100_000), "not a state dict"),
    (b")" + b"\x85" * 100_000, "not a state dict"),
    (forge.mapping({"a": b")" + b"\x85" * 100_000}), "holds no tensors"),
    (forge.mapping({"a": b"}" + (b"X\0\0\0\0" + b"}") * 50_000 + b"s" * 50_000}), "holds no tensors"),
    (b"ccollections\nOrderedDict\nq\0)R" + b"Nh\0)R" * 20_000 + b"s" * 20_000, "holds no tensors"),
    (b"cargparse\nNamespace\nq\0)\x81" + b"}X\1\0\0\0ah\0)\x81" * 20_000 + b"sb" * 20_000, "holds no tensors"),
    (b"]q\0h\0a", "not a state dict"),
    (b"}q\0" + forge.text("me") + b"h\0s", "holds no tensors"),
    (b"}" * 600_000, "over 500,000 opcodes"),
    (b"X\xff\xff\xff\xff", "cut off"),
    (b"\x8d" + b"\xff" * 8, "cut off"),
    (b"\x8e" + b"\x00" * 4 + b"\x01\0\0\0", "cut off"),
    (b"\x96" + b"\xff" * 8, "BYTEARRAY8"),
    (b"\x95" + b"\xff" * 7 + b"\x7f", "cut off"),
    (b"\x8b\xff\xff\xff\x7f", "whole number of"),
    (b"\x8b\xff\xff\xff\xff", "whole number of"),
    (b"\x8a\xff" + b"\1" * 255, "whole number of"),
    (b"}" + b"\x8a\x10" + b"\1" * 16 + b"Ns", "dict key"),
    (b"})Ns", "dict key of type tuple"),
    (b"}G\x7f\xf8\0\0\0\0\0\0Ns", "dict key of type float"),
    (b"Nr\xff\xff\xff\xff0", "opcode POP"),
    (b"}r\xff\xff\xff\xff", "holds no tensors"),
    (b"N2", "opcode DUP"),
    (b"I" + b"9" * 100_000 + b"\n", "opcode INT"),
    (b"L" + b"9" * 100_000 + b"L\n", "opcode LONG"),
    (b"h\7", "refers to a value that it did not make"),
    (b"a", "more values than it made"),
    (b"t", "did not open"),
    (b"K\1(K\2", "more or less than one value"),
    (b"(}(a", "takes more values than it made"),
], ids=lambda value: shown(value, 24))
def test_pickles_that_would_exhaust_or_crash(tmp_path, container, body, reason):
    refused(CONTAINERS[container](tmp_path / "x", body), reason)


def test_billion_laughs(tmp_path):
    """Doubling 60 times by reference costs 60 steps, as long as nobody expands it."""
    body = b"]q\x00" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60))
    body = forge.mapping({"lol": b"(" + body + b"t", "w": forge.tensor("0", "FloatStorage", 1, 0, (1,), (1,))})
    checkpoint = read(forge.torch_zip(tmp_path / "x", body, {"0": b"\0\0\x80?"}))
    assert checkpoint.tensors["w"] == 1 and len(repr(checkpoint.meta)) < 1 << 20


def test_one_huge_dict_under_many_keys(tmp_path):
    inner = b"}q\0(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(60_000)) + b"u"
    body = b"}(" + forge.text("a") + inner + b"".join(b"J" + struct.pack("<i", i) + b"h\0"
                                                      for i in range(60_000)) + b"u"
    refused(forge.torch_zip(tmp_path / "x", body), "holds no tensors")


@pytest.mark.parametrize("call", [b"cargparse\nNamespace\n)\x81h\0b", b"ccollections\nOrderedDict\nh\1\x85R",
                                  b"ccollections\nOrderedDict\n)Rh\0b"])
def test_copies_of_one_large_value_are_bounded(tmp_path, call):
    """A call costs one opcode, but may copy a large argument that was made once."""
    table = b"}q\0(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(20_000)) + b"u"
    pairs = b"]q\1(" + b"".join(b"K\1N\x86" for i in range(20_000)) + b"e"
    path = forge.torch_zip(tmp_path / "x", b"(" + table + pairs + call * 10_000 + b"t")
    refused(path, "blows its own data up" if b"h\1" in call or b"\x81" in call else "not a state dict")


def test_produced_bytes_are_bounded(tmp_path):
    big = b"c_codecs\nencode\nq\0" + forge.text("x" * 100_000) + forge.text("latin1") + b"\x86q\1R"
    body = b"](" + big + b"h\0h\1R" * 50_000 + b"e"
    refused(forge.torch_zip(tmp_path / "x", body), "blows its own data up")


def numpy_array(state, dtype=b"\x8c\x02f4\x89\x88\x87R"):
    return (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R(K\1" + state[0]
            + b"cnumpy\ndtype\n" + dtype + b"\x89" + state[1] + b"tb")


@pytest.mark.parametrize("array, reason", [
    (numpy_array((b"K\2\x85", b"](K\1K\2e")), "array of objects"),
    (numpy_array((b"K\2\x85", b"C\10" + bytes(8)), b"\x8c\x02O8\x89\x88\x87R"), "only plain numbers"),
    (numpy_array((b"K\2\x85", b"C\10" + bytes(8)), b"\x8c\x02c8\x89\x88\x87R"), "only plain numbers"),
    (numpy_array((b"K\2\x85", b"C\10" + bytes(8)), b"\x8c\x03V80\x89\x88\x87R"), "only plain numbers"),
    (numpy_array((b"K\3\x85", b"C\10" + bytes(8))), "8 bytes of data"),
    (numpy_array((b"J\xff\xff\xff\xff\x85", b"C\0")), "non-negative"),
    (numpy_array((forge.whole(2 ** 61) + b"\x85", b"C\10" + bytes(8))), "larger than any memory"),
    (numpy_array((b"K\2\x85", b"C\10" + bytes(8)),
                 b"\x8c\x02f4\x89\x88\x87R(K\3\x8c\1<]NNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"), "plain number type"),
    (b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n\x8c\x02f8\x89\x88\x87RC\4abcd\x86R", "another size"),
    (b"cnumpy.core.multiarray\n_reconstruct\ncargparse\nNamespace\nK\0\x85C\1b\x87R", "else than an ndarray"),
])
def test_numpy_in_pickles(tmp_path, array, reason):
    path = tmp_path / "x.pkl"
    path.write_bytes(forge.pickled(forge.mapping({"w": array})))
    refused(path, reason)


def test_arrays_that_share_their_bytes_do_not_multiply_them(tmp_path):
    path = tmp_path / "x.pkl"
    raw = b"B" + struct.pack("<I", 4 << 20) + bytes(4 << 20)
    first = numpy_array((forge.whole(1 << 20) + b"\x85", raw + b"q\5"))
    again = numpy_array((forge.whole(1 << 20) + b"\x85", b"h\5"))
    path.write_bytes(forge.pickled(b"}(" + forge.text("0") + first + b"".join(
        forge.text(str(i)) + again for i in range(1, 60)) + b"u"))
    refused(path, "decompression bomb")


def test_names_from_files_are_printed_harmlessly(tmp_path):
    body = b"c" + b"\x1b[2Jevil" + b"\n" + b"n" * 200 + b"\n"
    error = refused(forge.torch_zip(tmp_path / "x", body), r"\\x1b\[2Jevil")
    assert "\x1b" not in str(error) and "n" * 100 not in str(error)


def test_protocol_numbers(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\x80\x09}.")
    refused(path, "pickle protocol 9")
    buffer = io.BytesIO()
    pickle.Pickler(buffer, 5).dump({"a": np.float32(1)})
    path.write_bytes(buffer.getvalue())
    refused(path, "holds no tensors")
