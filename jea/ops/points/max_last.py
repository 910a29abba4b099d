"""Maximum over the last axis, with the gradient of PyTorch's max pooling."""
from __future__ import annotations

import math

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, Support
from jea.ops.function import Function

SUPPORT = Support("max_last", cpu=FLOAT, cuda=FLOAT)


class _MaxLast(Function):
    def execute(self, x):
        self.shape = tuple(x.shape)
        y, self.places = kernels.code([self.shape[:1]] * 2, ["float32", "int32"], [x], kernel="points/points",
                                   source="jea::max_last(in0_p, out0_p, out1_p, in0_shape0, in0_shape1);")
        return y

    def grad(self, dy):
        return kernels.code(self.shape, "float32", [dy, self.places], kernel="points/points",
                         source="jea::max_last_backward(in0_p, in1_p, out0_p, out0_shape0, out0_shape1);")


def max_last_reference(x):
    """max_last composed of Jittor's own functions."""
    place = jt.argmax(x.detach(), -1)[0].unsqueeze(-1)
    return jt.gather(x, -1, place).squeeze(-1)


def max_last(x, *, impl: str = "auto"):
    """y[...] = max_k x[..., k]; a NaN wins. The gradient goes to the first of equals, as PyTorch's does.

    Jittor's own max gives the whole gradient to each of equals (duplicated points) and overlooks NaN.

    Args:
        x: float (..., K), of rank 2 or more, K at least 1.
        impl: "auto", "fused" or "ref" (which overlooks NaN).
    Raises:
        ValueError: another shape, or "fused" where there is no kernel.
    """
    shape = tuple(x.shape)
    if len(shape) < 2 or shape[-1] < 1:
        raise ValueError(f"max_last: got shape {shape}; expected (..., K), at least two axes and K at least 1")
    if not kernels.use_fused(impl, SUPPORT, x):
        return max_last_reference(x)
    return _MaxLast.apply(x.reshape(math.prod(shape[:-1]), shape[-1])).reshape(shape[:-1])
