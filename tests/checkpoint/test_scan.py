"""jea inspect --scan: a verdict on files that others would unpickle, also on those made to get past scanners."""
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib

import checkpoint_forge as forge
import checkpoint_mutants as mutants
import numpy as np
import pytest
from checkpoint_limits import grows_linearly, peak_of

from jea.checkpoint import save_npz
from jea.checkpoint.loading import write
from jea.checkpoint.readers.pickle_globals import walk
from jea.checkpoint.scan import CLEAN, DANGEROUS, UNREADABLE, scan
from jea.commands.inspect import main as inspect_main

ONE = forge.mapping({"w": forge.tensor("0", "FloatStorage", 1, 0, (1,), (1,))})
EVIL = b"cposix\nsystem\nX\4\0\0\0trueq\0\x85R"
STACK_EVIL = b"\x8c\x05posix\x94\x8c\x06system\x940h\0h\1\x93X\4\0\0\0true\x85R"


def evil(path):
    verdict = scan(path)
    assert verdict.status == DANGEROUS, (verdict.findings, verdict.problems)
    return " ".join(verdict.findings)


def test_good_files_are_clean(tmp_path):
    for name, data in mutants.samples(tmp_path).items():
        if name == mutants.INNER:
            continue
        verdict = scan(tmp_path / name)
        assert verdict.status == CLEAN and verdict.formats, (name, verdict)
    assert set(scan(tmp_path / "legacy.pth").names) == {
        "collections.OrderedDict", "collections.Counter", "argparse.Namespace", "__builtin__.set",
        "__builtin__.complex", "__builtin__.getattr", "mmengine.logging.history_buffer.HistoryBuffer",
        "torch._utils._rebuild_tensor_v2", "torch.FloatStorage", "torch.BFloat16Storage", "torch.LongStorage",
        "torch.ComplexFloatStorage"}


def test_weights_that_look_like_pickles_are_clean(tmp_path):
    generator = np.random.default_rng(0)
    tensors = {f"t{i}": np.frombuffer(b"\x80\x02" + generator.bytes(254), np.uint8) for i in range(300)}
    tensors |= {f"r{i}": generator.standard_normal(64) for i in range(300)}
    tensors |= {"dots": np.full(4000, ord("."), np.uint8), "marks": np.full(4000, ord("("), np.uint8)}
    for suffix in (".npz", ".pth", ".safetensors", ".pkl"):
        write(tmp_path / f"x{suffix}", tensors)
        verdict = scan(tmp_path / f"x{suffix}")
        assert verdict.status == CLEAN, verdict


BODIES = {
    "GLOBAL": EVIL, "STACK_GLOBAL": STACK_EVIL, "INST": b"(X\4\0\0\0trueiposix\nsystem\n",
    "OBJ": b"(cposix\nsystem\nX\4\0\0\0trueo", "nested": b"c_pickle\nloads\nC\x01.\x85R",
    "unlisted": b"ctimeit\ntimeit\n)R", "pip": b"\x8c\x03pip\x8c\x04main\x93](X\7\0\0\0installe\x85R",
    "dotted": b"\x8c\x05torch\x8c\x12serialization.load\x93",
    "getattr": b"c__builtin__\ngetattr\nc__builtin__\n__import__\nX\2\0\0\0os\x86R", "EXT": b"\x82\x01)R",
    "protocol 0 texts": b"Vposix\nVsystem\n\x93X\4\0\0\0true\x85R",
    "strings": b"S'posix'\nS'system'\n\x93X\1\0\0\0a\x85R",
    "escapes": b"Vpo\\u0073ix\nVsystem\n\x93X\1\0\0\0a\x85R",
    "memo": b"\x8c\x05posixq\x07\x8c\x06systemq\x080" + b"0h\x07h\x08\x93)R",
    "duplicate": b"\x8c\x05posix\x8c\x06system\x93q\x062)R", "computed": b"\x8c\x05posix" + EVIL + b"\x93)R",
    "numpy": b"cnumpy.testing._private.utils\nrunstring\nX\1\0\0\0a}\x86R",
    "storage loader": b"ctorch.storage\n_load_from_bytes\n)R",
    "getattr on mmengine": b"c__builtin__\ngetattr\ncmmengine.logging.history_buffer\nHistoryBuffer\n"
                           b")\x81X\1\0\0\0a\x86R",
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("container", ["zip", "legacy", "pkl", "protocol 0"])
def test_any_name_that_is_not_listed_is_dangerous(tmp_path, container, name):
    path, body = tmp_path / "x", BODIES[name]
    if container == "zip":
        forge.torch_zip(path, body)
    elif container == "legacy":
        forge.torch_legacy(path, body)
    elif container == "pkl":
        path.write_bytes(forge.pickled(body))
    elif name == "EXT":
        pytest.skip("a number of copyreg's registry, which only a program that fills it has")
    else:
        path.write_bytes(body + b".")  # no header at all
    evil(path)


@pytest.mark.parametrize("which", range(5))
def test_all_pickles_of_an_old_torch_file_are_looked_at(tmp_path, which):
    """A bypass of picklescan: only the first was looked at."""
    parts = [forge.MAGIC, forge.PROTOCOL, forge.SYSTEM, forge.pickled(b"}"), b"\x80\x02]."]
    parts[which] = forge.pickled(EVIL)
    (tmp_path / "x.pth").write_bytes(b"".join(parts))
    assert "posix.system" in evil(tmp_path / "x.pth")


def test_a_pickle_behind_the_end_and_one_that_breaks_off(tmp_path):
    """The second: the harm is done before the loader meets the damage (nullifAI)."""
    path = tmp_path / "x.pkl"
    path.write_bytes(forge.pickled(b"}") + forge.pickled(EVIL))
    evil(path)
    path.write_bytes(b"\x80\x02" + EVIL + b"\xff\xff\xff")
    assert "posix.system" in evil(path) and "damaged" in " ".join(scan(path).problems)
    path.write_bytes(b"\x80\x02" + EVIL)
    evil(path)


def archive(path, entries, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as made:
        for name, content in entries.items():
            made.writestr(name, content)
    return path


GOOD = {"archive/data.pkl": forge.pickled(ONE), "archive/data/0": b"\0\0\x80?"}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("name",
                         ["archive/config.p", "archive/data/1", "archive/version", "archive/readme", "x.npy", "other"])
def test_pickles_under_any_name(tmp_path, name, method):
    """CVE-2025-1889: a pickle with an extension that scanners do not know, loaded by the first one."""
    path = archive(tmp_path / "model.bin", {**GOOD, name: forge.pickled(EVIL)}, method)
    assert "posix.system" in evil(path)


@pytest.mark.parametrize("field", ["directory", "entry", "both"])
@pytest.mark.parametrize("bits", [0x1, 0x40, 0x2000])
def test_flags_at_which_other_readers_stop(tmp_path, field, bits):
    """CVE-2025-1945: zipfile refuses the archive, and PyTorch reads it."""
    path = archive(tmp_path / "x.pth", {"archive/data.pkl": forge.pickled(EVIL), "archive/data/0": bytes(4)})
    data = bytearray(path.read_bytes())
    for magic, offset, where in ((b"PK\x01\x02", 8, "directory"), (b"PK\x03\x04", 6, "entry")):
        if field in (where, "both"):
            at = data.find(magic)
            while at >= 0:
                data[at + offset:at + offset + 2] = struct.pack("<H", bits)
                at = data.find(magic, at + 1)
    path.write_bytes(data)
    assert "posix.system" in evil(path)
    clean = archive(tmp_path / "y.pth", GOOD).read_bytes()
    at = clean.find(b"PK\x01\x02")
    (tmp_path / "y.pth").write_bytes(clean[:at + 8] + struct.pack("<H", bits) + clean[at + 10:])
    assert scan(tmp_path / "y.pth").status == UNREADABLE


def test_a_wrong_checksum_does_not_stop_the_scan(tmp_path):
    path = archive(tmp_path / "x.pth", {"archive/data.pkl": forge.pickled(EVIL)})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", zlib.crc32(forge.pickled(EVIL))), b"\1\2\3\4"))
    assert "posix.system" in evil(path)


def test_entries_that_the_directory_hides_or_renames(tmp_path):
    path = archive(tmp_path / "x.pth", {**GOOD, "archive/evil": forge.pickled(EVIL)})
    data = path.read_bytes()
    directory = data.find(b"PK\x01\x02")
    last = data.rfind(b"PK\x01\x02")
    end = data.rfind(b"PK\x05\x06")
    hidden = data[:last] + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2, 2, last - directory, directory, 0)
    path.write_bytes(hidden)
    assert "posix.system" in evil(path)
    path.write_bytes(data[:end])  # without an end at all
    assert "posix.system" in evil(path)
    renamed = archive(tmp_path / "y.pth", GOOD).read_bytes()
    (tmp_path / "y.pth").write_bytes(renamed.replace(b"archive/data.pkl", b"archive/data.abc", 1))
    assert "two programs see two archives" in evil(tmp_path / "y.pth")
    twice = archive(tmp_path / "z.pth", {**GOOD, "archive/dat2.pkl": forge.pickled(ONE)}).read_bytes()
    (tmp_path / "z.pth").write_bytes(twice.replace(b"dat2.pkl", b"data.pkl"))
    assert "lists an entry twice" in evil(tmp_path / "z.pth")


def zip_bytes(entries):
    return archive(io.BytesIO(), entries).getvalue()


def safetensors_bytes():
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return struct.pack("<Q", len(header)) + header + bytes(4)


@pytest.mark.parametrize("first", ["pickle", "legacy", "safetensors", "html", "picture", "npy"])
def test_two_formats_at_once(tmp_path, first):
    """One program goes by the beginning of a file, another by its end; each sees harmless content here."""
    path = tmp_path / "x"
    npy = io.BytesIO()
    np.save(npy, np.zeros(3))
    forge.torch_legacy(tmp_path / "l", forge.mapping({}))
    begin = {"pickle": forge.pickled(b"}"), "legacy": (tmp_path / "l").read_bytes(), "safetensors": safetensors_bytes(),
             "html": b"<html></html>", "picture": b"\x89PNG\r\n\x1a\n" + bytes(100), "npy": npy.getvalue()}[first]
    path.write_bytes(begin + zip_bytes(GOOD))
    evil(path)


def test_a_tar_archive(tmp_path):
    """What PyTorch before 0.1.10 saved, and PyTorch still reads."""
    def packed(entries):
        with tarfile.open(tmp_path / "x.tar", "w") as made:
            for name, content in entries.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                made.addfile(member, io.BytesIO(content))
        return tmp_path / "x.tar"

    assert scan(packed({"pickle": forge.pickled(b"}"), "tensors": bytes(600)})).status == CLEAN
    assert "posix.system" in evil(packed({"sys_info": forge.pickled(b"}"), "pickle": forge.pickled(EVIL)}))
    path = packed({"pickle": forge.pickled(b"}")})
    data = bytearray(path.read_bytes())
    data[:len(forge.MAGIC)] = forge.MAGIC  # its first member's name is a pickle
    path.write_bytes(data)
    assert "2 formats at once (pickle, tar)" in evil(path) or "torch-legacy, tar" in evil(path)


class Call:
    def __reduce__(self):
        return os.system, ("true",)


def test_arrays_of_objects(tmp_path):
    np.savez(tmp_path / "x.npz", w=np.array([Call()], dtype=object))
    np.save(tmp_path / "x.npy", np.array([Call()], dtype=object))
    np.savez(tmp_path / "y.npz", w=np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "y.npy", np.zeros(300))
    assert "posix.system" in evil(tmp_path / "x.npz") and "posix.system" in evil(tmp_path / "x.npy")
    assert scan(tmp_path / "y.npz").status == scan(tmp_path / "y.npy").status == CLEAN


def test_archives_in_archives(tmp_path):
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        inner = zip_bytes({"a/b": forge.pickled(EVIL)})
        assert "posix.system" in evil(archive(tmp_path / "x.zip", {"model/inner.zip": inner}, method))


@pytest.mark.parametrize("content, reason", [
    (b"", "empty"), (b"\x1f\x8b\x08\0\0\0", "gzip"), (b"7z\xbc\xaf\x27\x1c", "7-Zip"), (b"hello, world\n", "no format"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"), (safetensors_bytes()[:-1], "incomplete"),
    (b"PK\x03\x04" + bytes(60), "no zip directory"), (b"\x80\x02}", "no format|damaged"),
])
def test_what_cannot_be_looked_into(tmp_path, content, reason):
    import re
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    verdict = scan(path)
    assert verdict.status == UNREADABLE and re.search(reason, " ".join(verdict.problems)), verdict


def test_mmengines_files_are_clean(tmp_path):
    body = forge.mapping({"net": ONE, "hub": b"cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81" + forge.mapping(
        {"m": b"c__builtin__\ngetattr\ncmmengine.logging.history_buffer\nHistoryBuffer\nX\4\0\0\0mean\x86R"}) + b"b"})
    assert scan(forge.torch_zip(tmp_path / "x.pth", body, {"0": bytes(4)})).status == CLEAN


def test_status_and_words_of_the_command(tmp_path, capsys):
    folder = tmp_path / "models"
    (folder / "sub").mkdir(parents=True)
    save_npz(folder / "good.npz", {"w": np.zeros(1)})
    (folder / "README.md").write_text("# A model\n")
    (folder / "sub" / "loop").symlink_to(folder)
    assert inspect_main(["--scan", str(folder)]) == CLEAN
    said = capsys.readouterr().out
    assert f"{folder / 'good.npz'}: clean (zip)" in said and "1 files looked into, 1 of other kinds: clean" in said
    (folder / "cut.pkl").write_bytes(forge.pickled(b"}q\0") [:-1] + b"\xff")
    (folder / "cut.safetensors").write_bytes(safetensors_bytes()[:-1])
    assert inspect_main(["--scan", str(folder)]) == UNREADABLE
    (folder / "sub" / "evil\x1b[2J.bin").write_bytes(forge.pickled(EVIL))
    capsys.readouterr()
    assert inspect_main([str(folder), "--scan"]) == DANGEROUS
    said = capsys.readouterr().out
    assert r"evil\x1b[2J.bin: dangerous (pickle)" in said and "names posix.system, which is not on the list" in said
    assert inspect_main(["--scan", "--json", str(folder)]) == DANGEROUS
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["verdict"] for line in lines} == {"clean", "dangerous", "not readable"}
    assert next(line for line in lines if line["verdict"] == "dangerous")["globals"] == {"posix.system": False}
    assert inspect_main(["--scan", str(tmp_path / "absent")]) == UNREADABLE
    assert inspect_main(["--scan", str(folder / "README.md")]) == UNREADABLE
    empty = tmp_path / "empty"
    empty.mkdir()
    assert inspect_main(["--scan", str(empty)]) == UNREADABLE


def test_scanning_is_linear_and_takes_little_memory(tmp_path):
    path = tmp_path / "x"

    def work(body, n):
        path.write_bytes(b"\x80\x04" + body * n + b".")
        return scan(path)

    for body in (b"(", b"]\x94", b"N.", b"cos\nx\n", b"\x8c\x02ab\x94", b"h\0", b"g1\n", b"P"):
        assert grows_linearly(lambda n, part=body: work(part, n), 2_000, 16_000), body
        assert peak_of(lambda part=body: work(part, 16_000))[1] < (4 << 20) + 200 * 16_000
    with open(path, "wb") as file:
        file.write(b"\x80\x02\x8e" + struct.pack("<Q", (8 << 30) - 100))
        file.truncate(8 << 30)
        verdict, peak = peak_of(lambda: walk(open(path, "rb"), 0, 8 << 30))
    assert peak < 1 << 20 and verdict.problem


def test_a_bomb_is_not_unpacked_whole(tmp_path):
    path = archive(tmp_path / "x.zip", {"a": bytes(200 << 20)}, zipfile.ZIP_DEFLATED)
    verdict, peak = peak_of(lambda: scan(path))
    assert verdict.status == UNREADABLE and peak < 200 << 20


def test_damaged_files_give_a_verdict(tmp_path):
    import random
    generator = random.Random(7)
    for name, data in mutants.samples(tmp_path).items():
        for _ in range(30):
            (tmp_path / "x").write_bytes(mutants.mutant(data, generator))
            assert scan(tmp_path / "x").status in (CLEAN, DANGEROUS, UNREADABLE)


def test_pickles_of_python(tmp_path):
    """Walking ends where Python's own reader ends, for all protocols."""
    value = {"a": [1, 2.5, None, True, (1, 2), {3}], "b": "text", "c": b"bytes" * 100, "d": 2 ** 70}
    for protocol in range(6):
        (tmp_path / "x").write_bytes(pickle.dumps(value, protocol) + b"rest")
        with open(tmp_path / "x", "rb") as file:
            found = walk(file, 0, os.path.getsize(tmp_path / "x"))
        assert not found.problem and found.end == os.path.getsize(tmp_path / "x") - 4, protocol
