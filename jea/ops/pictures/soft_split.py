"""Overlapping square patches of a picture as tokens: the soft split of T2T-ViT (PyTorch's Unfold, transposed)."""
from __future__ import annotations

from jea._jittor import nn
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, FLOATS, Support
from jea.ops.function import Function
from jea.ops.shapes.transpose import transpose

SUPPORT = Support("soft_split", cpu=FLOAT, cuda=FLOATS)

_SIZES = """
    const jea::SoftSplit sizes{(long)data["batch"], (long)data["channels"], (long)data["height"], (long)data["width"],
                               (long)data["kernel"], (long)data["stride"], (long)data["padding"],
                               data["channels_last"] != 0};
"""


class _SoftSplit(Function):
    def execute(self, x, numbers, shape):
        self.shape, self.numbers = x.shape, numbers
        return kernels.code(shape, x.dtype, [x], kernel="pictures/soft_split", data=numbers,
                         source=_SIZES + "jea::soft_split_forward(sizes, in0_p, out0_p);")

    def grad(self, dy):
        return (kernels.code(self.shape, dy.dtype, [dy], kernel="pictures/soft_split", data=self.numbers,
                          source=_SIZES + "jea::soft_split_backward(sizes, in0_p, out0_p);"), None, None)


def soft_split_reference(x, *, kernel_size, stride, padding, channels_last=False):
    """soft_split composed of Jittor's own functions."""
    if channels_last:
        x = transpose(x, (0, 3, 1, 2))
    return transpose(nn.unfold(x, kernel_size, padding=padding, stride=stride), (0, 2, 1))


def soft_split(x, *, kernel_size: int, stride: int, padding: int, channels_last: bool = False, impl: str = "auto"):
    """The patches of a picture, row by row, each as one token; zeros beyond the border.

        y[b, r W' + q, (c k + i) k + j] = x[b, c, r stride + i - padding, q stride + j - padding]

    Args:
        x: float (B, C, H, W), or (B, H, W, C) with `channels_last`.
        kernel_size: k, side of a patch.
        stride, padding: as in a convolution, equal on both axes.
        impl: "auto", "fused" or "ref".
    Returns:
        (B, H' W', C k^2) with H' = floor((H + 2 padding - k) / stride) + 1, W' likewise.
    Raises:
        ValueError: another rank, a picture too small for one patch, or "fused" where there is no kernel.
    """
    if x.ndim != 4:
        raise ValueError(f"soft_split: x has shape {tuple(x.shape)}; expected four axes")
    batch, channels, height, width = (x.shape[i] for i in ((0, 3, 1, 2) if channels_last else range(4)))
    rows, columns = ((size + 2 * padding - kernel_size) // stride + 1 for size in (height, width))
    if min(rows, columns) < 1:
        raise ValueError(f"soft_split: picture {height} x {width} is too small for patches of {kernel_size} with "
                         f"padding {padding}")
    geometry = {"stride": stride, "padding": padding}
    if not kernels.use_fused(impl, SUPPORT, x):
        return soft_split_reference(x, kernel_size=kernel_size, channels_last=channels_last, **geometry)
    numbers = dict(geometry, batch=batch, channels=channels, height=height, width=width, kernel=kernel_size,
                   channels_last=int(channels_last))
    return _SoftSplit.apply(x, numbers, (batch, rows * columns, channels * kernel_size ** 2))
