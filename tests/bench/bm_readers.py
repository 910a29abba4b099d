"""Peak memory and time of reading a checkpoint against its size, for each format: the table of weights/README.md.

    python tests/bench/bm_readers.py

Memory is what Python and numpy hold at most, over what was there before (tracemalloc); time is that of the processor,
in a second reading without it. Files are 10 kB, 1 MB and 32 MB of float32 weights in 64 tensors, and the worst that is
known of each kind: files that make the reader hold the most for their bytes.
"""
import struct
import sys
import tempfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))
import checkpoint_forge as forge  # noqa: E402

from jea.checkpoint import CheckpointError, outline, read, save_npz  # noqa: E402
from jea.checkpoint.loading import write  # noqa: E402
from jea.checkpoint.scan import scan  # noqa: E402

TENSORS = 64


def weights(path, size):
    count = max(1, size // 4 // TENSORS)
    tensors = {f"layer{i}.weight": np.full(count, i, np.float32) for i in range(TENSORS)}
    if path.suffix == ".t7":
        body = forge.mapping({key: forge.tensor(str(i), "FloatStorage", count, 0, (count,), (1,))
                              for i, key in enumerate(tensors)})
        forge.torch_legacy(path, body, {str(i): (count, array.tobytes()) for i, array in enumerate(tensors.values())})
    else:
        write(path, tensors)


def pickle_of(body):
    one = forge.tensor("0", "FloatStorage", 1, 0, (1,), (1,))
    return lambda path, size: forge.torch_zip(path,
                                              forge.mapping({"w": one, "x": b"](" + body * (size // len(body)) + b"e"}),
                                              {"0": bytes(4)})


def deflated(path, size):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", forge.pickled(b"](" + b"\x8c\x02ab" * (size // 4) + b"e"))
        archive.writestr("archive/data/0", np.random.default_rng(0).bytes(size // 64))


def header_of(entry):
    def make(path, size):
        header = b'{"a":[' + entry * (min(size, 3 << 20) // len(entry)) + b"0]}"
        path.write_bytes(struct.pack("<Q", len(header)) + header)
    return make


def meta_of(entry):
    return lambda path, size: save_npz(path, {"w": np.zeros(1)}, {"a": [entry] * (min(size, 3 << 20) // 5)})


GOOD = {".pth": ".pth, zip", ".t7": ".pth, old", ".safetensors": ".safetensors", ".npz": ".npz",
        ".pkl": ".pkl of Jittor"}
WORST = {"pickle of short texts": pickle_of(b"\x8c\x02ab"), "pickle of tuples": pickle_of(b")\x85"),
         "pickle of one text, named again and again": pickle_of(b"\x8c\x02ab\x94h\0h\0h\0h\0"),
         "compressed pickle": deflated, ".safetensors header of lists": header_of(b"[],"),
         ".safetensors header of tables": header_of(b'{"a":0},'), ".npz with JSON of lists": meta_of([0])}


def measured(work):
    """(peak in bytes, processor seconds) of work()."""
    def attempt():
        try:
            work()
        except CheckpointError:
            pass

    tracemalloc.start()
    attempt()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    begin = time.process_time()
    attempt()
    return peak, time.process_time() - begin


def row(title, path):
    size = path.stat().st_size
    cells = [f"{peak / 1e6:.2f} MB, {seconds * 1000:.0f} ms" for peak, seconds in
             (measured(lambda: read(path)), measured(lambda: outline(path)), measured(lambda: scan(path)))]
    print(f"| {title} | {size / 1e6:.3g} MB | {' | '.join(cells)} |", flush=True)


def main():
    print("| file | size | read | inspect | scan |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for suffix, title in GOOD.items():
            for size in (10_000, 1_000_000, 32_000_000):
                path = Path(folder) / f"x{suffix}"
                weights(path, size)
                row(title, path)
        for title, make in WORST.items():
            for size in (10_000, 1_000_000, 4_000_000):
                path = Path(folder) / "worst"
                make(path, size)
                row(title, path)


if __name__ == "__main__":
    main()
