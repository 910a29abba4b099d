"""Mixed precision: products in float16 or bfloat16, parameters, statistics, sums and losses in float32.

Inside `autocast` the layers of jea.nn cast the operands of convolutions, linear maps and attention's products. Their
gradients follow: a cast's gradient is cast back, so that a parameter's gradient is float32 like the parameter. What
comes out of a convolution without bias stays in half precision for the BatchNorm behind it, which reads and writes that
(its sums are float32); every other product hands on float32.

Jittor's own switch, auto_mixed_precision_level, is not used: it chooses the dtype by operator in the core, for all code
that runs, knows float16 only (jt.array and jt.random cast to it), keeps sums of activations in it at its higher levels,
and leaves the convolutions' sums to the dtype of their result (jea/ops/half.py).
"""
from __future__ import annotations

import contextlib

import numpy as np

from jea import ranks
from jea._jittor import jt, nn
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
    """The values (or None) as a product takes them: in half precision inside `autocast`, else as they are."""
    if _dtype == "float32":
        return values
    return tuple(value if value is None or value.dtype == _dtype else value.cast(_dtype) for value in values)


def matmul(a, b):
    """a b as jt.matmul, in float32 or from operands in half precision; the result is float32."""
    return single(jt.matmul(*operands(a, b)))


def matmul_transpose(a, b):
    """a b^T, likewise; b has two axes, a any number."""
    return single(nn.matmul_transpose(*operands(a, b)))


def bmm_transpose(a, b):
    """a b^T for each matrix of a batch, likewise."""
    return single(nn.bmm_transpose(*operands(a, b)))


def conv2d(x, weight, bias=None, *, stride: int = 1, padding: int = 0, dilation: int = 1):
    """nn.conv2d, inside `autocast` in half precision: without a bias the result stays in it, with one it is float32."""
    x, weight = operands(x, weight)
    if x.dtype not in HALF:
        return nn.conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation)
    y = conv2d_half(x, weight, stride=stride, padding=padding, dilation=dilation)
    return y if bias is None else y.float32() + bias.reshape(1, -1, 1, 1)


def unavailable(dtype: str) -> str | None:
    """Why training in this precision cannot run on the chosen device; None where it can."""
    if dtype == "float32":
        return None
    if not jt.flags.use_cuda:
        return (f"{dtype} needs CUDA: on the CPU Jittor has no convolution or matrix product in half precision, and "
                "elementwise kernels that do not compile for it. Take train.precision=float32, or a GPU (--device cuda)")
    capability = min(jt.flags.cuda_archs, default=0)
    if dtype == "bfloat16" and capability < 80:
        return (f"bfloat16 needs a card of compute capability 8.0 (Ampere) or newer, and this one has "
                f"{capability / 10}. Take train.precision=float16")
    return None


def square_sums(gradients: list) -> np.ndarray:
    """The sum of the squares of each gradient, in float64: not finite where a gradient is not, and only there.

    (jt.isfinite would do for that, but Python 3.12 crashes while Jittor compiles it: its source calls Python from a
    compiling thread.)
    """
    return jt.concat([g.float64().sqr().sum().reshape(1) for g in gradients]).numpy()


class LossScaler:
    """Multiplies a loss, so that gradients that pass through float16 are not rounded to zero (Micikevicius et al.,
    arXiv 1710.03740).

    The scale starts at 2^16, is halved at a step whose gradients are not finite, which is then left out, and doubled
    after `patience` good steps in a row.
    """

    def __init__(self, *, scale: float = 2.0 ** 16, patience: int = 2000):
        self.scale, self.patience, self.good_steps = scale, patience, 0

    def unscale(self, gradients: list) -> bool:
        """Divide gradients by the scale, in place; whether all of them are finite, on all ranks."""
        finite = np.isfinite(square_sums(gradients)).all()
        for g in gradients:
            g.update(g * (1 / self.scale))  # exact: a power of two
        return not ranks.total([not finite]).any()

    def adjust(self, finite: bool) -> None:
        """Set the scale for the next step."""
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good_steps == self.patience:
            self.scale, self.good_steps = self.scale * 2, 0

    @property
    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def restore(self, state: dict) -> None:
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
