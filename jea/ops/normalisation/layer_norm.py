"""LayerNorm with PyTorch's semantics, stable for data far from zero."""
from __future__ import annotations

import math

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.normalisation.batch_norm import moments
from jea.ops.products.half import single

_SIZES = 'const jea::LayerNorm sizes{in0_shape0, in0_shape1, data["eps"]};\n'


class _LayerNorm(kernels.Function):
    """x (rows, width); weight and bias (width,)."""

    def execute(self, x, weight, bias, eps):
        self.x, self.weight, self.numbers = x, weight, {"eps": eps}
        y, self.rows = kernels.cpu_code(
            [x.shape, (x.shape[0], 3)], ["float32"] * 2, [x, weight, bias], kernel="normalisation/layer_norm.h", data=self.numbers,
            source=_SIZES + "jea::layer_norm_forward(sizes, in0_p, in1_p, in2_p, out0_p, out1_p);")
        return y

    def grad(self, dy):
        vector = self.weight.shape
        return (*kernels.cpu_code(
            [self.x.shape, vector, vector], ["float32"] * 3, [self.x, self.weight, self.rows, dy],
            kernel="normalisation/layer_norm.h", data=self.numbers,
            source=_SIZES + "jea::layer_norm_backward(sizes, in0_p, in1_p, in2_p, in3_p, out0_p, out1_p, out2_p);"),
            None)


_CUDA_SIZES = _SIZES.replace('data["eps"]', 'data["eps"], (long)data["splits"]')


class _LayerNormCuda(kernels.Function):
    """As _LayerNorm."""

    def execute(self, x, weight, bias, eps):
        splits = max(1, min(-(-x.shape[0] // 32), 256))  # of the rows, for the gradients of weight and bias
        self.x, self.weight, self.numbers = x, weight, {"eps": eps, "splits": splits}
        y, self.rows = kernels.cuda_code(
            [x.shape, (x.shape[0], 3)], ["float32"] * 2, [x, weight, bias], kernel="normalisation/layer_norm.cuh", data=self.numbers,
            source=_CUDA_SIZES + "jea::layer_norm_forward(sizes, in0_p, in1_p, in2_p, out0_p, out1_p);")
        return y

    def grad(self, dy):
        vector = self.weight.shape
        return (*kernels.cuda_code(
            [self.x.shape, vector, vector], ["float32"] * 3, [self.x, self.weight, self.rows, dy],
            kernel="normalisation/layer_norm.cuh", data=self.numbers, workspace=2 * self.numbers["splits"] * vector[0],
            source=_CUDA_SIZES + """
            jea::layer_norm_backward(sizes, in0_p, in1_p, in2_p, in3_p, out0_p, out1_p, out2_p, workspace);"""), None)


def layer_norm_reference(x, weight, bias, *, eps=1e-5):
    """layer_norm composed of Jittor's own functions."""
    _, centred, variance = moments(x, list(range(x.ndim - weight.ndim, x.ndim)))
    return centred / jt.sqrt(variance + eps) * weight + bias


def layer_norm(x, weight, bias, *, eps: float = 1e-5, impl: str = "auto"):
    """y = (x - E[x]) / sqrt(Var[x] + eps) weight + bias over the last axes, those of `weight`.

    With h = (x - E[x]) / sqrt(Var[x] + eps), g = dL/dy weight and means over those axes:

        dL/dx = (g - mean(g) - h mean(g h)) / sqrt(Var[x] + eps)
        dL/dweight = sum dL/dy h,   dL/dbias = sum dL/dy        [over all other axes]

    The fused kernels (float32) sum in two passes.

    Args:
        x: float (..., *normalised shape); half precision becomes float32.
        weight, bias: of the normalised shape.
        eps: added to the biased variance.
        impl: "auto", "fused" or "ref".
    Returns:
        y, of x's shape.
    Raises:
        ValueError: shapes that do not agree, or "fused" where there is no kernel.
    """
    shape, normalised = tuple(x.shape), tuple(weight.shape)
    if tuple(bias.shape) != normalised or shape[len(shape) - len(normalised):] != normalised:
        raise ValueError(f"layer_norm: x is {shape}, weight {normalised} and bias {tuple(bias.shape)}; expected the "
                         "last axes of x")
    x = single(x)
    possible = all(v.dtype == "float32" for v in (x, weight, bias))
    if not kernels.use_fused(impl, name="layer_norm", possible=possible, reason="it takes float32"):
        return layer_norm_reference(x, weight, bias, eps=eps)
    width = math.prod(normalised)
    function = _LayerNormCuda if jt.flags.use_cuda else _LayerNorm
    return function.apply(x.reshape(-1, width), weight.reshape(width), bias.reshape(width), float(eps)).reshape(shape)
