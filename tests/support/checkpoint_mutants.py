"""Damaged copies of good checkpoints, and the one thing that reading them may do. Also run as a script."""
import collections
import random
import signal
import struct
import sys
import time
import zipfile
from pathlib import Path

import checkpoint_forge as forge
import numpy as np

from jea.checkpoint import CheckpointError, read, save_npz
from jea.checkpoint.loading import write

TENSORS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), "conv.bias": np.float32([1, -2]),
    "bn.running_var": np.float64([0.5, 2]), "bn.num_batches_tracked": np.array(7), "flag": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32), "half": np.float16([1, 2, 3]),
}


BODY = forge.mapping({"net": forge.mapping({
    "a": forge.tensor("0", "FloatStorage", 12, 0, (4, 3), (1, 4)),
    "b": forge.tensor("0", "FloatStorage", 12, 5, (2, 2), (4, 1)),
    "c": forge.tensor("1", "BFloat16Storage", 3, 0, (3,), (1,)),
    "d": forge.tensor("2", "LongStorage", 1, 0, (), ())}), "step": forge.whole(30000),
    "args": b"cargparse\nNamespace\n)\x81" + forge.mapping({"lr": forge.text("0.1"), "n": b"K\x02"}) + b"b",
    "milestones": b"ccollections\nCounter\n}(K\x1eK\x01K\x3cK\x01u\x85R", "set": b"c__builtin__\nset\n](K\x01e\x85R",
    "complex": b"c__builtin__\ncomplex\nG?\xf0\0\0\0\0\0\0G@\0\0\0\0\0\0\0\x86R", "keys": b"}K\x01K\x02\x86Ns",
    "hub": b"cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81" + forge.mapping(
        {"mean": b"c__builtin__\ngetattr\ncmmengine.logging.history_buffer\nHistoryBuffer\nX\4\0\0\0mean\x86R"}) + b"b",
    "spectrum": forge.tensor("3", "ComplexFloatStorage", 1, 0, (1,), (1,))})
STORAGES = {"0": np.arange(12, dtype="<f4").tobytes(), "1": b"\x80\x3f" * 3, "2": bytes(8), "3": bytes(8)}
INNER = "inner.pth"  # only the pickle is damaged, then packed with a right checksum


def samples(folder):
    """{name: bytes} of one good file per format and container, 500 to 3,000 bytes each; of INNER, its pickle."""
    folder = Path(folder)
    forge.torch_legacy(folder / "legacy.pth", BODY, {"0": (12, STORAGES["0"]), "1": (3, STORAGES["1"]),
                                                     "2": (1, STORAGES["2"]), "3": (1, STORAGES["3"])})
    forge.torch_zip(folder / "strided.pth", BODY, STORAGES)
    write(folder / "ours.pth", TENSORS, wrapper="net")
    with zipfile.ZipFile(folder / "ours.pth") as source, \
            zipfile.ZipFile(folder / "deflated.pth", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    write(folder / "plain.pkl", TENSORS)
    (folder / "bare.pkl").write_bytes((folder / "plain.pkl").read_bytes()[:-28])  # without its checksum
    (folder / INNER).write_bytes(forge.pickled(BODY))
    write(folder / "x.safetensors", TENSORS, meta={"model": "toy"})
    save_npz(folder / "x.npz", {f"model/{key}": array for key, array in TENSORS.items()}, {"step": 3})
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def boundaries(data):
    """Where parts of a file begin: record and pickle starts and ends, lengths, and around them."""
    marks = {0, len(data)}
    for magic in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"\x93NUMPY", b"ctorch", b"HCAJSLHD", b"X",
                  b"\x8c", b"{", b"}", b"."):
        at = data.find(magic)
        while at >= 0:
            marks.update((at - 1, at, at + 1, at + len(magic)))
            at = data.find(magic, at + 1)
    return sorted(mark for mark in marks if 0 <= mark < len(data))


def mutant(data, random):
    """``data`` with a random damage."""
    data = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        kind, at = random.randrange(7), random.randrange(len(data) or 1)
        if kind == 0:
            data[at:at + 1] = bytes([random.randrange(256)])
        elif kind == 1:
            data[at:at + 1] = bytes([data[at] ^ 1 << random.randrange(8)]) if data else b""
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at:at + random.randrange(1, 40)]
        elif kind == 4:
            other = random.randrange(len(data) or 1)
            data[at:at] = data[other:other + random.randrange(1, 40)]
        elif kind == 5:
            value = random.choice((0, 1, 127, 128, 2 ** 16, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 62, 2 ** 63,
                                   2 ** 64 - 1))
            form = random.choice(("<H", "<I", "<Q"))
            data[at:at + struct.calcsize(form)] = struct.pack(form, value % 256 ** struct.calcsize(form))
        else:
            codes = b"\x80.()]}tuaesbRQcqhrjXNKMJ\x81\x82\x85\x86\x8a\x8b\x8c\x8e\x93\x94\x95"
            data[at:at + 1] = bytes([random.choice(codes)])
    return bytes(data)


class Hang(BaseException):
    """Not an Exception, so that nothing on the way can swallow it."""


def try_to_read(path, data, seconds=10):
    """"read" or "refused"; AssertionError for anything else than a clean result within the time."""
    def hang(*_):
        raise Hang(f"{path} takes over {seconds} s")

    if path.name == INNER:
        forge.torch_zip(path, b"", STORAGES, **{"data.pkl": data})
    else:
        path.write_bytes(data)
    signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        checkpoint = read(path)
    except CheckpointError as error:
        assert str(error).startswith(f"{path}: "), error
        assert "does not fit into memory" not in str(error), error
        return "refused"
    finally:
        signal.alarm(0)
    assert checkpoint.tensors
    for array in checkpoint.tensors.values():
        assert type(array) is np.ndarray and array.dtype.kind in "biuf"
    return "read"


def hammer(folder, count, seed, headroom=256 << 20):
    """Read ``count`` mutants of every sample with ``headroom`` bytes of address space; returns the outcomes."""
    import resource
    folder = Path(folder)
    originals = samples(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + headroom, used + headroom))
    outcomes, slowest, generator = collections.Counter(), 0.0, random.Random(seed)
    for name, data in originals.items():
        for index in range(count):
            damaged = mutant(data, generator)
            begin = time.perf_counter()
            try:
                outcomes[name, try_to_read(folder / name, damaged)] += 1
            except BaseException:
                (folder / f"culprit-{index}-{name}").write_bytes(damaged)
                raise
            slowest = max(slowest, time.perf_counter() - begin)
    return outcomes, slowest


if __name__ == "__main__":
    results, slowest_read = hammer(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    for (sample, outcome), number in sorted(results.items()):
        print(f"{sample:<14} {outcome:<8} {number}")
    print(f"total {sum(results.values())}, slowest {slowest_read:.3f} s")
