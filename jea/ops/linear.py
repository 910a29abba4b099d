"""Linear maps of the last axis, with GELU or a summand in the same pass."""
from __future__ import annotations

import math

from jea._jittor import jt, nn
from jea.ops import _jit

_SIZES = """
    const jea::Linear sizes{in0_shape0, in0_shape1, in1_shape0};
    const bool gelu = data["gelu"] != 0, bias = data["bias"] != 0;
"""


class _Linear(jt.Function):
    """x (rows, in), weight (out, in), bias (out,) or None, summand (rows, out) or None."""

    def execute(self, x, weight, bias, summand, gelu):
        self.x, self.weight = x, weight
        self.numbers = {"gelu": int(gelu), "bias": int(bias is not None), "summand": int(summand is not None)}
        shape = (x.shape[0], weight.shape[0])
        keep = gelu and not jt.flags.no_grad  # GELU's argument, for the gradient
        # One kernel for all cases: what a case does not have is stood in for by what is there already.
        y, self.before = _jit.cpu_code(
            [shape, shape if keep else (1, 1)], ["float32"] * 2,
            [x, weight, weight if bias is None else bias, x if summand is None else summand], kernel="linear.h",
            onednn=True, data=dict(self.numbers, keep=int(keep)), source=_SIZES + """
            jea::linear_forward(sizes, gelu, in0_p, in1_p, bias ? in2_p : nullptr,
                                data["summand"] != 0 ? in3_p : nullptr, out0_p,
                                data["keep"] != 0 ? out1_p : nullptr);""")
        return y

    def grad(self, dy):
        gelu, bias = self.numbers["gelu"], self.numbers["bias"]
        dx, dweight, dbias, _ = _jit.cpu_code(
            [self.x.shape, self.weight.shape, (self.weight.shape[0] if bias else 1,), dy.shape if gelu else (1, 1)],
            ["float32"] * 4, [self.x, self.weight, self.before, dy], kernel="linear.h", onednn=True, data=self.numbers,
            source=_SIZES + """
            jea::linear_backward(sizes, gelu, in0_p, in1_p, in2_p, in3_p, out0_p, out1_p, bias ? out2_p : nullptr,
                                 out3_p);""")
        return dx, dweight, dbias if bias else None, dy if self.numbers["summand"] else None, None


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
        impl: "auto", "fused" or "ref". The kernel (CPU, float32) is oneDNN's matrix product.
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
    floats = [v for v in (x, weight, bias, summand) if v is not None]
    onednn = _jit.onednn_include() is not None
    possible = not jt.flags.use_cuda and onednn and all(v.dtype == "float32" for v in floats)
    if not _jit.use_fused(impl, name="linear", possible=possible,
                          reason="it takes float32 on the CPU" if onednn else "Jittor runs without oneDNN"):
        return linear_reference(x, weight, bias, gelu=gelu, summand=summand)
    summand = None if summand is None else summand.reshape(-1, out)
    return _Linear.apply(x.reshape(-1, shape[-1]), weight, bias, summand, gelu).reshape(shape[:-1] + (out,))
