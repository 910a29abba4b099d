"""The only caller of jt.code: kernels from the plain headers beside the operators."""
from __future__ import annotations

import functools
import os
from pathlib import Path

from jea import runtime
from jea._jittor import jt

FOLDER = Path(__file__).parent


@functools.lru_cache(maxsize=None)
def header(name: str) -> str:
    """The text of a kernel header. Its text, not an #include, so that an edited header is compiled anew."""
    path = FOLDER / name
    try:
        return path.read_text()
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
    return possible and impl != "ref" and (impl == "fused" or os.environ.get("JEA_OPS", "") != "ref")


@functools.lru_cache(maxsize=None)
def onednn_include() -> str | None:
    """The folder of oneDNN's headers, or None where Jittor runs without the library."""
    from jittor import compile_extern
    if getattr(compile_extern, "mkl_ops", None) is None:
        return None
    folders = sorted((runtime.jittor_cache() / "mkl").glob("dnnl*/include/dnnl.hpp"))
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


def _compiled(result, onednn: bool):
    if onednn:
        # On the operator alone: jt.flags.cc_flags is part of every kernel's cache key.
        options = {f'FLAGS: -I"{onednn_include()}" ': 1}
        for var in result if isinstance(result, (list, tuple)) else (result,):
            var.compile_options = options
    return result
