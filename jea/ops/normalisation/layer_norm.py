"""LayerNorm with PyTorch's semantics, stable for data far from zero."""
from __future__ import annotations

import math

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, Support
from jea.ops.function import Function
from jea.ops.normalisation.batch_norm import moments
from jea.ops.products.half import single

SUPPORT = Support("layer_norm", cpu=FLOAT, cuda=FLOAT)

_SIZES = 'const jea::LayerNorm sizes{in0_shape0, in0_shape1, data["eps"]};\n'


class _LayerNorm(Function):
    """x (rows, width); weight and bias (width,)."""

    def execute(self, x, weight, bias, eps):
        self.x, self.weight, self.numbers = x, weight, {"eps": eps}
        y, self.rows = kernels.cpu_code(
            [x.shape, (x.shape[0], 3)], ["float32"] * 2, [x, weight, bias], kernel="normalisation/layer_norm.h",
            data=self.numbers, source=_SIZES + "jea::layer_norm_forward(sizes, in0_p, in1_p, in2_p, out0_p, out1_p);")
        return y

    def grad(self, dy):
        vector = self.weight.shape
        return (*kernels.cpu_code(
            [self.x.shape, vector, vector], ["float32"] * 3, [self.x, self.weight, self.rows, dy],
            kernel="normalisation/layer_norm.h", data=self.numbers,
            source=_SIZES + "jea::layer_norm_backward(sizes, in0_p, in1_p, in2_p, in3_p, out0_p, out1_p, out2_p);"),
            None)


WIDEST = 1024  # of a row that a warp of CUDA holds in registers

_CUDA_SIZES = _SIZES.replace('data["eps"]', 'data["eps"], (long)data["splits"]')


def cuda_vectors(width: int) -> tuple:
    """How a lane holds its part of a row: so many vectors, of so many values each."""
    each = 4 if width % 4 == 0 else 1
    return -(-width // (32 * each)), each


class _LayerNormCuda(Function):
    """As _LayerNorm."""

    def execute(self, x, weight, bias, eps):
        splits = max(1, min(-(-x.shape[0] // 32), 256))  # of the rows, for the gradients of weight and bias
        self.x, self.weight, self.numbers = x, weight, {"eps": eps, "splits": splits}
        y, self.rows = self.run([x.shape, (x.shape[0], 3)], [x, weight, bias], [0, 1, 2],
                                "jea::layer_norm_forward<K, V>(sizes, in0_p, in1_p, in2_p, out0_p, out1_p);")
        return y

    def grad(self, dy):
        vector = self.weight.shape
        return (*self.run(
            [self.x.shape, vector, vector], [self.x, self.weight, self.rows, dy], [0, 1, 3],
            "jea::layer_norm_backward<K, V>(sizes, in0_p, in1_p, in2_p, in3_p, out0_p, out1_p, out2_p, workspace);",
            workspace=2 * self.numbers["splits"] * vector[0]), None)

    def run(self, shapes, inputs, in_vectors, call, workspace=0):
        count, each = cuda_vectors(self.weight.shape[0])
        single = f"{call.replace('<K, V>', f'<{count * each}, 1>')}"
        if each > 1:  # what begins at any address is read value by value
            starts = " && ".join(f"jea::aligned(in{i}_p)" for i in in_vectors)
            call = f"if ({starts}) {call.replace('<K, V>', f'<{count}, {each}>')}\nelse {single}"
        else:
            call = single
        return kernels.cuda_code(shapes, ["float32"] * len(shapes), inputs, kernel="normalisation/layer_norm.cuh",
                                 data=self.numbers, workspace=workspace, source=_CUDA_SIZES + call)


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
    width = math.prod(normalised)
    wide = width > WIDEST and jt.flags.use_cuda
    if not kernels.use_fused(impl, SUPPORT, x, weight, bias,
                             unless=f"on CUDA it takes rows of up to {WIDEST} values" if wide else ""):
        return layer_norm_reference(x, weight, bias, eps=eps)
    function = _LayerNormCuda if jt.flags.use_cuda else _LayerNorm
    return function.apply(x.reshape(-1, width), weight.reshape(width), bias.reshape(width), float(eps)).reshape(shape)
