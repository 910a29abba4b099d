"""CUDA kernels run on the CPU, so that their arithmetic is tested where there is no GPU.

A .cuh of jea/ops is compiled with g++: `kernel<<<grid, block>>>(...)` becomes a call that runs every thread as a
coroutine (cuda_on_cpu.h). That shows wrong indices, sums and barriers; races between threads and speed it does not.
"""
from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import numpy as np

from jea.ops.common import sources

HEADER = Path(__file__).parent / "cuda_on_cpu.h"


def without_launches(text: str) -> str:
    """The CUDA source with each launch as a call of cuda_on_cpu::launch, and without CUDA's own headers."""
    text = re.sub(r"#include <cuda[\w./]*>\n", "", text)
    while "<<<" in text:
        opening = text.index("<<<")
        closing = text.index(">>>", opening)
        name = re.search(r"[\w:]+\s*(<[^;{}]*>)?$", text[:opening])
        end, depth = closing + 3, 0
        while True:  # the argument list
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
            if depth == 0:
                break
        call = f"cuda_on_cpu::launch({text[opening + 3:closing]}, [&] {{ {name.group(0)}{text[closing + 3:end]}; }})"
        text = text[:name.start()] + call + text[end:]
    return text


def for_both_types(functions: str) -> str:
    """Functions of T, called name and name16: for float and for half precision."""
    return "".join(functions.replace("NAME", suffix).replace("T*", f"{kind}*")
                   for suffix, kind in (("", "float"), ("16", "_Float16")))


def build(kernel: str, functions: str, folder: Path) -> ctypes.CDLL:
    """A library with the extern "C" `functions`, which call what jea/ops/`kernel` defines."""
    source, library = (folder / f"{Path(kernel).stem}{end}" for end in (".cc", ".so"))
    source.write_text(f'#include "{HEADER}"\n{without_launches(sources.header(kernel))}\nextern "C" {{\n'
                      f"{functions}\n}}\n")
    done = subprocess.run(["g++", "-std=c++17", "-O1", "-w", "-fPIC", "-shared", str(source), "-o", str(library)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def call(function, *arguments) -> None:
    """Call with numpy arrays as pointers; ints as long, floats as float."""
    kinds = {int: ctypes.c_long, bool: ctypes.c_bool, float: ctypes.c_float}
    converted = []
    for value in arguments:
        if isinstance(value, np.ndarray):
            assert value.flags.c_contiguous
            converted.append(ctypes.c_void_p(value.ctypes.data))
        else:
            converted.append(ctypes.c_void_p(None) if value is None else kinds[type(value)](value))
    function(*converted)
