"""Matrix products with operands rounded to bfloat16 and sums in float32, on the CPU, with gradients."""
from __future__ import annotations

import math

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.convolution.conv import bfloat16_unavailable
from jea.ops.function import Function

_SIZES = """
    const auto number = [&](const char* name) { return (int64_t)data[name]; };
    const jea::HalfProduct sizes{number("batch"), number("m"), number("k"), number("n"), number("transposed_a") != 0,
                                 number("transposed_b") != 0};
"""


def to_bfloat16(x):
    """x rounded to the nearest bfloat16. (Jittor's own cast on the CPU drops the digits, which is a bias.)"""
    if x.dtype == "bfloat16" or jt.flags.use_cuda:
        return x.cast("bfloat16")
    return _Round.apply(x)


class _Round(Function):
    def execute(self, x):
        return kernels.cpu_code(x.shape, "bfloat16", [x], kernel="products/bfloat16.h", onednn=True,
                                source="jea::round_to_half(in0_p, out0_p, in0->num);")

    def grad(self, dy):
        return dy.float32()


def _product(a, b, transposed_a: bool, transposed_b: bool):
    """Float32 (batch, rows, columns) each."""
    (batch, m, k), n = a.shape, b.shape[1 if transposed_b else 2]
    if transposed_a:
        m, k = k, m
    numbers = {"batch": batch, "m": m, "k": k, "n": n, "transposed_a": int(transposed_a),
               "transposed_b": int(transposed_b)}
    return kernels.cpu_code([(batch, m, n), a.shape, b.shape], ["float32", "bfloat16", "bfloat16"], [a, b],
                            kernel="products/bfloat16.h", onednn=True, data=numbers,
                            source=_SIZES + "jea::half_product(sizes, in0_p, in1_p, out1_p, out2_p, out0_p);")[0]


class _Product(Function):
    def execute(self, a, b, transposed_b):
        self.a, self.b, self.transposed_b = a, b, transposed_b
        return _product(a, b, False, transposed_b)

    def grad(self, dy):
        da = _product(dy, self.b, False, not self.transposed_b)
        db = _product(dy, self.a, True, False) if self.transposed_b else _product(self.a, dy, True, False)
        return da, db, None


def matmul_bfloat16(a, b, *, transpose_b: bool = False):
    """a b, or a b^T: operands rounded to bfloat16, sums and result in float32; the gradients' products likewise.

    Args:
        a: float32 (..., m, k).
        b: float32 (k, n), or (..., k, n) with a's leading axes; with transpose_b (n, k), or (..., n, k).
    Raises:
        ValueError: shapes or dtypes that do not agree, or a device that it does not run on.
    """
    problem = bfloat16_unavailable()
    if problem:
        raise ValueError(f"matmul_bfloat16: not possible here: {problem}")
    shape, inner = tuple(a.shape), b.shape[-1 if transpose_b else -2] if b.ndim > 1 else None
    if (a.ndim < 2 or inner != shape[-1] or b.ndim > 2 and tuple(b.shape[:-2]) != shape[:-2]
            or min(*shape, *b.shape) < 1
            or a.dtype != "float32" or b.dtype != "float32"):
        raise ValueError(f"matmul_bfloat16: got {a.dtype} {shape} and {b.dtype} {tuple(b.shape)}; expected float32 "
                         f"(..., m, k) and {'(n, k)' if transpose_b else '(k, n)'} or the same with a's leading axes")
    n = b.shape[-2 if transpose_b else -1]
    batch = math.prod(shape[:-2]) if b.ndim > 2 else 1
    y = _Product.apply(a.reshape(batch, -1, shape[-1]), b.reshape(batch, *b.shape[-2:]), transpose_b)
    return y.reshape(shape[:-1] + (n,))
