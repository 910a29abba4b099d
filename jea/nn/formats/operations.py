"""Operations on Activations, and the table of what runs them."""
from __future__ import annotations

import functools

from jea._jittor import jt, nn
from jea.nn import precision
from jea.nn.formats.activation import Activation, inferring, plain
from jea.nn.formats.way import note
from jea.ops import batch_norm as batch_norm_nchw
from jea.ops import (
    batch_norm_blocked,
    can_block,
    conv2d_blocked,
    conv2d_nhwc,
    max_pool_blocked,
    max_pool_nhwc,
    resize_bilinear,
    transpose,
)
from jea.ops import double_norm as double_norm_of
from jea.ops import external_attention as external_attention_of
from jea.ops.convolution import cudnn
from jea.ops.convolution.blocked import conv2d_from_blocked
from jea.ops.products.bfloat16 import to_bfloat16
from jea.ops.products.half import HALF, single


def _runs(operation: str, layout: str, dtype: str):
    """The table's entry for an operation on the device that is on, and the layout that it works in."""
    device, rows = "cuda" if jt.flags.use_cuda else "cpu", _TABLE[operation]
    for key in ((device, layout, dtype), (device, layout, "float32"), (device, "nchw", dtype)):
        if key in rows:
            return rows[key], key
    return rows[device, "nchw", "float32"], (device, "nchw", "float32")


def _at(operation: str, x: Activation):
    """What runs the operation where x lies, and x as it takes it: converted, if nothing there does."""
    run, (_, layout, dtype) = _runs(operation, x.layout, x.dtype)
    x = x.to(layout, f"{operation} has no kernel in {x.layout}")
    note(operation, f"{layout} {dtype}", x.shape)
    return run, x.like(_as(x.var, dtype))


def convolution(x: Activation, weight, bias=None, *, stride=1, padding=0, dilation=1, groups: int = 1,
                residual=None, relu: bool = False, reuse: bool = False, wide: bool = False, packed=None,
                scale=None) -> Activation:
    """relu?(conv(x) + bias + residual?) in the format of x's network.

    Args:
        weight, bias: (O, I / groups, kH, kW); (O,) or None.
        stride, padding, dilation: a number, or one for each axis. Those and groups are Jittor's own convolution's.
        residual: an Activation of the result's shape, or None; with `reuse` its memory may become the result's.
        wide: the result is float32 in every format, as logits are.
        packed: weight and bias in the form that `inference` takes (jea.ops.pack_conv), or None.
        scale: (O,), constants that the weights of each output are multiplied with, or None.
    """
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    if scale is not None and x.format.layout == "blocked" and can_block(weight.shape[0]) and groups == 1:
        geometry["scale"] = scale  # without a copy of the weights
    elif scale is not None:
        weight = weight * scale.reshape(-1, 1, 1, 1)
    if groups == 1 and not any(isinstance(number, tuple) for number in geometry.values()):
        run = _runs("convolution", *x.format[:2])[0]
    else:
        run, geometry["groups"] = _conv_nchw, groups
    y = run(x, weight, bias, geometry, residual, relu, reuse, wide, packed)
    note("convolution", f"{y.layout} {y.dtype}", y.shape)
    return y


def _epilogue(y: Activation, residual, relu: bool) -> Activation:
    y = y if residual is None else y + residual
    return y.like(nn.relu(y.var)) if relu else y


def _conv_nchw(x, weight, bias, geometry, residual, relu, reuse, wide, packed):
    y = precision.conv2d(x.to("nchw").var, weight, bias, **geometry)
    return _epilogue(Activation(y, "nchw", x.format), residual, relu)


def _conv_blocked(x, weight, bias, geometry, residual, relu, reuse, wide, packed):
    x = x.to("blocked" if can_block(x.channels) else "nchw")
    if can_block(weight.shape[0]):
        residual = None if residual is None else residual.to("blocked").var
        y = conv2d_blocked(x.var, weight, bias, residual=residual, relu=relu, dtype=x.format.dtype, **geometry)
        return Activation(y, "blocked", x.format)
    y = conv2d_from_blocked(x.var, weight, bias, dtype=x.format.dtype, **geometry)
    return _epilogue(Activation(y, "nchw", x.format), residual, relu)


def _conv_nhwc_packed(x, weight, bias, geometry, residual, relu, reuse, wide, packed):
    if packed is None:  # nothing for a convolution with gradients: the reference
        return _conv_nchw(x, weight, bias, geometry, residual, relu, reuse, wide, packed).to("nhwc")
    dtype = "float32" if wide else x.format.dtype
    residual = None if residual is None else _as(residual.to("nhwc").var, dtype)
    y = conv2d_nhwc(x.to("nhwc").var, packed, relu=relu, residual=residual, reuse_residual=reuse, dtype=dtype)
    return Activation(y, "nhwc", x.format)


def _as(var, dtype: str):
    if var.dtype == dtype:
        return var
    return to_bfloat16(var) if dtype == "bfloat16" else var.cast(dtype)


def _conv_nhwc_cudnn(x, weight, bias, geometry, residual, relu, reuse, wide, packed):
    def operand(a):
        return _as(a.to("nhwc").var, x.format.dtype)
    if bias is not None and x.format.dtype != "float32" and not inferring():  # as a product with bias in nchw: float32
        y = cudnn.conv2d(operand(x), weight, **geometry).float32() + bias
        return _epilogue(Activation(y, "nhwc", x.format), residual, relu)
    y = cudnn.conv2d(operand(x), weight, bias, None if residual is None else operand(residual), relu, **geometry)
    return Activation(single(y) if wide else y, "nhwc", x.format)


def batch_norm(x: Activation, weight, bias, *, statistics=None, residual=None, relu: bool = False, eps: float):
    """jea.ops.batch_norm: the Activation, and mean and variance of the batch."""
    run, x = _at("batch_norm", x)
    residual = None if residual is None else residual.to(x.layout).var
    y, mean, variance = run(x.var, weight, bias, statistics=statistics, residual=residual, relu=relu, eps=eps)
    return x.like(y), mean, variance


def norm_by_sample(x: Activation, weight, bias, statistics, *, relu: bool = False, eps: float) -> Activation:
    """relu?((x - mean) weight / sqrt(variance + eps) + bias) with weight and bias (B, C), statistics (C,) or (B, C)."""
    run, x = _at("norm_by_sample", x)
    statistics = tuple(value.broadcast(weight.shape) for value in statistics)
    return x.like(run(x.var, weight, bias, statistics, relu, eps))


def _norm_by_sample(normalise, x, weight, bias, statistics, relu, eps):
    """Each channel of each picture as a channel of one large picture."""
    b, groups, *rest = x.shape
    weight, bias, *statistics = (value.reshape(-1) for value in (weight, bias, *statistics))
    return normalise(x.reshape([1, b * groups] + rest), weight, bias, statistics=statistics, relu=relu,
                     eps=eps)[0].reshape(x.shape)


def _norm_by_sample_nhwc(x, weight, bias, statistics, relu, eps):
    mean, variance = (value.reshape(len(x), 1, 1, -1) for value in statistics)
    weight, bias = (value.reshape(mean.shape) for value in (weight, bias))
    y = (x - mean) * (weight.float64() / (variance.float64() + eps).sqrt()).float32() + bias
    return nn.relu(y) if relu else y


def max_pool(x: Activation) -> Activation:
    """3x3 maximum, stride 2, padding 1."""
    run, x = _at("max_pool", x)
    return x.like(run(x.var))


def _max_pool_nchw(x):
    return nn.Pool(3, stride=2, padding=1, op="maximum")(single(x))


def resize(x: Activation, size) -> Activation:
    """Bilinear, with aligned corners (jea.ops.resize_bilinear)."""
    run, x = _at("resize", x)
    return x.like(run(x.var, size))


def relu(x: Activation) -> Activation:
    return x.like(nn.relu(x.var))


def dropout(x: Activation, p: float) -> Activation:
    """Zeroes values with probability p and scales the others by 1 / (1 - p)."""
    return x.like(nn.dropout(single(x.var), p, is_train=True))


def scale_channels(x: Activation, factors) -> Activation:
    """Times (B, C)."""
    shape = {"nchw": (-1, x.channels, 1, 1), "nhwc": (-1, 1, 1, x.channels),
             "blocked": (-1, x.var.shape[1], 1, 1, x.var.shape[-1])}[x.layout]
    return x.like(single(x.var) * factors.reshape(shape))


def concatenation(*parts: Activation) -> Activation:
    """Side by side along the channels, in the first one's layout."""
    first = parts[0]
    return first.like(jt.concat([part.to(first.layout).var for part in parts], dim=3 if first.layout == "nhwc" else 1))


def channel_sums(x: Activation):
    """The sum over the positions: a Var (B, C)."""
    return x.var.sum((1, 2) if x.layout == "nhwc" else (2, 3)).reshape(x.var.shape[0], -1)


def pairs(x: Activation, reduce: str) -> Activation:
    """Half the height and width, both even: the "mean" or "max" of each 2x2."""
    at = 1 if x.layout == "nhwc" else 2
    shape, (h, w) = list(x.var.shape), x.size
    y = x.var.reshape(shape[:at] + [h // 2, 2, w // 2, 2] + shape[at + 2:])
    return x.like(getattr(y, reduce)((at + 1, at + 3)))


def upsample(x: Activation) -> Activation:
    """Nearest: twice the height and width."""
    at = 1 if x.layout == "nhwc" else 2
    before, after, (h, w) = list(x.var.shape[:at]), list(x.var.shape[at + 2:]), x.size
    y = x.var.reshape(before + [h, 1, w, 1] + after).broadcast(before + [h, 2, w, 2] + after)
    return x.like(y.reshape(before + [2 * h, 2 * w] + after))


def double_norm(logits: Activation, *, eps: float = 1e-9) -> Activation:
    """The map of external attention, (B, S, H, W), from its logits (jea.ops.double_norm)."""
    run, x = _at("double_norm", logits)
    return x.like(run(x.var, eps))


def _double_norm_nchw(x, eps):
    return double_norm_of(x.reshape(*x.shape[:2], -1), layout="bsn", eps=eps).reshape(x.shape)


def _double_norm_nhwc(x, eps):
    return double_norm_of(x.reshape(len(x), -1, x.shape[3]), layout="bns", eps=eps).reshape(x.shape)


def between_memories(x: Activation, m_k, m_v, *, eps: float, return_attention: bool = False):
    """double_norm(x M_k^T) M_v, with M_k (S, C) and M_v (C, S); also the map, (B, S, N), or None."""
    if x.layout == "blocked" and can_block(m_k.shape[0]):
        attention = double_norm(convolution(x, m_k.reshape(*m_k.shape, 1, 1)), eps=eps)
        y = convolution(attention, m_v.reshape(*m_v.shape, 1, 1))
        return y, plain(attention).reshape(x.var.shape[0], m_k.shape[0], -1) if return_attention else None
    x = x.to("nchw") if x.layout == "blocked" else x
    b, channels = x.var.shape[0], x.channels
    last = x.layout == "nhwc"
    feature = x.var.reshape((b, -1, channels) if last else (b, channels, -1))
    found = external_attention_of(*precision.operands(feature, m_k, transpose(m_v, (1, 0))), eps=eps,
                                  layout="bnc" if last else "bcn", return_attention=return_attention)
    y, attention = found if return_attention else (found, None)
    return x.like(y.reshape(x.var.shape)), attention


# -- what runs an operation on a device, in a layout, on a type -------------------------------------------------------

def _rows(*rows) -> dict:
    """(devices, layouts, types, function), ... as {(device, layout, type): function}."""
    return {(device, layout, dtype): run for devices, layouts, dtypes, run in rows for device in devices
            for layout in layouts for dtype in dtypes}


_BOTH, _SINGLE, _ALL = ("cpu", "cuda"), ("float32",), ("float32", *HALF)
_CPU, _CUDA = ("cpu",), ("cuda",)
_batch_norm_nhwc = functools.partial(batch_norm_nchw, layout="nhwc")
_by_sample_nchw = functools.partial(_norm_by_sample, batch_norm_nchw)
_by_sample_blocked = functools.partial(_norm_by_sample, batch_norm_blocked)
_TABLE = {
    "convolution": _rows((_BOTH, ["nchw"], _ALL, _conv_nchw),
                         (_CPU, ["blocked"], ("float32", "bfloat16"), _conv_blocked),
                         (_CPU, ["nhwc"], ("float32", "bfloat16"), _conv_nhwc_packed),
                         (_CUDA, ["nhwc"], _ALL, _conv_nhwc_cudnn)),
    "batch_norm": _rows((_BOTH, ["nchw"], _SINGLE, batch_norm_nchw), (_CUDA, ["nchw"], HALF, batch_norm_nchw),
                        (_CPU, ["blocked"], _SINGLE, batch_norm_blocked), (_BOTH, ["nhwc"], _SINGLE, _batch_norm_nhwc),
                        (_CUDA, ["nhwc"], HALF, _batch_norm_nhwc)),
    "norm_by_sample": _rows((_BOTH, ["nchw"], _SINGLE, _by_sample_nchw), (_CUDA, ["nchw"], HALF, _by_sample_nchw),
                            (_CPU, ["blocked"], _SINGLE, _by_sample_blocked),
                            (_BOTH, ["nhwc"], _SINGLE, _norm_by_sample_nhwc)),
    "max_pool": _rows((_BOTH, ["nchw"], _SINGLE, _max_pool_nchw), (_CPU, ["blocked"], _SINGLE, max_pool_blocked),
                      (_CPU, ["nhwc"], ("float32", "bfloat16"), max_pool_nhwc), (_CUDA, ["nhwc"], _ALL, max_pool_nhwc)),
    "resize": _rows((_BOTH, ["nchw"], _SINGLE, resize_bilinear),
                    (_CUDA, ["nhwc"], _ALL, functools.partial(resize_bilinear, layout="nhwc"))),
    "double_norm": _rows((_BOTH, ["nchw"], _SINGLE, _double_norm_nchw), (_BOTH, ["nhwc"], _SINGLE, _double_norm_nhwc),
                         (_CUDA, ["nchw"], HALF, _double_norm_nchw), (_CUDA, ["nhwc"], HALF, _double_norm_nhwc)),
}
