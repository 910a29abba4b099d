"""Training with oneDNN in its own layout: activations (B, C / L, H, W, L), in blocks of L = 8 or 16 channels.

Jittor's convolution takes (B, C, H, W), reorders it to a blocked layout and back at every call, and makes a new oneDNN
primitive each time. A network that stays blocked from its first convolution to its last saves that: the operators here
keep the primitives and have gradients. Weights stay (O, I, kH, kW). CPU, float32.
"""
from __future__ import annotations

import functools

from jea import ranks
from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, Support
from jea.ops.convolution.conv import bfloat16_unavailable, conv_nhwc_unavailable
from jea.ops.function import Function
from jea.ops.normalisation.batch_norm import batch_norm_over_ranks
from jea.ops.normalisation.batch_norm_functions import BatchNorm

SUPPORT = (  # `can_block` says where they run
    Support("conv2d_blocked", cpu=FLOAT, onednn=True), Support("batch_norm_blocked", cpu=FLOAT),
    Support("max_pool_blocked", cpu=FLOAT), Support("to_blocked", cpu=FLOAT), Support("from_blocked", cpu=FLOAT))

_CONV = """
    const auto number = [&](const char* name) { return (int64_t)data[name]; };
    const jea::BlockedConv conv{
        {number("batch"), number("height"), number("width"), number("channels"), number("out_channels"),
         number("kernel_h"), number("kernel_w"), number("stride"), number("padding"), number("dilation")},
        number("block"), number("plain_input") != 0, number("bias") != 0, number("half") != 0,
        number("residual") != 0, number("relu") != 0, number("half_residual") != 0};
    const bool scaled = number("scaled") != 0;
"""
_NORM = """
    const jea::BlockedNorm sizes{in0_shape0, in0_shape1, in0_shape2 * in0_shape3, data["training"] != 0,
                                 data["relu"] != 0, data["eps"]};
"""


@functools.lru_cache(maxsize=None)
def block_size() -> int:
    """Channels of a block: as wide as the processor's registers, which is what oneDNN's kernels work on."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return 16 if " avx512f" in file.read() else 8
    except OSError:
        return 8


def can_block(*channels: int) -> bool:
    """Whether activations of these channel counts can be blocked on the chosen device."""
    return not (conv_nhwc_unavailable() or kernels.references_only() or any(c % block_size() for c in channels))


def _kernel(kind: str) -> str:
    return f"jea::{kind}<{block_size()}>"


def _check(name: str, x) -> None:
    if x.ndim != 5 or x.shape[4] != block_size() or x.dtype != "float32" or jt.flags.use_cuda:
        raise ValueError(f"{name}: got {x.dtype} {tuple(x.shape)}; expected float32 (B, C / {block_size()}, H, W, "
                         f"{block_size()}) on the CPU")


# -- layout -----------------------------------------------------------------------------------------------------------

def _to_blocked(x):
    b, c, h, w = x.shape
    block = block_size()
    return kernels.cpu_code((b, c // block, h, w, block), "float32", [x], kernel="convolution/blocked.h",
                         source="jea::reorder<true>(in0_p, out0_p, out0_shape0 * out0_shape1, "
                                "out0_shape2 * out0_shape3, "
                                "out0_shape4);")


def _from_blocked(x):
    b, groups, h, w, block = x.shape
    return kernels.cpu_code((b, groups * block, h, w), "float32", [x], kernel="convolution/blocked.h",
                         source="jea::reorder<false>(in0_p, out0_p, in0_shape0 * in0_shape1, in0_shape2 * in0_shape3, "
                                "in0_shape4);")


class _ToBlocked(Function):
    def execute(self, x):
        return _to_blocked(x)

    def grad(self, dy):
        return _from_blocked(dy)


class _FromBlocked(Function):
    def execute(self, x):
        return _from_blocked(x)

    def grad(self, dy):
        return _to_blocked(dy)


def to_blocked(x):
    """(B, C, H, W) -> (B, C / L, H, W, L)."""
    if x.ndim != 4 or x.dtype != "float32" or not can_block(x.shape[1]):
        raise ValueError(f"to_blocked: got {x.dtype} {tuple(x.shape)}; expected float32 (B, C, H, W) on the CPU, "
                         f"with C a multiple of {block_size()}")
    return _ToBlocked.apply(x)


def from_blocked(x):
    """(B, C / L, H, W, L) -> (B, C, H, W)."""
    _check("from_blocked", x)
    return _FromBlocked.apply(x)


# -- convolution ------------------------------------------------------------------------------------------------------

class _Conv(Function):
    def execute(self, x, weight, bias, residual, scale, numbers):
        self.numbers, self.x, self.weight, self.scale = numbers, x, weight, scale
        n = self.numbers
        size = [(n[axis] + 2 * n["padding"] - n["dilation"] * (n[kernel] - 1) - 1) // n["stride"] + 1
                for axis, kernel in (("height", "kernel_h"), ("width", "kernel_w"))]
        shape = [n["batch"], n["out_channels"] // n["block"], *size, n["block"]]
        if residual is not None:
            self.residual = list(residual.shape)
            n["half_residual"] = int(self.residual == shape[:2] + [side / 2 for side in size] + shape[4:])
            if self.residual != shape and not n["half_residual"]:
                raise ValueError(f"conv2d_blocked: residual is {tuple(residual.shape)}; expected {tuple(shape)}, or "
                                 "half its height and width where they are even")
        # One kernel for all cases: what a case does not have is stood in for by what is there already.
        y = self.run([x, weight, weight if scale is None else scale, weight if bias is None else bias,
                      x if residual is None else residual], shape,
                     "blocked_conv_forward(conv, in0_p, weights(in1_p, in2_p, out2_p), in3_p, in4_p, out0_p, out1_p, "
                     "out1->num);")
        self.y = y if n["relu"] else None
        return y

    def grad(self, dy):
        n, scale = self.numbers, self.weight if self.scale is None else self.scale
        if n["relu"]:
            dy = kernels.cpu_code(dy.shape, "float32", [self.y, dy], kernel="convolution/blocked.h",
                                  source=_kernel("blocked_relu_backward") + "(in0_p, in1_p, out0_p, out0->num);")
        dx = self.run([dy, self.weight, scale], self.x.shape,
                      "blocked_conv_backward_input(conv, in0_p, weights(in1_p, in2_p, out2_p), out0_p, out1_p, "
                      "out1->num);")
        dweight = self.run([self.x, dy, scale], self.weight.shape, """
            blocked_conv_backward_weights(conv, in0_p, in1_p, out0_p, out1_p, out1->num);
            if (scaled) jea::scaled_weights(conv, out0_p, in2_p, out0_p);""")
        dbias, dresidual = None, dy if n["residual"] else None
        if n["bias"]:
            dbias = kernels.cpu_code(
                (n["out_channels"],), "float32", [dy], kernel="convolution/blocked.h",
                source=_kernel("blocked_channel_sums")
                + "(in0_shape0, in0_shape1, in0_shape2 * in0_shape3, in0_p, out0_p);")
        if n["half_residual"]:
            dresidual = kernels.cpu_code(
                self.residual, "float32", [dy], kernel="convolution/conv_blocked.h", onednn=True, source="""
                jea::reduce_by_two(in0_p, out0_p, in0_shape0 * in0_shape1, in0_shape2, in0_shape3, in0_shape4);""")
        return dx, dweight, dbias, dresidual, None, None

    def run(self, inputs, shape, call):
        """One kernel, with workspaces as large as the weights that are free again at once."""
        count = self.weight.numel()
        return kernels.cpu_code(
            [shape, (count,), (count if self.numbers["scaled"] else 1,)], ["float32"] * 3, inputs,
            kernel="convolution/conv_blocked.h", data=self.numbers, onednn=True, source=_CONV + """
            const auto weights = [&](const float* weight, const float* scale, float* into) {
                return jea::scaled_weights(conv, weight, scaled ? scale : nullptr, into);
            };
            jea::""" + call.strip())[0]


def conv2d_blocked(x, weight, bias=None, *, stride: int = 1, padding: int = 0, dilation: int = 1, residual=None,
                   relu: bool = False, scale=None, dtype: str = "float32"):
    """relu?(scale conv(x) + bias + residual?) of blocked activations, with gradients.

    Args:
        x: (B, I / L, H, W, L), or a picture (B, I, H, W) with any number of channels.
        weight: (O, I, kH, kW), O a multiple of L.
        bias: (O,) or None.
        stride, padding, dilation: equal on both axes.
        residual: of the result's shape, or of half its height and width, whose cells are added to four; or None.
        scale: (O,), of each output channel, or None. It gets no gradient.
        dtype: "float32", or "bfloat16": what the operands of the products are rounded to, in the gradients too. What
            comes and goes, and the sums, are float32 either way.
    Returns:
        (B, O / L, H', W', L).
    Raises:
        ValueError: shapes or dtypes that do not agree, or a device without oneDNN.
    """
    problem = bfloat16_unavailable() if dtype == "bfloat16" else "" if dtype == "float32" else f"dtype {dtype!r}"
    if problem:
        raise ValueError(f"conv2d_blocked: not possible here: {problem}")
    block = block_size()
    channels = x.shape[1] * (block if x.ndim == 5 else 1)
    if x.ndim not in (4, 5) or weight.ndim != 4 or weight.shape[1] != channels or not can_block(weight.shape[0]):
        raise ValueError(f"conv2d_blocked: got {tuple(x.shape)} and weight {tuple(weight.shape)}; expected "
                         f"(B, I / {block}, H, W, {block}) or (B, I, H, W) and (O, I, kH, kW), O a multiple of "
                         f"{block}, "
                         "on the CPU with oneDNN")
    if x.ndim == 5:
        _check("conv2d_blocked", x)
    height, width = x.shape[2:4]
    kernel = weight.shape[2:]
    if min(size + 2 * padding - dilation * (k - 1) for size, k in zip((height, width), kernel)) < 1:
        raise ValueError(f"conv2d_blocked: picture {height} x {width} is too small for a {kernel[0]} x {kernel[1]} "
                         f"kernel with dilation {dilation} and padding {padding}")
    numbers = {"batch": x.shape[0], "height": height, "width": width, "channels": channels,
               "out_channels": weight.shape[0], "kernel_h": kernel[0], "kernel_w": kernel[1], "stride": stride,
               "padding": padding, "dilation": dilation, "block": block, "plain_input": int(x.ndim == 4),
               "bias": int(bias is not None), "half": int(dtype == "bfloat16"), "residual": int(residual is not None),
               "half_residual": 0, "relu": int(relu), "scaled": int(scale is not None)}
    return _Conv.apply(x, weight, bias, residual, scale if scale is None else scale.detach(), numbers)


def conv2d_from_blocked(x, weight, bias=None, **geometry):
    """conv2d_blocked with any number of output channels and a plain result, (B, O, H', W').

    Zeros fill the weights up to whole blocks: several times as fast as Jittor's convolution of few channels.
    """
    outputs = weight.shape[0]
    missing = -outputs % block_size()
    if missing:
        weight = jt.concat([weight, jt.zeros((missing, *weight.shape[1:]))])
        bias = bias if bias is None else jt.concat([bias, jt.zeros((missing,))])
    y = from_blocked(conv2d_blocked(x, weight, bias, **geometry))
    return y[:, :outputs] if missing else y


# -- BatchNorm --------------------------------------------------------------------------------------------------------

class _BlockedBatchNorm(BatchNorm):
    kernel, sizes = "convolution/blocked.h", _NORM
    forward, backward = _kernel("blocked_norm_forward"), _kernel("blocked_norm_backward")


def batch_norm_blocked(x, weight, bias, *, statistics=None, residual=None, relu: bool = False, eps: float = 1e-5):
    """jea.ops.batch_norm of blocked activations: y (B, C / L, H, W, L), mean (C,), biased variance (C,)."""
    _check("batch_norm_blocked", x)
    channels = (x.shape[1] * x.shape[4],)
    for name, value in (("weight", weight), ("bias", bias), *zip(("mean", "variance"), statistics or ())):
        if tuple(value.shape) != channels:
            raise ValueError(f"batch_norm_blocked: x is {tuple(x.shape)} and {name} {tuple(value.shape)}; "
                             f"expected {channels}")
    if residual is not None and tuple(residual.shape) != tuple(x.shape):
        raise ValueError(f"batch_norm_blocked: residual is {tuple(residual.shape)}; "
                         f"expected x's shape {tuple(x.shape)}")
    if statistics is None and ranks.size() > 1:
        return batch_norm_over_ranks(x, weight, bias, residual=residual, relu=relu, eps=eps, layout="blocked")
    numbers = {"training": int(statistics is None), "relu": int(relu), "eps": eps}
    function = _BlockedBatchNorm()
    y = function(x, weight, bias, residual, statistics, numbers)
    return y, function.mean.stop_grad(), function.variance.stop_grad()


# -- maximum ----------------------------------------------------------------------------------------------------------

class _MaxPool(Function):
    def execute(self, x):
        b, groups, h, w, block = self.shape = tuple(x.shape)
        shape = (b, groups, (h + 1) // 2, (w + 1) // 2, block)
        y, self.places = kernels.cpu_code(
            [shape, shape], ["float32", "uint8"], [x], kernel="convolution/blocked.h",
            source=_kernel("blocked_max_pool")
            + "(in0_p, out0_p, (uint8_t*)out1_p, in0_shape0 * in0_shape1, in0_shape2, in0_shape3);")
        return y

    def grad(self, dy):
        return kernels.cpu_code(self.shape, "float32", [self.places, dy], kernel="convolution/blocked.h",
                             source=_kernel("blocked_max_pool_backward") + "((const uint8_t*)in0_p, in1_p, out0_p, "
                             "out0_shape0 * out0_shape1, out0_shape2, out0_shape3);")


def max_pool_blocked(x):
    """3x3 maximum, stride 2, padding 1: (B, C / L, H, W, L) -> (B, C / L, (H + 1) // 2, (W + 1) // 2, L).

    The gradient goes to the first of equal maxima, row by row, as PyTorch's does.
    """
    _check("max_pool_blocked", x)
    return _MaxPool.apply(x)
