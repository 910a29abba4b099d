"""Mixed precision: products in float16 or bfloat16, parameters, statistics, sums and losses in float32.

Inside `autocast` the layers of jea.nn cast the operands of convolutions, linear maps and attention's products. Their
gradients follow: a cast's gradient is cast back, so that a parameter's gradient is float32 like the parameter. What
comes out of a convolution without bias stays in half precision for the BatchNorm behind it, which reads and writes that
(its sums are float32); every other product hands on float32. On the CPU (bfloat16) the operands are rounded inside the
products and all that travels between layers is float32, but in fused networks (jea.fuse).

Jittor's own switch, auto_mixed_precision_level, is not used: it chooses the dtype by operator in the core, for all code
that runs, knows float16 only (jt.array and jt.random cast to it), keeps sums of activations in it at its higher levels,
and leaves the convolutions' sums to the dtype of their result (jea/ops/half.py).
"""
from __future__ import annotations

import contextlib

from jea._jittor import jt, nn
from jea.ops import kernels
from jea.ops.convolution.conv import bfloat16_unavailable
from jea.ops.products.bfloat16 import matmul_bfloat16
from jea.ops.products.half import HALF, conv2d_half, single

PRECISIONS = ("float32",) + HALF

_dtype = "float32"


def current() -> str:
    """The dtype of products: "float32" outside `autocast`."""
    return _dtype


@contextlib.contextmanager
def autocast(dtype: str):
    """Products in the block run in `dtype`, one of PRECISIONS."""
    global _dtype
    before, _dtype = _dtype, dtype
    try:
        yield
    finally:
        _dtype = before


def operands(*values):
    """The values (or None) as a product takes them: in half precision inside `autocast` on CUDA, else as they are."""
    if _dtype == "float32" or half_on_cpu():
        return values
    return tuple(value if value is None or value.dtype == _dtype else value.cast(_dtype) for value in values)


def half_on_cpu() -> bool:
    """Whether products are the CPU's in half precision, whose operands are rounded inside them."""
    return _dtype == "bfloat16" and not jt.flags.use_cuda


def matmul(a, b):
    """a b as jt.matmul, in float32 or from operands in half precision; the result is float32."""
    return matmul_bfloat16(a, b) if half_on_cpu() else single(jt.matmul(*operands(a, b)))


def matmul_transpose(a, b):
    """a b^T, likewise; b has two axes, a any number."""
    return matmul_bfloat16(a, b, transpose_b=True) if half_on_cpu() else single(nn.matmul_transpose(*operands(a, b)))


def bmm_transpose(a, b):
    """a b^T for each matrix of a batch, likewise."""
    return matmul_bfloat16(a, b, transpose_b=True) if half_on_cpu() else single(nn.bmm_transpose(*operands(a, b)))


def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups: int = 1):
    """nn.conv2d, inside `autocast` in half precision: without a bias the result stays in it, with one it is float32."""
    x, weight = operands(x, weight)
    if x.dtype not in HALF:
        return nn.conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    y = conv2d_half(x, weight, stride=stride, padding=padding, dilation=dilation)
    return y if bias is None else y.float32() + bias.reshape(1, -1, 1, 1)


def unavailable(dtype: str) -> str | None:
    """Why this precision cannot run on the chosen device; None where it can."""
    if dtype == "float32":
        return None
    if not jt.flags.use_cuda:
        return _unavailable_on_cpu(dtype)
    capability = min(jt.flags.cuda_archs, default=0)
    if dtype == "bfloat16" and capability < 80:
        return (f"bfloat16 needs a card of compute capability 8.0 (Ampere) or newer, and this one has "
                f"{capability / 10}. Take train.precision=float16")
    return None


def _unavailable_on_cpu(dtype: str) -> str | None:
    if dtype == "float16":
        return "float16 needs CUDA. Take bfloat16 or float32, or a GPU (--device cuda)"
    reason = bfloat16_unavailable() or ("JEA_OPS=ref turned the kernels off" if kernels.references_only() else "")
    return f"bfloat16: {reason}. Take float32" if reason else None
