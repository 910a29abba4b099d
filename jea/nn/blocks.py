"""Small building blocks that two or more models share."""
from __future__ import annotations

import math

import numpy as np

from jea._jittor import jt, nn
from jea.errors import ConfigError
from jea.nn import formats, precision
from jea.nn.fold import Foldable, fold_norms
from jea.nn.formats import on_pictures
from jea.nn.norm import BatchNorm2d
from jea.ops import linear, pack_conv
from jea.ops.products.half import single
from jea.ops.products.packed import linear_packed, pack_linear


class Conv(nn.Conv, Foldable):
    """relu?(conv(x) + residual?) of a Var (B, C, H, W) or an Activation (jea.nn.formats); an nn.Conv else.

    Under jea.nn.precision.autocast it runs in half precision; without bias its result stays in it.
    """

    scale = None  # of each output channel: a folded BatchNorm, until the weights are packed
    packed = None
    expected_size = 65  # height and width that the layout of packed weights is chosen for

    @on_pictures
    def execute(self, x, *, residual=None, relu: bool = False, reuse: bool = False, wide: bool = False):
        """reuse: the result may take over the residual's memory. wide: the result is float32: logits."""
        stride, padding, dilation = map(_one_number, (self.stride, self.padding, self.dilation))
        return formats.convolution(x, self.weight, self.bias, stride=stride, padding=padding, dilation=dilation,
                                   groups=self.groups, residual=residual, relu=relu, reuse=reuse, wide=wide,
                                   packed=self.packed)

    @staticmethod
    def of(conv: nn.Conv) -> Conv:
        """A convolution of Jittor's as one of these, with the same Vars."""
        if isinstance(conv, Conv):
            return conv
        new = Conv.__new__(Conv)
        vars(new).update(vars(conv))
        return new

    def pack(self, dtype: str) -> None:
        geometry = [_one_number(pair) for pair in (self.stride, self.padding, self.dilation)]
        if formats.chosen().layout == "nhwc" and not jt.flags.use_cuda and self.groups == 1 \
                and all(isinstance(number, int) for number in geometry):
            scale = None if self.scale is None else jt.array(self.scale)
            self.packed = pack_conv(self.weight, self.bias, scale=scale, stride=geometry[0], padding=geometry[1],
                                    dilation=geometry[2], size=(self.expected_size,) * 2, dtype=dtype)
            self.weight = self.bias = None
        elif self.scale is not None:
            self.weight = self.weight * jt.array(self.scale).reshape(-1, 1, 1, 1)
        self.scale = None


def _one_number(pair):
    """Of both axes, if they are equal."""
    return pair[0] if pair[0] == pair[1] else tuple(pair)


def conv_norm(conv, norm, x, *, residual=None, relu: bool = True, reuse: bool = False):
    """relu?(norm(conv(x)) + residual?): one call where the norm is folded."""
    conv = Conv.of(conv)
    if norm.folded:
        return conv(x, residual=residual, relu=relu, reuse=reuse)
    return norm(conv(x), residual=residual, relu=relu)


class Linear(nn.Linear, Foldable):
    """y = x W^T + b over the last axis; initialised as nn.Linear. See jea.ops.linear.

    Under jea.nn.precision.autocast all but the summand is half precision; what comes out is float32.
    """

    packs, packed = ("bfloat16",), None

    def execute(self, x, *, gelu: bool = False, summand=None, between: bool = False):
        """between: the result goes into another Linear, so that it may be in half precision."""
        if self.packed is not None:
            return linear_packed(x, self.packed, gelu=gelu, summand=summand, dtype="bfloat16" if between else "float32")
        if precision.current() == "float32":
            return linear(x, self.weight, self.bias, gelu=gelu, summand=summand)
        if not jt.flags.use_cuda:
            return self._on_cpu(x, gelu, summand)
        y = single(linear(*precision.operands(x, self.weight, self.bias), gelu=gelu))
        return y if summand is None else y + summand


    def _on_cpu(self, x, gelu, summand):
        """In bfloat16, with gradients."""
        y = precision.matmul_transpose(x, self.weight)
        y = y if self.bias is None else y + self.bias
        y = y * 0.5 * (1 + jt.erf(y * 0.5 ** 0.5)) if gelu else y
        return y if summand is None else y + summand

    @staticmethod
    def of(weight, bias) -> Linear:
        """A layer with these weights (out, in) and bias, numpy."""
        layer = Linear.__new__(Linear)
        layer.out_features, layer.in_features = weight.shape
        layer.weight, layer.bias = (jt.array(np.ascontiguousarray(v, np.float32)) for v in (weight, bias))
        return layer

    def pack(self, dtype: str) -> None:
        if not jt.flags.use_cuda:
            self.packed = pack_linear(self.weight, self.bias)
            self.weight = self.bias = None


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


class ConvBNReLU(Foldable):
    """Convolution without bias, BatchNorm, ReLU; "same" padding. (B, C, H, W) -> (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int):
        self.conv = Conv(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = BatchNorm2d(out_channels)

    @on_pictures
    def execute(self, x):
        return conv_norm(self.conv, self.bn, x)

    def fold(self):
        self.conv = Conv.of(self.conv)
        fold_norms(vars(self), ("conv", "bn"))
        return self


class FCNHead(nn.Module):
    """Auxiliary head of segmentation networks, for training only: 3x3 convolution, BatchNorm, ReLU, Dropout, 1x1.

    (B, C, H, W) -> logits (B, num_classes, H, W). Parameter names are mmsegmentation's and JSeg's.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, *, dropout: float = 0.1):
        self.convs = nn.Sequential(ConvBNReLU(in_channels, channels, kernel_size=3))
        self.dropout = nn.Dropout(dropout)
        self.conv_seg = Conv(channels, num_classes, 1)

    @on_pictures
    def execute(self, x):
        return self.conv_seg(dropout(self.dropout, self.convs(x)), wide=True)


def dropout(layer, x):
    """An nn.Dropout of an Activation."""
    return formats.dropout(x, layer.p) if layer.p and layer.is_training() else x


class Dropout2d(nn.Module):
    """Zeroes whole channels with probability p while training and scales the others by 1 / (1 - p)."""

    def __init__(self, p: float):
        if not 0 <= p < 1:
            raise ConfigError(f"Dropout2d: p is {p}; expected 0 <= p < 1")
        self.p = p

    @on_pictures
    def execute(self, x):
        if self.p == 0 or not self.is_training():
            return x
        keep = (jt.rand(x.shape[:2]) >= self.p).float32()
        return formats.scale_channels(x, keep / (1 - self.p))


def init_normal_fan_out(weight) -> None:
    """w ~ N(0, sqrt(2 / (kernel size x output channels))): He initialisation by fan-out (upstream model_torch.py)."""
    fan_out = weight.shape[0] * math.prod(weight.shape[2:])
    weight.assign(jt.randn(weight.shape) * math.sqrt(2.0 / fan_out))


def copy_transposed(source, target) -> None:
    """target <- source with its first two axes swapped, as values: an assigned Var would hand its gradient on."""
    target.assign(np.ascontiguousarray(source.numpy().swapaxes(0, 1)))
