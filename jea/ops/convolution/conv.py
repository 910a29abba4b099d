"""Inference convolution of channels-last activations with oneDNN, weights packed once.

Jittor's own convolution makes a new oneDNN primitive and reorders picture and weights at every call. Here the
weights are reordered once into the layout that oneDNN asks for, the primitives are kept, and bias, residual and
ReLU run inside the convolution. No gradient.
"""
from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, Support

SUPPORT = Support("conv2d_nhwc", cpu=FLOAT + ("bfloat16",), onednn=True)

_TYPES = ("float32", "bfloat16")
_DESCRIPTOR_BYTES = 1024  # kDescriptorBytes in conv.h

# data["..."] are the numbers that stay the same for a layer.
_SHAPE = """
    const jea::ConvShape shape{%s, (int64_t)data["channels"], (int64_t)data["out_channels"],
        (int64_t)data["kernel_h"], (int64_t)data["kernel_w"], (int64_t)data["stride"], (int64_t)data["padding"],
        (int64_t)data["dilation"]};
"""
_HINT = _SHAPE % '(int64_t)data["batch"], (int64_t)data["height"], (int64_t)data["width"]'
_INPUT = _SHAPE % "in0_shape0, in0_shape1, in0_shape2"


@dataclass(frozen=True)
class PackedConv:
    """A convolution's weights in oneDNN's layout; made by pack_conv. The memory belongs to the Vars."""
    weights: Any  # float32, opaque layout
    layout: Any  # uint8, its description
    bias: Any  # (O,)
    numbers: dict  # kernel size, channels, stride, padding, dilation
    dtype: str = "float32"  # of the products


def conv_nhwc_unavailable() -> str:
    """Why conv2d_nhwc cannot run here, or "" where it can."""
    return SUPPORT.refusal("cuda" if jt.flags.use_cuda else "cpu", onednn=kernels.onednn_include() is not None)


def bfloat16_unavailable() -> str:
    """Why products in bfloat16 cannot run fast on this CPU, or "" where they can."""
    if jt.flags.use_cuda:
        return "it runs on the CPU, and CUDA is on"
    if kernels.onednn_include() is None:
        return "Jittor runs without oneDNN (see `jea info`)"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        flags = []
    if not {"avx512_bf16", "amx_bf16"} & set(flags):
        return "this processor has neither avx512_bf16 nor amx_bf16"
    return ""


def pack_conv(weight, bias=None, *, scale=None, stride: int = 1, padding: int = 0, dilation: int = 1,
              size=(65, 65), batch: int = 1, dtype: str = "float32") -> PackedConv:
    """Reorder a convolution's weights for conv2d_nhwc.

    Args:
        weight: float32 (O, I, kH, kW).
        bias: (O,), or None for zeros.
        scale: (O,), multiplies the weights of each output channel (a folded BatchNorm), or None.
        stride, padding, dilation: as in nn.Conv, equal on both axes.
        size, batch: (H, W) and batch size to expect. Others work too; where oneDNN prefers another layout for them,
            the weights are reordered at each call.
        dtype: "float32", or "bfloat16": input and weights of the products; their sums are float32.
    Raises:
        ValueError: another rank or dtype, sizes that do not agree, or no oneDNN on this device.
    """
    if dtype not in _TYPES:
        raise ValueError(f"pack_conv: dtype is {dtype!r}; expected {' or '.join(_TYPES)}")
    problem = conv_nhwc_unavailable() or (bfloat16_unavailable() if dtype == "bfloat16" else "")
    if problem:
        raise ValueError(f"pack_conv: not possible here: {problem}")
    if weight.ndim != 4 or weight.dtype != "float32":
        raise ValueError(f"pack_conv: weight is {weight.dtype} {tuple(weight.shape)}; expected float32 (O, I, kH, kW)")
    out_channels, channels, kernel_h, kernel_w = weight.shape
    for name, value in (("bias", bias), ("scale", scale)):
        if value is not None and tuple(value.shape) != (out_channels,):
            raise ValueError(f"pack_conv: {name} has shape {tuple(value.shape)}; expected ({out_channels},)")
    if min(stride, dilation) < 1 or padding < 0:
        raise ValueError(f"pack_conv: stride {stride}, padding {padding}, dilation {dilation}; "
                         "expected at least 1, 0, 1")
    numbers = {"channels": channels, "out_channels": out_channels, "kernel_h": kernel_h, "kernel_w": kernel_w,
               "stride": stride, "padding": padding, "dilation": dilation}
    smallest = dilation * (max(kernel_h, kernel_w) - 1) + 1 - 2 * padding
    hint = dict(numbers, half=int(dtype == "bfloat16"), batch=batch, height=max(size[0], smallest, 1),
                width=max(size[1], smallest, 1))
    with jt.no_grad():
        layout = kernels.cpu_code((_DESCRIPTOR_BYTES,), "uint8", [], kernel="convolution/conv.h", onednn=True,
                                  data=hint,
                               source=_HINT + "jea::conv_layout(shape, data[\"half\"] != 0, (uint8_t*)out0_p);")
        floats = -(-struct.unpack_from("<q", np.asarray(layout.numpy()).tobytes())[0] // 4)
        scale = jt.ones((out_channels,)) if scale is None else scale
        weights = kernels.cpu_code((floats,), "float32", [weight, scale, layout], kernel="convolution/conv.h",
                                   onednn=True, data=hint,
                                source=_HINT + "jea::conv_pack(shape, in0_p, in1_p, (const uint8_t*)in2_p, out0_p);")
        bias = jt.zeros((out_channels,)) if bias is None else bias.clone()
        jt.sync([weights, bias])
    return PackedConv(weights, layout, bias, numbers, dtype)


def conv2d_nhwc(x, packed: PackedConv, *, relu: bool = False, gelu: bool = False, residual=None,
                reuse_residual: bool = False, dtype: str = "float32"):
    """y = relu?(conv(x) + bias + residual?) on channels-last activations.

    Args:
        x: (B, H, W, I), float32; or bfloat16, where the products are.
        packed: weights from pack_conv.
        relu, gelu: with ReLU or (exact) GELU.
        residual: (B, H', W', O) of the result's dtype, added before the ReLU, or None.
        reuse_residual: let the result take over the residual's memory. Only where nothing reads it afterwards.
        dtype: of the result: float32, or bfloat16 where the products are.
    Returns:
        (B, H', W', O), without a gradient.
    Raises:
        ValueError: shapes or dtypes that do not agree, or a device without oneDNN.
    """
    n, allowed = packed.numbers, _TYPES if packed.dtype == "bfloat16" else _TYPES[:1]
    problem = conv_nhwc_unavailable()
    if problem:
        raise ValueError(f"conv2d_nhwc: not possible here: {problem}")
    if x.ndim != 4 or x.shape[3] != n["channels"] or x.dtype not in allowed:
        raise ValueError(f"conv2d_nhwc: got {x.dtype} {tuple(x.shape)}; expected {' or '.join(allowed)} "
                         f"(B, H, W, {n['channels']})")
    if dtype not in allowed:
        raise ValueError(f"conv2d_nhwc: dtype is {dtype!r}; expected {' or '.join(allowed)}")
    out_h, out_w = ((size + 2 * n["padding"] - n["dilation"] * (kernel - 1) - 1) // n["stride"] + 1
                    for size, kernel in ((x.shape[1], n["kernel_h"]), (x.shape[2], n["kernel_w"])))
    shape = (x.shape[0], out_h, out_w, n["out_channels"])
    if min(shape) < 1:
        raise ValueError(f"conv2d_nhwc: picture {tuple(x.shape)} is too small for a {n['kernel_h']} x {n['kernel_w']} "
                         f"kernel with dilation {n['dilation']} and padding {n['padding']}")
    if residual is not None and (tuple(residual.shape) != shape or residual.dtype != dtype):
        raise ValueError(f"conv2d_nhwc: residual is {residual.dtype} {tuple(residual.shape)}; expected {dtype} {shape}")
    half = packed.dtype == "bfloat16"
    # the kernel that works in place has no memory for a rounded x
    reuse_residual = reuse_residual and not (half and x.dtype == "float32")
    rounds = half and x.dtype == "float32"
    call = dict(kernel="convolution/conv.h", onednn=True, data=dict(
        n, after=2 if gelu else int(relu), residual=int(residual is not None), half=int(half),
        half_output=int(dtype == "bfloat16")))
    run = """
        jea::conv_forward(shape, {data["half"] != 0, data["half_output"] != 0}, (jea::After)(int)data["after"],
                          data["residual"] != 0, in0_p, %s, in1_p, (const uint8_t*)in2_p, in3_p, out0_p);""" % (
            "out1_p" if rounds else "nullptr")
    inputs = [x, packed.weights, packed.layout, packed.bias]
    with jt.no_grad():
        if residual is not None and reuse_residual:
            return kernels.cpu_code_in_place(inputs + [residual], residual, source=_INPUT + run, **call)
        copy = "" if residual is None else "jea::copy(in4_p, out0_p, out0->num);"
        inputs = inputs if residual is None else inputs + [residual]
        if rounds:
            return kernels.cpu_code([shape, x.shape], [dtype, "bfloat16"], inputs, source=_INPUT + copy + run,
                                    **call)[0]
        return kernels.cpu_code(shape, dtype, inputs, source=_INPUT + copy + run, **call)
