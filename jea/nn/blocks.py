"""Small building blocks that two or more models share."""
from __future__ import annotations

import math

import numpy as np

from jea._jittor import jt, nn
from jea.errors import ConfigError
from jea.nn import precision
from jea.nn.norm import BatchNorm2d
from jea.ops import can_block, conv2d_blocked, from_blocked, linear, transpose
from jea.ops.convolution.blocked import conv2d_from_blocked
from jea.ops.products.half import single


class Conv(nn.Conv):
    """nn.Conv that takes blocked activations (jea.ops.blocked) as well and hands them on blocked where it can.

    `blocked` in the call makes blocked activations of a picture. Stride, padding and dilation are equal on both axes.
    Under jea.nn.precision.autocast it runs in half precision; without bias its result stays in it.
    """

    def execute(self, x, *, blocked: bool = False):
        if x.ndim == 5 or blocked:
            convolve = conv2d_blocked if can_block(self.out_channels) else conv2d_from_blocked
            return convolve(x, self.weight, self.bias, stride=self.stride[0], padding=self.padding[0],
                            dilation=self.dilation[0])
        if precision.current() == "float32":
            return super().execute(x)
        return precision.conv2d(x, self.weight, self.bias, stride=self.stride[0], padding=self.padding[0],
                                dilation=self.dilation[0])


class Linear(nn.Linear):
    """y = x W^T + b over the last axis; initialised as nn.Linear. See jea.ops.linear.

    Under jea.nn.precision.autocast all but the summand is half precision; what comes out is float32.
    """

    def execute(self, x, *, gelu: bool = False, summand=None):
        if precision.current() == "float32":
            return linear(x, self.weight, self.bias, gelu=gelu, summand=summand)
        y = single(linear(*precision.operands(x, self.weight, self.bias), gelu=gelu))
        return y if summand is None else y + summand


def project(layer: Linear, dropout, x, summand=None):
    """dropout(layer(x)), plus the summand if there is one: in one pass where the dropout does nothing."""
    if dropout.p == 0 or not dropout.is_training():
        return layer(x, summand=summand)
    y = dropout(layer(x))
    return y if summand is None else y + summand


def checked_pictures(x, model: str):
    """x, or ValueError in the name of the model unless it is a float Var (B, 3, H, W)."""
    if not isinstance(x, jt.Var):
        raise ValueError(f"{model}: got {type(x).__name__}; expected a jt.Var: jt.array(picture)")
    if x.ndim != 4 or x.shape[1] != 3 or "float" not in str(x.dtype):
        raise ValueError(f"{model}: got {x.dtype} {tuple(x.shape)}; expected float (B, 3, H, W)")
    return x


def plain(x):
    """(B, C, H, W), whether x is that or blocked."""
    return from_blocked(x) if x.ndim == 5 else x


class ConvBNReLU(nn.Module):
    """Convolution without bias, BatchNorm, ReLU; "same" padding. (B, C, H, W) -> (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int):
        self.conv = Conv(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = BatchNorm2d(out_channels)

    def execute(self, x):
        return self.bn(self.conv(x), relu=True)


class FCNHead(nn.Module):
    """Auxiliary head of segmentation networks, for training only: 3x3 convolution, BatchNorm, ReLU, Dropout, 1x1.

    (B, C, H, W) -> logits (B, num_classes, H, W). Parameter names are mmsegmentation's and JSeg's.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, *, dropout: float = 0.1):
        self.convs = nn.Sequential(ConvBNReLU(in_channels, channels, kernel_size=3))
        self.dropout = nn.Dropout(dropout)
        self.conv_seg = Conv(channels, num_classes, 1)

    def execute(self, x):
        return self.conv_seg(self.dropout(single(self.convs(x))))


class Dropout2d(nn.Module):
    """Zeroes whole channels with probability p while training and scales the others by 1 / (1 - p)."""

    def __init__(self, p: float):
        if not 0 <= p < 1:
            raise ConfigError(f"Dropout2d: p is {p}; expected 0 <= p < 1")
        self.p = p

    def execute(self, x):
        if self.p == 0 or not self.is_training():
            return x
        blocks = x.shape[4:]  # of blocked activations
        keep = (jt.rand(x.shape[:2] + blocks + [1, 1]) >= self.p).float32()
        if blocks:
            keep = transpose(keep, (0, 1, 3, 4, 2))
        return single(x) * (keep / (1 - self.p))


def init_normal_fan_out(weight) -> None:
    """w ~ N(0, sqrt(2 / (kernel size x output channels))): He initialisation by fan-out (upstream model_torch.py)."""
    fan_out = weight.shape[0] * math.prod(weight.shape[2:])
    weight.assign(jt.randn(weight.shape) * math.sqrt(2.0 / fan_out))


def copy_transposed(source, target) -> None:
    """target <- source with its first two axes swapped, as values: an assigned Var would hand its gradient on to source."""
    target.assign(np.ascontiguousarray(source.numpy().swapaxes(0, 1)))
