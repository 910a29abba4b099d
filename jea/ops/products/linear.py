"""Linear maps of the last axis, with GELU or a summand in the same pass."""
from __future__ import annotations

import math

from jea._jittor import jt, nn
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, FLOATS, Support
from jea.ops.function import Function

SUPPORT = Support("linear", cpu=FLOAT, cuda=FLOATS, onednn=True)

_SIZES = """
    const jea::Linear sizes{in0_shape0, in0_shape1, in1_shape0};
    const bool gelu = data["gelu"] != 0, bias = data["bias"] != 0;
"""


class _Linear(Function):
    """x (rows, in), weight (out, in), bias (out,) or None, summand (rows, out) or None."""

    def execute(self, x, weight, bias, summand, gelu):
        self.x, self.weight = x, weight
        self.numbers = {"gelu": int(gelu), "bias": int(bias is not None), "summand": int(summand is not None)}
        shape = (x.shape[0], weight.shape[0])
        keep = gelu and not jt.flags.no_grad  # GELU's argument, for the gradient
        # One kernel for all cases: what a case does not have is stood in for by what is there already.
        y, self.before = kernels.cpu_code(
            [shape, shape if keep else (1, 1)], ["float32"] * 2,
            [x, weight, weight if bias is None else bias, x if summand is None else summand],
            kernel="products/linear.h", onednn=True, data=dict(self.numbers, keep=int(keep)), source=_SIZES + """
            jea::linear_forward(sizes, gelu, in0_p, in1_p, bias ? in2_p : nullptr,
                                data["summand"] != 0 ? in3_p : nullptr, out0_p,
                                data["keep"] != 0 ? out1_p : nullptr);""")
        return y

    def grad(self, dy):
        gelu, bias = self.numbers["gelu"], self.numbers["bias"]
        dx, dweight, dbias, _ = kernels.cpu_code(
            [self.x.shape, self.weight.shape, (self.weight.shape[0] if bias else 1,), dy.shape if gelu else (1, 1)],
            ["float32"] * 4, [self.x, self.weight, self.before, dy], kernel="products/linear.h", onednn=True,
            data=self.numbers, source=_SIZES + """
            jea::linear_backward(sizes, gelu, in0_p, in1_p, in2_p, in3_p, out0_p, out1_p, bias ? out2_p : nullptr,
                                 out3_p);""")
        return dx, dweight, dbias if bias else None, dy if self.numbers["summand"] else None, None


class _LinearEpilogueCuda(Function):
    """What follows the product (rows, out): bias (out,) or None, summand (rows, out) or None."""

    def execute(self, product, bias, summand, gelu):
        splits = max(1, min(-(-product.shape[0] // 32), 256))  # of the rows, for the gradient of the bias
        self.product, self.bias = product if gelu else None, bias
        self.numbers = {"gelu": int(gelu), "bias": int(bias is not None), "summand": int(summand is not None),
                        "splits": splits}
        # One kernel for all cases: what a case does not have is stood in for by the product.
        return kernels.cuda_code(
            product.shape, product.dtype,
            [product, product if bias is None else bias, product if summand is None else summand],
            kernel="products/linear.cuh", data=self.numbers, source=_CUDA_SIZES + """
            jea::linear_forward(sizes, in0_p, bias ? in1_p : nullptr, data["summand"] != 0 ? in2_p : nullptr,
                                out0_p);""")

    def grad(self, dy):
        gelu, bias = self.numbers["gelu"], self.numbers["bias"]
        dproduct, dbias = dy, None
        if gelu or bias:
            dproduct, dbias = kernels.cuda_code(
                [dy.shape if gelu else (1, 1), self.bias.shape if bias else (1,)], [dy.dtype] * 2,
                [dy, self.product if gelu else dy, self.bias if bias else dy], kernel="products/linear.cuh",
                data=self.numbers, workspace=self.numbers["splits"] * dy.shape[1], source=_CUDA_SIZES + """
                jea::linear_backward(sizes, in1_p, bias ? in2_p : nullptr, in0_p, out0_p, out1_p, workspace);""")
        return dproduct if gelu else dy, dbias if bias else None, dy if self.numbers["summand"] else None, None


_CUDA_SIZES = """
    const jea::LinearEpilogue sizes{in0_shape0, in0_shape1, data["gelu"] != 0, (long)data["splits"]};
    const bool bias = data["bias"] != 0;
"""


def _linear_cuda(x, weight, bias, summand, gelu):
    product = nn.matmul_transpose(x, weight)  # cuBLAS, with its gradients
    if bias is None and summand is None and not gelu:
        return product
    return _LinearEpilogueCuda.apply(product, bias, summand, gelu)


def linear_reference(x, weight, bias=None, *, gelu=False, summand=None):
    """linear composed of Jittor's own functions."""
    y = nn.matmul_transpose(x, weight)
    if bias is not None:
        y = y + bias
    if gelu:
        y = y * 0.5 * (1 + jt.erf(y * math.sqrt(0.5)))
    return y if summand is None else y + summand


def linear(x, weight, bias=None, *, gelu: bool = False, summand=None, impl: str = "auto"):
    """y = x W^T + b, then GELU or plus a summand.

        gelu(h) = h Phi(h), Phi the integral of the normal distribution (the exact form, not the one with tanh)

    With h = x W^T + b and g = dL/dy, times Phi(h) + h exp(-h^2 / 2) / sqrt(2 pi) if there is a GELU:

        dL/dx = g W,   dL/dW = g^T x,   dL/db = sum g,   dL/dsummand = dL/dy

    Args:
        x: float (..., in).
        weight: (out, in).
        bias: (out,), or None.
        gelu: with GELU.
        summand: (..., out), added at the end, or None. Not together with `gelu`.
        impl: "auto", "fused" or "ref". On the CPU (float32) the kernel is oneDNN's matrix product; on CUDA (float32,
            float16, bfloat16; all of one type) bias, GELU and summand are one kernel behind cuBLAS's product, as are
            the gradients of bias and GELU.
    Returns:
        y, (..., out).
    Raises:
        ValueError: shapes that do not agree, both of GELU and summand, or "fused" where there is no kernel.
    """
    if weight.ndim != 2 or x.ndim < 2 or x.shape[-1] != weight.shape[1] or min(*x.shape, *weight.shape) < 1:
        raise ValueError(f"linear: x is {tuple(x.shape)} and weight {tuple(weight.shape)}; expected (..., in) and "
                         "(out, in), none empty")
    shape, out = tuple(x.shape), weight.shape[0]
    for name, value, wanted in (("bias", bias, (out,)), ("summand", summand, shape[:-1] + (out,))):
        if value is not None and tuple(value.shape) != wanted:
            raise ValueError(f"linear: {name} is {tuple(value.shape)}; expected {wanted}")
    if gelu and summand is not None:
        raise ValueError("linear: gelu and summand together; add after the call")
    operands = [v for v in (x, weight, bias, summand) if v is not None]
    mixed = any(v.dtype != x.dtype for v in operands)
    if not kernels.use_fused(impl, SUPPORT, *operands, unless="it takes operands of one type" if mixed else ""):
        return linear_reference(x, weight, bias, gelu=gelu, summand=summand)
    summand = None if summand is None else summand.reshape(-1, out)
    function = _linear_cuda if jt.flags.use_cuda else _Linear.apply
    return function(x.reshape(-1, shape[-1]), weight, bias, summand, gelu).reshape(shape[:-1] + (out,))
