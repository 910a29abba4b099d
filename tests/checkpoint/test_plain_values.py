"""What stands beside the weights in files of others: plain values, tensors that are left out, and what is refused."""
import importlib.util
import pickle
import struct
import subprocess
import sys
import zipfile

import checkpoint_forge as forge
import numpy as np
import pytest

from jea.checkpoint import CheckpointError, outline, read
from jea.commands import inspect

ONE = forge.tensor("0", "FloatStorage", 1, 0, (1,), (1,))
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


def zipped(path, **entries):
    body = forge.mapping({"net": forge.mapping({"w": ONE}), **entries})
    return forge.torch_zip(path, body, {"0": b"\0\0\x80?"})


VALUES = {
    "Counter": (b"ccollections\nCounter\n}(K\x1eK\x01K\x3cK\x02u\x85R", {30: 1, 60: 2}),
    "empty Counter": (b"ccollections\nCounter\n)R", {}),
    "set": (b"c__builtin__\nset\n](K\x01K\x02e\x85R", [1, 2]),
    "set of Python 3": (b"cbuiltins\nset\n](K\x01K\x02e\x85R", [1, 2]),
    "set by its opcodes": (b"\x8f(K\x01K\x02\x90", [1, 2]),
    "complex": (b"c__builtin__\ncomplex\nG?\xf0\0\0\0\0\0\0G@\0\0\0\0\0\0\0\x86R", 1 + 2j),
    "bytearray": (b"c__builtin__\nbytearray\nc_codecs\nencode\nX\2\0\0\0abX\6\0\0\0latin1\x86R\x85R", "2 bytes"),
    "empty bytearray": (b"cbuiltins\nbytearray\n)R", "0 bytes"),
    "tuples as keys": (b"}(K\x01K\x02\x86X\1\0\0\0aX\1\0\0\0nG?\xe0\0\0\0\0\0\0\x86N\x86K\x05u",
                       {(1, 2): "a", (("n", 0.5), None): 5}),
    "fractions as keys": (b"}G?\xe0\0\0\0\0\0\0K\x05s", {0.5: 5}),
    "torch.Size": (b"ctorch\nSize\n(K\x01K\x02K\x03t\x85R", [1, 2, 3]),
    "torch.Size as key": (b"}ctorch\nSize\n(K\x01K\x02t\x85RK\x05s", {(1, 2): 5}),
    "torch.Size of a scalar": (b"ctorch\nSize\n)\x85R", []),
    "dtypes": (b"](ctorch\nfloat32\nctorch\nfloat8_e4m3fn\nctorch\ncomplex64\ne",
               ["torch.float32", "torch.float8_e4m3fn", "torch.complex64"]),
}


@pytest.mark.parametrize("name", VALUES)
def test_plain_values(tmp_path, capsys, name):
    body, expected = VALUES[name]
    path = zipped(tmp_path / "x.pth", extra=body)
    checkpoint = read(path)
    assert checkpoint.tensors["w"] == 1 and checkpoint.meta == {"extra": expected}
    assert inspect.main([str(path)]) == inspect.main([str(path), "--json"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("body, reason", [
    (b"c__builtin__\nset\nK\x01\x85R", "something else than a list"), (b"\x8f\x90", "not a set"),
    (b"](K\x01\x90", "not a set"), (b"\x8fK\x01a", "not a list"),
    (b"ccollections\nCounter\n](K\x01e\x85R", "something else than a dict of counts"),
    (b"cbuiltins\ncomplex\nX\1\0\0\0aK\x01\x86R", "two numbers"),
    (b"cbuiltins\nbytearray\nJ\0\0\0\x7f\x85R", "than bytes"),
    (b"cbuiltins\nfrozenset\n)R", "names builtins.frozenset"), (b"(K\x01\x91", "opcode FROZENSET"),
    (b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R", "names collections.defaultdict"),
    (b"cbuiltins\nset\n)\x81", "cannot be called"), (b"ccollections\nCounter\n)\x81", "cannot be called"),
    (b"}]K\x01s", "dict key of type list"), (b"}\x8fK\x01s", "dict key of type SetStandIn"),
    (b"}" + b"K\x01" + b"\x85" * 5 + b"K\x01s", "dict key of type tuple"),
    (b"}(" + b"K\x01" * 65 + b"tK\x01s", "dict key of type tuple"), (b"}]\x85K\x01s", "dict key of type tuple"),
    (b"}" + b"(K\x01q\x07" + b"h\x07h\x07\x86q\x07" * 40 + b"tK\x01s", "dict key of type tuple"),
])
def test_the_list_is_exact(tmp_path, body, reason):
    with pytest.raises(CheckpointError, match=reason):
        read(zipped(tmp_path / "x.pth", extra=body))


def test_tuples_that_collide_are_no_trouble(tmp_path):
    """They are never hashed while the pickle is read, and at most 1,000 of them after it."""
    pairs = b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"K\x01\x86N" for i in range(5_000)) + b"u"
    meta = read(zipped(tmp_path / "x.pth", extra=pairs)).meta["extra"]
    assert len(meta) == 5_000 and (7, 1) in meta and "(4999, 1)" in meta


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("kind, dtype, size", [("ComplexFloatStorage", "complex64", 8),
                                               ("ComplexDoubleStorage", "complex128", 16)])
def test_tensors_of_types_that_are_not_read(tmp_path, container, kind, dtype, size):
    other = forge.tensor("1", kind, 3, 0, (3,), (1,))
    body = forge.mapping({"net": forge.mapping({"w": ONE}), "spectrum": other, "state": forge.mapping({"x": other})})
    weights = forge.mapping({"net": forge.mapping({"w": ONE, "spectrum": other})})
    storages = {"0": b"\0\0\x80?", "1": bytes(3 * size)}
    if container == "legacy":
        storages = {"0": (1, storages["0"]), "1": (3, storages["1"])}
    make = forge.torch_zip if container == "zip" else forge.torch_legacy
    checkpoint = read(make(tmp_path / "x.pth", body, storages))
    assert checkpoint.wrapper == "net" and checkpoint.tensors["w"] == 1
    assert f"tensors not read: those in spectrum ({dtype}), state ({dtype})" in checkpoint.notes
    path = make(tmp_path / "y.pth", weights, storages)
    for reader in (read, outline):
        with pytest.raises(CheckpointError,
                           match="1 of its 2 weights are of types that are not read, such as 'spectrum' "
                                                  f"of type {dtype} .it names torch.{kind}."):
            reader(path)


def test_shapes_of_tensors_that_are_not_read_are_checked_too(tmp_path):
    for other, reason in ((forge.tensor("1", "ComplexFloatStorage", 3, 0, (4,), (1,)), "beyond its storage"),
                          (forge.tensor("1", "ComplexFloatStorage", 3, 0, (2 ** 62,) * 2, (0, 0)),
                           "larger than any memory")):
        with pytest.raises(CheckpointError, match=reason):
            read(forge.torch_zip(tmp_path / "x.pth", forge.mapping({"net": forge.mapping({"w": ONE}), "x": other}),
                                 {"0": b"\0\0\x80?", "1": bytes(24)}))


MAKE = r"""
import collections, sys, torch
weights = collections.OrderedDict(w=torch.tensor([1.0]))
net = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60])
values = {"scheduler": scheduler.state_dict(), "set": {1, 2}, "complex": 1 + 2j, "bytearray": bytearray(b"abc"),
          "tuples": {(1, 2): 3, ("a", (0.5, None)): "b"}, "size": torch.Size([1, 2]), "sizes": {torch.Size([3]): 1},
          "complex64": torch.zeros(2, dtype=torch.complex64), "complex32": torch.zeros(2, dtype=torch.complex32),
          "losses": [0.25] * 600_000, "ints": list(range(600_000)), "counts": collections.Counter("abca"),
          **{kind: torch.zeros(3, dtype=getattr(torch, kind)) for kind in
             ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "uint16",
             "uint32")}}
for name, value in values.items():
    torch.save({"net": weights, name: value}, f"{sys.argv[1]}/{name}.pth")
    torch.load(f"{sys.argv[1]}/{name}.pth", weights_only=True)
torch.save({"net": weights, **values}, f"{sys.argv[1]}/all.pth", _use_new_zipfile_serialization=False)
print(*values)
"""


@needs_torch
def test_what_torch_reads_with_weights_only(tmp_path):
    """PyTorch writes each kind of value, reads it back with weights_only=True, and so do we."""
    done = subprocess.run([sys.executable, "-c", MAKE, tmp_path], capture_output=True, text=True, env=forge.ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    assert len(names) == 19
    for name in [*names, "all"]:
        checkpoint = read(tmp_path / f"{name}.pth")
        assert checkpoint.wrapper == "net" and checkpoint.tensors["w"] == 1, name
    meta = read(tmp_path / "all.pth").meta
    assert meta["scheduler"]["milestones"] == {30: 1, 60: 1} and meta["complex"] == 1 + 2j and meta["size"] == [1, 2]
    assert meta["set"] == [1, 2] and meta["bytearray"] == "3 bytes" and meta["counts"] == {"a": 2, "b": 1, "c": 1}
    assert meta["tuples"] == {(1, 2): 3, ("a", (0.5, None)): "b"} and meta["sizes"] == {(3,): 1}
    assert meta["losses"][:3] == [0.25] * 3 and meta["losses"][-1] == "..." and len(meta["losses"]) > 10_000
    note = next(note for note in read(tmp_path / "all.pth").notes if note.startswith("tensors not read"))
    for kind in ("complex64", "complex32", "float8_e4m3fn", "float8_e5m2"):
        assert f"{kind} ({kind})" in note


# -- mmengine's training files (mmdetection 3.x)

BUFFER = b"cmmengine.logging.history_buffer\nHistoryBuffer\n"


def history_buffer(methods=b"c__builtin__\ngetattr\n" + BUFFER + b"X\4\0\0\0mean\x86R"):
    array = pickle.dumps(np.arange(3.0), 2)[2:-1].replace(b"q\x01", b"").replace(b"q\x02", b"")
    return BUFFER + b")\x81" + forge.mapping({"_max_length": forge.whole(1_000_000), "_log_history": array,
                                             "statistics_methods": forge.mapping({"mean": methods})}) + b"b"


def plain_buffer(methods):
    return BUFFER + b")\x81" + forge.mapping({"statistics_methods": forge.mapping({"mean": methods})}) + b"b"


GETATTR = b"c__builtin__\ngetattr\n"


def test_mmengines_history_buffers_are_inert(tmp_path):
    hub = forge.mapping({"log_scalars": forge.mapping({"train/loss": history_buffer()}),
                         "runtime_info": forge.mapping({})})
    checkpoint = read(zipped(tmp_path / "x.pth", message_hub=hub, meta=forge.mapping({"epoch": b"K\x0c"})))
    assert checkpoint.tensors["w"] == 1 and checkpoint.meta == {"meta": {"epoch": 12}}
    assert checkpoint.notes == ["tensors not read: those in message_hub"]
    named = read(zipped(tmp_path / "y.pth", hub=plain_buffer(GETATTR + BUFFER + b"X\4\0\0\0mean\x86R"))).meta["hub"]
    assert named == {"statistics_methods": {"mean": "mmengine.logging.history_buffer.HistoryBuffer.mean"}}


@pytest.mark.parametrize("body, reason", [
    (GETATTR + BUFFER + b"X\4\0\0\0mean\x86R)R", "calls mmengine.logging.history_buffer.HistoryBuffer.mean"),
    (GETATTR + b"ccollections\nOrderedDict\nX\6\0\0\0__init\x86R", "getattr is used for something else"),
    (GETATTR + BUFFER + b")\x81X\4\0\0\0mean\x86R", "getattr is used for something else"),
    (GETATTR + b"X\1\0\0\0aX\4\0\0\0join\x86R", "getattr is used for something else"),
    (GETATTR + BUFFER + b"K\x01\x86R", "getattr is used for something else"),
    (GETATTR + GETATTR + BUFFER + b"X\4\0\0\0mean\x86RX\x0b\0\0\0__globals__\x86R",
     "getattr is used for something else"),
    (GETATTR + BUFFER + b"X\4\0\0\0mean\x86R}b", "sets the state of"),
    (GETATTR + BUFFER + b"X\1\0\0\0aX\1\0\0\0b\x87R", "wrong arguments"),
    (GETATTR + b"c__builtin__\n__import__\nX\1\0\0\0a\x86R", "names __builtin__.__import__"),
    (b"cbuiltins\ngetattr\n" + BUFFER + b"X\4\0\0\0mean\x86R", "names builtins.getattr"),
    (b"\x8c\x1fmmengine.logging.history_buffer\x8c\x12HistoryBuffer.mean\x93", "names mmengine"),
    (b"cmmengine.logging\nHistoryBuffer\n", "names mmengine.logging.HistoryBuffer"),
    (b"cmmengine.logging.history_buffer\nMessageHub\n", "names mmengine"),
    (BUFFER + b")\x81(K\x01tb", "state that is not a dict"), (BUFFER + b"(K\x01t\x81", "wrong arguments"),
    (BUFFER + b")R}b}b" + b"0", "opcode POP"),
])
def test_nothing_more_of_mmengine_is_allowed(tmp_path, body, reason):
    with pytest.raises(CheckpointError, match=reason):
        read(zipped(tmp_path / "x.pth", extra=body))


def test_history_buffers_in_no_other_pickle(tmp_path):
    """CIFAR's batches and the small pickles of an old torch file have no use for them."""
    from jea.checkpoint.readers.pickle_machine import Machine
    from jea.checkpoint.readers.pickle_symbols import COMMON
    assert ("__builtin__", "getattr") not in COMMON
    with pytest.raises(Exception, match="names mmengine"):
        Machine(b"\x80\x02" + BUFFER + b".").run()


def test_a_pickle_in_a_compressed_archive_is_limited_by_the_file(tmp_path):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", forge.pickled(forge.mapping({"net": forge.mapping({"w": ONE}),
                                                                          "list": b"](" + b"K\x05" * 100_000 + b"e"})))
        archive.writestr("archive/data/0", b"\0\0\x80?")
    assert read(path).tensors["w"] == 1
