"""Reading takes time that is linear in a file's size and a small multiple of it in memory, also for what is shown."""
import json
import os
import struct

import checkpoint_forge as forge
import numpy as np
import pytest
from checkpoint_limits import grows_linearly, peak_of, refused

from jea.checkpoint import CheckpointError, load_npz, read, save_npz
from jea.checkpoint.errors import Malformed
from jea.checkpoint.readers.json_text import parse_json
from jea.checkpoint.readers.pickle_machine import Machine
from jea.commands import inspect

ONE = forge.tensor("0", "FloatStorage", 1, 0, (1,), (1,))
EMOJI = forge.text("\U0001f600" * 10_001) + b"q\x05"  # 40 kB, remembered under 5
NUMBERS = b"]q\x05(" + b"K\x01" * 5_000 + b"e"
MANY = 60_000


def zipped(path, body, **entries):
    entries = {"w": ONE, "args": body, **entries}
    return forge.torch_zip(path, b"}(" + b"".join(forge.text(key) + value for key, value in entries.items()) + b"u",
                           {"0": b"\0\0\x80?"})


SHARED = {
    "one text in a list": b"](" + EMOJI + b"h\x05" * MANY + b"e",
    "one text in many dicts": b"](" + EMOJI + b"}K\x01h\x05s" * (MANY // 4) + b"e",
    "one text as key of many dicts": b"](" + EMOJI + b"}h\x05K\x01s" * (MANY // 4) + b"e",
    "one text under many keys": b"}(K\x00" + EMOJI + b"".join(b"J" + struct.pack("<i", i) + b"h\x05"
                                                              for i in range(1, MANY // 4)) + b"u",
    "one list in a list": b"](" + NUMBERS + b"h\x05" * MANY + b"e",
    "one tuple of texts": b"](" + EMOJI + b"h\x05\x85q\x06" + b"h\x06" * MANY + b"e",
}


@pytest.mark.parametrize("name", SHARED)
def test_what_is_shared_is_not_multiplied(tmp_path, capsys, name):
    path = zipped(tmp_path / "x.pth", SHARED[name])
    size = os.path.getsize(path)
    assert size < 2 << 20
    checkpoint, peak = peak_of(lambda: read(path))
    assert checkpoint.tensors["w"] == 1 and peak < 64 << 20
    assert len(repr(checkpoint.meta)) < 3 << 20
    for arguments in ([], ["--json"]):
        status, peak = peak_of(lambda more=arguments: inspect.main([str(path), *more]))
        printed = capsys.readouterr().out
        assert status == 0 and peak < 96 << 20 and len(printed) < 14 << 20  # JSON writes an emoji in 12 letters
    assert json.loads(printed)["state"][0]["key"] == "w"


def test_many_entries_that_share_a_text(tmp_path, capsys):
    path = zipped(tmp_path / "x.pth", EMOJI, **{f"k{i}": b"h\x05" for i in range(20_000)})
    checkpoint, peak = peak_of(lambda: read(path))
    assert peak < 64 << 20 and len(repr(checkpoint.meta)) < 1 << 20
    assert checkpoint.meta["k0"] == "(the same as before, in args)"


def test_small_values_are_repeated_and_large_ones_are_named(tmp_path):
    small = b"G?\xb9\x99\x99\x99\x99\x99\x9aG?\xef\xf7\xce\xd9\x16\x87+\x86q\x07"
    body = forge.mapping({"a": small, "b": b"h\x07", "c": NUMBERS, "d": b"h\x05", "e": b"]q\x08h\x08a"})
    meta = read(zipped(tmp_path / "x.pth", body)).meta["args"]
    assert meta["a"] == meta["b"] == [0.1, 0.999]
    assert meta["c"] == [1] * 5_000 and meta["d"] == "(the same as before, in args)"
    assert meta["e"] == ["(a value that holds itself)"]


def test_a_long_name_that_others_share_memory_with(tmp_path, capsys):
    name = forge.text("\U0001f600" * 10_001)
    tensors = b"(" + name + ONE + b"q\x05" + b"".join(forge.text(str(i)) + b"h\x05" for i in range(20_000)) + b"u"
    path = forge.torch_zip(tmp_path / "x.pth", b"}" + tensors, {"0": b"\0\0\x80?"})
    for arguments in ([], ["--json"]):
        status, peak = peak_of(lambda more=arguments: inspect.main([str(path), *more]))
        assert status == 0 and peak < 64 << 20 and len(capsys.readouterr().out) < 8 << 20


@pytest.mark.parametrize("numbers", [b"G?\xf0\0\0\0\0\0\0", b"J\xff\xff\xff\x7f", b"M\xff\xff", b"K\x05"],
                         ids=["floats", "ints", "ints of 2 bytes", "small ints"])
def test_lists_of_600_000_numbers_are_read(tmp_path, numbers):
    path = zipped(tmp_path / "x.pth", b"](" + numbers * 600_000 + b"e")
    checkpoint, peak = peak_of(lambda: read(path))
    assert checkpoint.tensors["w"] == 1 and len(checkpoint.meta["args"]) > 10_000
    assert peak < (48 << 20) + 8 * os.path.getsize(path)


@pytest.mark.parametrize("body", [b"\x8c\x02ab", b"\x8c\x04\xf0\x9f\x98\x80", b"N\x94", b")\x85", b"NN\x86", b"\x8f",
                                  b"}", b"]", b"K\x05", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"G?\xf0\0\0\0\0\0\0",
                                  b"C\x02ab", b"}K\x05Ns", b"]Na", b"](NNNNNNNNe", b"ccollections\nOrderedDict\n)R",
                                  b"(KKt", b"cargparse\nNamespace\n)\x81", b"X\1\0\0\0aK\1\x86"], ids=repr)
def test_each_opcode_is_charged_the_memory_that_it_takes(body):
    """So that the bound, 16 times the bytes of the pickle and 32 MB, is one of real memory; lists grow in steps."""
    machine = Machine(b"\x80\x04](" + body * 30_000 + b"e.")
    allowed = machine.memory
    value, peak = peak_of(machine.run)
    assert value and peak < 1.35 * (allowed - machine.memory) + (1 << 20)


def test_memory_with_gaps_in_the_memo():
    machine = Machine(b"\x80\x04](" + b"".join(b"Nr" + struct.pack("<I", 2 ** 31 + i) for i in range(30_000)) + b"e.")
    allowed = machine.memory
    assert peak_of(machine.run)[1] < 1.35 * (allowed - machine.memory) + (1 << 20)


@pytest.mark.parametrize("body", [b"\x8c\x02ab", b")\x85", b"N\x94"], ids=["texts", "tuples", "memo"])
def test_what_would_take_more_is_refused(body):
    machine = Machine(b"\x80\x04](" + body * 30_000 + b"e.")
    machine.memory = 100_000
    with pytest.raises(Malformed, match="far more of its bytes"):
        machine.run()


def test_a_compressed_pickle_is_charged_by_the_size_of_its_file(tmp_path):
    import zipfile
    path = tmp_path / "x"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", forge.pickled(b"](" + b"\x8c\x02ab" * 1_000_000 + b"e"))
    assert os.path.getsize(path) < 100_000
    refused(path, "far more of its bytes")


# -- JSON

TEXTS = {"a string without an end": lambda n: '{"a":"' + '\\"' * n, "closed strings": lambda n: "[" + '"\\"",' * n,
         "quotes": lambda n: '"' * n, "backslashes": lambda n: '"' + "\\" * n, "digits": lambda n: "1" * n,
         "a fraction": lambda n: "0." + "1" * n, "lists": lambda n: "[" + "[]," * n, "spaces": lambda n: " " * n,
         "open lists": lambda n: "[" * n, "keys": lambda n: "{" + ",".join(f'"{i}":0' for i in range(n)) + "}"}


@pytest.mark.parametrize("name", TEXTS)
def test_json_takes_linear_time(name):
    def work(n):
        try:
            parse_json(TEXTS[name](n))
        except Malformed:
            pass

    assert grows_linearly(work, 20_000, 160_000)


@pytest.mark.parametrize("text", ['{"a": "\\\\"}', '{"a": "\\\\\\""}', '{"a\\"": ["[", "]", "{\\\\"]}', '"\\u005b"',
                                  "[[], {}]", '{"a": 1e5, "b": -0.5, "c": [true, null]}'])
def test_json_is_read_as_its_library_reads_it(text):
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize("text", ['{"a": "\\', '"abc', '["\\"]', "[" * 101 + "]" * 101, '{"a": 1, "a": 2}',
                                  "[1" + "0" * 30 + "]"])
def test_json_that_is_refused(text):
    with pytest.raises(Malformed):
        parse_json(text)


def test_json_in_both_formats_that_hold_it(tmp_path):
    meta = ('{"a":"' + '\\"' * 160_000).encode()
    np.savez(tmp_path / "x.npz", w=np.zeros(1), __meta__=np.frombuffer(meta, np.uint8))
    refused(tmp_path / "x.npz", "JSON header cannot be read")
    with pytest.raises(CheckpointError, match="JSON header cannot be read"):
        load_npz(tmp_path / "x.npz")
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(meta)) + meta)
    refused(tmp_path / "x.safetensors", "JSON header cannot be read")


# -- sparse and special files

ZIP64 = (struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 50_000, 50_000, (8 << 30) - 4, 4)
         + struct.pack("<4sIQI", b"PK\x06\x07", 0, 8 << 30, 1)
         + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
HUGE = {
    "pickle": (b"\x80\x02", b""), "old torch file": (forge.MAGIC + forge.PROTOCOL + forge.SYSTEM, b""),
    "long text": (b"\x80\x04\x8d" + struct.pack("<Q", (8 << 30) - 100), b""),
    "long bytes": (b"\x80\x04\x8e" + struct.pack("<Q", (8 << 30) - 100), b""),
    "text": (b"\x80\x04X" + struct.pack("<I", (3 << 30)), b""),
    "old string": (b"\x80\x02T" + struct.pack("<I", 3 << 30), b""),
    "protocols": (b"\x80", b""), "safetensors": (struct.pack("<Q", 100) + b"{", b""),
    "zip": (b"PK\x03\x04", b""), "zip of one directory": (b"PK\x03\x04", ZIP64), "zeros": (b"", b"\0"),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_sparse_file_of_8_gb_is_not_read_whole(tmp_path, name):
    begin, end = HUGE[name]
    path = tmp_path / "x"
    with open(path, "wb") as file:
        file.write(begin)
        file.truncate(8 << 30)
        file.seek(8 << 30)
        file.write(end)

    def attempt():
        with pytest.raises(CheckpointError) as caught:
            read(path)
        return str(caught.value)

    message, peak = peak_of(attempt)
    assert message.startswith(f"{path}: ") and peak < 8 << 20
    path.unlink()


def test_a_jittor_pickle_stays_in_its_file(tmp_path):
    """Its arrays are read when they are asked for, and an array that nobody asks for never."""
    array = np.arange(4 << 20, dtype=np.float32)
    from jea.checkpoint import outline
    from jea.checkpoint.loading import write
    write(tmp_path / "x.pkl", {"a": array, "b": array[:1000]})
    found, peak = peak_of(lambda: outline(tmp_path / "x.pkl"))
    assert found.tensors["a"].shape == (4 << 20,) and peak < 4 << 20
    checkpoint, peak = peak_of(lambda: read(tmp_path / "x.pkl"))
    np.testing.assert_array_equal(checkpoint.tensors["a"], array)
    assert checkpoint.tensors["a"].flags.writeable and peak < 1.2 * array.nbytes


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickled_arrays_of_any_length(tmp_path, protocol, order):
    """Short ones are in the pickle's window, long ones in the file; protocol 2 writes bytes as a text."""
    import pickle
    generator = np.random.default_rng(protocol)
    arrays = {f"{n}": np.asarray(generator.integers(0, 256, (2, n), np.uint8), order=order)
              for n in (1, 2000, 2048, 100_000, 300_000, 1_000_000)}
    arrays["f"] = np.asarray(generator.random((300, 1000)), order=order)
    arrays["big"] = generator.random(90_000).astype(">f4")
    with open(tmp_path / "x.pkl", "wb") as file:
        pickle.dump(arrays, file, protocol)
    if protocol == 5:  # its buffers are bytes objects, which jea does not call
        with pytest.raises(CheckpointError, match="_frombuffer"):
            read(tmp_path / "x.pkl")
        return
    found = read(tmp_path / "x.pkl").tensors
    for key, array in arrays.items():
        assert found[key].dtype == array.dtype.newbyteorder("="), key
        np.testing.assert_array_equal(found[key], array)


def test_special_files_are_refused_by_every_reader(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for reader in (read, load_npz):
        for path in (tmp_path / "pipe", "/dev/zero"):
            with pytest.raises(CheckpointError, match="not a regular file"):
                reader(path)
        with pytest.raises(CheckpointError, match="is a folder"):
            reader(tmp_path)
        with pytest.raises(CheckpointError, match="no such file"):
            reader(tmp_path / "absent")


def test_saving_and_loading_meta_of_a_run(tmp_path):
    meta = {"config": {"train": {"lr": 0.1}}, "text": "\\\"[", "step": 3}
    save_npz(tmp_path / "x.npz", {"w": np.zeros(1)}, meta)
    assert load_npz(tmp_path / "x.npz")[1] == meta
