"""Linear maps with weights packed once, in bfloat16 on the CPU, for inference: a convolution of one position's size."""
from __future__ import annotations

from jea._jittor import jt
from jea.ops.convolution.conv import PackedConv, conv2d_nhwc, pack_conv


def pack_linear(weight, bias=None, *, rows: int = 196) -> PackedConv:
    """A weight (out, in) and bias (out,) or None for linear_packed; `rows`: how many to expect."""
    if weight.ndim != 2:
        raise ValueError(f"pack_linear: weight is {tuple(weight.shape)}; expected (out, in)")
    return pack_conv(weight.reshape(*weight.shape, 1, 1), bias, size=(1, rows), dtype="bfloat16")


def linear_packed(x, packed: PackedConv, *, gelu: bool = False, summand=None, dtype: str = "float32"):
    """jea.ops.linear with operands in bfloat16 and sums in float32, without a gradient.

    Args:
        x: float32 or bfloat16 (..., in).
        packed: from pack_linear.
        gelu: with GELU.
        summand: float32 (..., out), added at the end, or None. Not together with `gelu`.
        dtype: of the result, float32 or bfloat16.
    """
    if gelu and summand is not None:
        raise ValueError("linear_packed: gelu and summand together; add after the call")
    shape, out = tuple(x.shape), packed.numbers["out_channels"]
    if summand is not None:
        summand = summand.reshape(1, 1, -1, out)
    with jt.no_grad():
        return conv2d_nhwc(x.reshape(1, 1, -1, shape[-1]), packed, gelu=gelu, residual=summand,
                           dtype=dtype).reshape(shape[:-1] + (out,))
