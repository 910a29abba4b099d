"""What reading a file costs: peak memory, processor time, and the error where it is refused."""
import gc
import os
import time
import tracemalloc

import pytest

from jea.checkpoint import CheckpointError, read

FLOOR = 48 << 20  # bytes that reading may take beside a small multiple of the file; 500,000 opcodes make 37 MB


def refused(path, reason):
    """The error of reading ``path``; it must come soon, name the file and the reason, and cost little memory."""
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with pytest.raises(CheckpointError, match=reason) as caught:
            read(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.perf_counter() - begin < 20
    assert peak < FLOOR + 8 * os.path.getsize(path), f"took {peak:,} bytes"
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value


def peak_of(function):
    """What a call returns and the most memory that Python held during it, in bytes."""
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def grows_linearly(work, small, large):
    """Whether the processor time of work(n) grows no faster than n, with room for the noise of a loaded machine.

    Without the garbage collector, which walks over all that the test session holds.
    """
    def seconds(n):
        begin = time.process_time()
        work(n)
        return time.process_time() - begin

    gc.collect()
    gc.disable()
    try:
        seconds(small)
        return min(seconds(large), seconds(large)) < 3 * large / small * max(seconds(small), 2e-3)
    finally:
        gc.enable()
