"""The only caller of jt.code: kernels from the plain headers beside the operators."""
from __future__ import annotations

import functools
import os

from jea._jittor import jt
from jea.environment.jittor_home import jittor_cache
from jea.ops.common import builds
from jea.ops.common.declared import Support
from jea.ops.common.sources import header

builds.tell(jt)

def use_fused(impl: str, support: Support, *values, unless: str = "", decided: bool = False) -> bool:
    """Whether the operator's kernel runs for these Vars. `auto` asks it; JEA_OPS=ref turns all kernels off.

    `unless`: why it does not run, where the device and the types are not the reason; `decided`: it is the only reason.
    Raises:
        ValueError: unknown `impl`, or "fused" where the kernel does not run.
    """
    if impl not in ("auto", "fused", "ref"):
        raise ValueError(f'{support.operator}: impl is {impl!r}; expected "auto", "fused" or "ref"')
    if impl == "ref":
        return False
    types = support.cuda if jt.flags.use_cuda else support.cpu
    reason = ""
    if decided:
        values = ()
    elif not types or (support.onednn and not jt.flags.use_cuda and onednn_include() is None):
        reason = support.refusal("cuda" if jt.flags.use_cuda else "cpu", onednn=onednn_include() is not None)
    for value in values:
        if not reason and value.dtype not in types:
            reason = support.refusal("cuda" if jt.flags.use_cuda else "cpu", [value.dtype])
    reason = reason or unless
    if impl == "fused" and reason:
        raise ValueError(f"{support.operator}: no fused kernel here: {reason}")
    return not reason and (impl == "fused" or not references_only())


# Every operator asks. Looking for what the environment lacks goes through an exception, so it is read once.
REFERENCES_ONLY = os.environ.get("JEA_OPS", "") == "ref"


def references_only() -> bool:
    """Whether JEA_OPS=ref turned all kernels off, for the whole run."""
    return REFERENCES_ONLY


@functools.lru_cache(maxsize=None)
def onednn_include() -> str | None:
    """The folder of oneDNN's headers, or None where Jittor runs without the library."""
    if getattr(jt.compile_extern, "mkl_ops", None) is None:
        return None
    folders = sorted((jittor_cache() / "mkl").glob("dnnl*/include/dnnl.hpp"))
    return str(folders[0].parent) if folders else None


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
