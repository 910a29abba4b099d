"""The only caller of jt.code: kernels from the plain headers beside the operators."""
from __future__ import annotations

import contextlib
import functools
import os
import re
from pathlib import Path

from jea._jittor import jt
from jea.environment.jittor_home import jittor_cache

FOLDER = Path(__file__).parent


_INCLUDE = re.compile(r'^#include "([^"]+)"\n', re.MULTILINE)
_UNREAD = re.compile(r"^ +|^ *//.*\n|^\n", re.MULTILINE)  # by a compiler


@functools.lru_cache(maxsize=None)
def header(name: str) -> str:
    """The text of a kernel header, with the neighbours that it includes in place of their #include lines.

    Text, not an #include that Jittor's compiler would follow, so that an edited header is compiled anew. Without
    comments and indentation: Jittor copies and hashes it at each run of an operator.
    """
    seen = {name}

    def insert(match) -> str:
        neighbour = match.group(1)
        if neighbour in seen:
            return ""
        seen.add(neighbour)
        return _INCLUDE.sub(insert, _read(neighbour))
    return _UNREAD.sub("", _INCLUDE.sub(insert, _read(name)))


def _read(name: str) -> str:
    path = FOLDER / name
    try:
        return path.read_text().replace("#pragma once\n", "")
    except OSError as error:
        raise RuntimeError(f"jea's kernel {path} cannot be read ({error.strerror}): reinstall jea") from error


def use_fused(impl: str, *, name: str, possible: bool, reason: str) -> bool:
    """Whether the fused kernel runs. `auto` asks the operator's predicate; JEA_OPS=ref turns all kernels off.

    Raises:
        ValueError: unknown `impl`, or "fused" where the kernel does not exist.
    """
    if impl not in ("auto", "fused", "ref"):
        raise ValueError(f'{name}: impl is {impl!r}; expected "auto", "fused" or "ref"')
    if impl == "fused" and not possible:
        raise ValueError(f"{name}: no fused kernel here: {reason}")
    return possible and impl != "ref" and (impl == "fused" or not references_only())


def float_types() -> tuple:
    """The types that kernels written for all of CUDA's take on the chosen device, and the same in words."""
    types = ("float32", "float16", "bfloat16") if jt.flags.use_cuda else ("float32",)
    return types, f"it takes {', '.join(types)} on {'CUDA' if jt.flags.use_cuda else 'the CPU'}"


# Every operator asks. Looking for what the environment lacks goes through an exception, so it is read once.
REFERENCES_ONLY = os.environ.get("JEA_OPS", "") == "ref"


def references_only() -> bool:
    """Whether JEA_OPS=ref turned all kernels off, for the whole run."""
    return REFERENCES_ONLY


@functools.lru_cache(maxsize=None)
def onednn_include() -> str | None:
    """The folder of oneDNN's headers, or None where Jittor runs without the library."""
    from jittor import compile_extern
    if getattr(compile_extern, "mkl_ops", None) is None:
        return None
    folders = sorted((jittor_cache() / "mkl").glob("dnnl*/include/dnnl.hpp"))
    return str(folders[0].parent) if folders else None


_Var = jt.Var


class Function:
    """An operator with a gradient of its own, used as jt.Function: subclasses define execute(*args) and grad(*douts).

    It costs less than jt.Function, which is a Module, and can let go of what it keeps: see single_use.
    """

    @classmethod
    def apply(cls, *args):
        return cls()(*args)

    def __call__(self, *args):
        self._wanted = [i for i, arg in enumerate(args) if isinstance(arg, _Var) and not arg.is_stop_grad()]
        if jt.flags.no_grad or not self._wanted:
            return self.execute(*args)
        args = list(args)
        for i in self._wanted:
            args[i] = args[i].tape()
        self._once = _single_use[-1]
        results = self.execute(*args)
        several = isinstance(results, (list, tuple))
        taped = [result.tape() for result in (results if several else (results,))]
        jt.tape_together([args[i] for i in self._wanted], taped, self._gradients)
        return taped if several else taped[0]

    def _gradients(self, *douts):
        found = self.grad(*douts)
        found = found if isinstance(found, (list, tuple)) else (found,)
        found = [found[i] for i in self._wanted]
        if self._once:
            vars(self).clear()
        return found


_single_use = [False]


@contextlib.contextmanager
def single_use():
    """Operators called inside let go of what they keep for their gradient once it is made: it can be made once.

    Otherwise Jittor frees that at the end of the whole step, when it frees the operators.
    """
    _single_use.append(True)
    try:
        yield
    finally:
        _single_use.pop()


def cpu_code(shape, dtype, inputs, *, kernel: str, source: str, data: dict | None = None, onednn: bool = False):
    """One jt.code call on the CPU: `source` calls functions of the header `kernel`; data["x"] are its numbers.

    Several outputs: lists of shapes and dtypes. `onednn` puts oneDNN's headers on this kernel's include path.
    """
    return _compiled(jt.code(shape, dtype, inputs, cpu_header=header(kernel), cpu_src=source, data=data or {}), onednn)


def cpu_code_in_place(inputs, output, *, kernel: str, source: str, data: dict | None = None, onednn: bool = False):
    """Like cpu_code, but the result takes over the memory of `output`, whose value is lost."""
    result, = jt.code(inputs, [output], cpu_header=header(kernel), cpu_src=source, data=data or {})
    return _compiled(result, onednn)


_CUDNN = """
#include "executor.h"
namespace jittor {
extern cudnnHandle_t cudnn_handle;

struct Scratch {
    size_t bytes, allocation = 0;
    void* data;
    explicit Scratch(size_t bytes)
        : bytes(bytes), data(bytes ? exe.temp_allocator->alloc(bytes, allocation) : nullptr) {}
    ~Scratch() { if (data) exe.temp_allocator->free(data, bytes, allocation); }
};
}
"""


def cuda_code(shape, dtype, inputs, *, kernel: str, source: str, data: dict | None = None, workspace: int = 0,
              cudnn: bool = False):
    """One jt.code call on the GPU: `source` calls host functions of the header `kernel`, which launch its kernels.

    Several outputs: lists of shapes and dtypes. `workspace`: so many float32 of scratch memory, called `workspace` in
    `source`. A launch that CUDA refuses raises; Jittor alone would go on with whatever the outputs held. `cudnn`: the
    source also has Jittor's `cudnn_handle`, and Scratch(bytes), memory that is given back at its end.
    """
    several = isinstance(dtype, (list, tuple))
    shapes, dtypes = (list(shape), list(dtype)) if several else ([shape], [dtype])
    if workspace:
        source = f"float* const workspace = out{len(shapes)}_p;\n{source}"
        shapes.append((workspace,))
        dtypes.append("float32")
    source += f"""
        if (const cudaError_t refused = cudaGetLastError())
            LOGf << "{kernel}: the launch failed:" << cudaGetErrorString(refused);"""
    text = header(kernel) + (_CUDNN if cudnn else "")
    results = jt.code(shapes, dtypes, inputs, cuda_header=text, cuda_src=source, data=data or {})
    return results[:len(results) - bool(workspace)] if several else results[0]


def code(shape, dtype, inputs, *, kernel: str, source: str, data: dict | None = None, workspace: int = 0):
    """cpu_code with `kernel`.h, or cuda_code with `kernel`.cuh where CUDA is on: both define what `source` calls.

    `workspace` is for CUDA; on the CPU the pointer of that name is null.
    """
    if jt.flags.use_cuda:
        return cuda_code(shape, dtype, inputs, kernel=kernel + ".cuh", source=source, data=data, workspace=workspace)
    if workspace:
        source = "float* const workspace = nullptr;\n" + source
    return cpu_code(shape, dtype, inputs, kernel=kernel + ".h", source=source, data=data)


def _compiled(result, onednn: bool):
    if onednn:
        # On the operator alone: jt.flags.cc_flags is part of every kernel's cache key.
        options = {f'FLAGS: -I"{onednn_include()}" ': 1}
        for var in result if isinstance(result, (list, tuple)) else (result,):
            var.compile_options = options
    return result
