"""Convolution of channels-last pictures on CUDA with cuDNN, with gradients.

Jittor's own convolution (1.3.11) runs (B, C, H, W) through cuDNN's older interface, adds half precision up in half
precision, and remembers algorithms by shape without the dtype. This one runs (B, H, W, C) on cuDNN's graph interface, in
float32 (TF32 where it is allowed), float16 and bfloat16 with float32 sums, with bias, residual and ReLU inside where
cuDNN fuses them. What cuDNN refuses, and what failed its check on this card (check.py), runs as Jittor's convolution.
"""
from __future__ import annotations

import sys
from dataclasses import dataclass

from jea._jittor import jt, nn
from jea.ops import kernels
from jea.ops.convolution.cudnn import check, plans
from jea.ops.products.half import HALF, conv2d_half

_LAYOUT = "convolution/cudnn/layout.cuh"
_RUN = """
    const auto run = (jea::RunPlan)(intptr_t)data["run"];
    run((const void*)(intptr_t)data["plan"], %s, %s, %s, %s, %s);
"""


@dataclass(frozen=True)
class _Call:
    """The plans of one convolution and what stands around them."""
    sizes: dict
    shape: tuple  # of the result
    forward: plans.Plan
    fused: bool  # bias, residual and relu are inside `forward`
    relu: bool
    gradients: tuple  # of x, of weight: whether they are wanted


class _Convolution(kernels.Function):
    def execute(self, x, weight, bias, residual, call):
        self.x, self.weight, self.call = x, weight, call
        self.bias_dtype = None if bias is None else bias.dtype
        packed = pack_weight(weight, x.dtype)
        bias = None if bias is None else bias.float32()
        if call.fused:
            y = _run(call.forward, call.shape, x.dtype, x=x, w=packed, bias=bias, residual=residual)
        else:
            y = _run(call.forward, call.shape, x.dtype, x=x, w=packed)
            if bias is not None or residual is not None or call.relu:
                y = _epilogue(y, bias, residual, call.relu)
        self.y = y if call.relu else None
        return y

    def grad(self, dy):
        call, x = self.call, self.x
        if call.relu:
            dy = kernels.cuda_code(dy.shape, dy.dtype, [self.y, dy], kernel=_LAYOUT,
                                   source="jea::relu_backward(in0_p, in1_p, out0_p, in0->num);")
        dx = dw = db = None
        o, i, kh, kw = self.weight.shape
        if call.gradients[0]:
            dx = _run(plans.plan("data", str(x.dtype), call.sizes), x.shape, x.dtype, w=pack_weight(self.weight, x.dtype), y=dy)
        if call.gradients[1]:
            dw = _run(plans.plan("weight", str(x.dtype), call.sizes), (o, kh, kw, i), x.dtype, x=x, y=dy)
            dw = _unpack(dw, self.weight)
        if self.bias_dtype is not None:
            db = kernels.cuda_code((o,), "float32", [dy], kernel=_LAYOUT, source=(
                "jea::bias_backward(in0_p, out0_p, in0->num / in0_shape3, in0_shape3);"))
            db = db if self.bias_dtype == "float32" else db.cast(self.bias_dtype)
        return dx, dw, db, dy, None


def _run(plan, shape, dtype, **tensors):
    """Run a plan. `tensors` are named x, w, y, bias, residual; the one of x, w, y that is missing is the result."""
    tensors = {name: var for name, var in tensors.items() if var is not None}
    names = list(tensors)
    pointers = ["out0_p" if name not in tensors else f"in{names.index(name)}_p" for name in ("x", "w", "y")]
    pointers += [f"in{names.index(name)}_p" if name in tensors else "nullptr" for name in ("bias", "residual")]
    return kernels.cuda_code(shape, dtype, list(tensors.values()), kernel=_LAYOUT, source=_RUN % tuple(pointers),
                             data={"run": plan.run, "plan": plan.address})


def _epilogue(y, bias, residual, relu: bool):
    inputs = [y] + [var for var in (bias, residual) if var is not None]
    bias_p = "nullptr" if bias is None else "in1_p"
    residual_p = "(decltype(in0_p))nullptr" if residual is None else f"in{len(inputs) - 1}_p"
    return kernels.cuda_code(y.shape, y.dtype, inputs, kernel=_LAYOUT, data={"relu": int(relu)}, source=(
        f"jea::epilogue(in0_p, (const float*){bias_p}, {residual_p}, out0_p, in0->num, in0_shape3, data[\"relu\"] != 0);"))


def pack_weight(weight, dtype: str):
    """A weight (O, I, kH, kW) as (O, kH, kW, I) in `dtype`: cuDNN's order for channels-last pictures."""
    o, i, kh, kw = weight.shape
    if kh * kw == 1 and weight.dtype == dtype:
        return weight.reshape(o, kh, kw, i)
    return kernels.cuda_code((o, kh, kw, i), dtype, [weight], kernel=_LAYOUT, source=(
        "jea::reorder<true>(in0_p, out0_p, in0_shape0, in0_shape1, in0_shape2 * in0_shape3);"))


def _unpack(dw, weight):
    if dw.shape[1] * dw.shape[2] == 1 and weight.dtype == dw.dtype:
        return dw.reshape(weight.shape)
    return kernels.cuda_code(weight.shape, weight.dtype, [dw], kernel=_LAYOUT, source=(
        "jea::reorder<false>(in0_p, out0_p, out0_shape0, out0_shape1, out0_shape2 * out0_shape3);"))


def sizes_of(x, weight, stride: int, padding: int, dilation: int) -> tuple:
    """(sizes, shape of the result) of a convolution; ValueError where they do not fit together."""
    if x.ndim != 4 or weight.ndim != 4 or weight.shape[1] != x.shape[3] \
            or not {str(x.dtype), str(weight.dtype)} <= plans.TYPES.keys():
        raise ValueError(f"conv2d: got {x.dtype} {tuple(x.shape)} and weight {weight.dtype} {tuple(weight.shape)}; expected "
                         f"(B, H, W, I) and (O, I, kH, kW), each of {', '.join(plans.TYPES)}")
    if min(stride, dilation) < 1 or padding < 0:
        raise ValueError(f"conv2d: stride {stride}, padding {padding}, dilation {dilation}; expected at least 1, 0, 1")
    sizes = dict(zip(plans.SIZES, (*x.shape, weight.shape[0], *weight.shape[2:], stride, padding, dilation)))
    out = [(length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
           for length, kernel in zip(x.shape[1:3], weight.shape[2:])]
    if min(out) < 1:
        raise ValueError(f"conv2d: picture {x.shape[1]} x {x.shape[2]} is too small for a {weight.shape[2]} x "
                         f"{weight.shape[3]} kernel with dilation {dilation} and padding {padding}")
    return sizes, (x.shape[0], *out, weight.shape[0])


def conv2d(x, weight, bias=None, residual=None, relu: bool = False, stride: int = 1, padding: int = 0, dilation: int = 1,
           *, impl: str = "auto"):
    """relu?(convolution of x + residual? + bias?), channels-last, with gradients.

    Args:
        x: float32, float16 or bfloat16 (B, H, W, I). Its dtype is the product's; sums are float32.
        weight: (O, I, kH, kW), as models keep it, of any of these dtypes; its gradient has its dtype.
        bias: (O,), or None.
        residual: of the result's shape and dtype, added before the ReLU, or None.
        relu: with ReLU.
        stride, padding, dilation: equal on both axes.
        impl: "auto", "fused" (cuDNN's graph interface) or "ref" (Jittor's convolution, with transposes).
    Returns:
        (B, H', W', O) of x's dtype.
    Raises:
        ValueError: shapes or dtypes that do not agree, a picture smaller than the kernel, or "fused" where it cannot run.
    """
    sizes, shape = sizes_of(x, weight, stride, padding, dilation)
    if bias is not None and tuple(bias.shape) != shape[3:]:
        raise ValueError(f"conv2d: bias has shape {tuple(bias.shape)}; expected {shape[3:]}")
    if residual is not None and (tuple(residual.shape) != shape or residual.dtype != x.dtype):
        raise ValueError(f"conv2d: residual is {residual.dtype} {tuple(residual.shape)}; expected {x.dtype} {shape}")
    gradients = tuple(not jt.flags.no_grad and not var.is_stop_grad() for var in (x, weight))
    epilogue = {"bias": bias is not None, "residual": residual is not None, "relu": bool(relu)}
    call, reason = None, ""
    if impl != "ref" and not kernels.references_only() or impl == "fused":
        call, reason = _planned(sizes, shape, str(x.dtype), epilogue, gradients)
    if not kernels.use_fused(impl, name="conv2d", possible=call is not None, reason=reason):
        if reason and jt.flags.use_cuda:
            _say_once(f"{x.dtype} {sizes['kernel_h']}x{sizes['kernel_w']}, stride {stride}, dilation {dilation}, "
                      f"{sizes['channels']} to {sizes['out_channels']} channels: {reason}")
        return conv2d_reference(x, weight, bias, residual, relu, stride, padding, dilation)
    return _Convolution.apply(x, weight, bias, residual, call)


def _planned(sizes: dict, shape: tuple, dtype: str, epilogue: dict, gradients: tuple) -> tuple:
    """(_Call, "") or (None, why not)."""
    problem = check.unavailable(dtype, sizes, epilogue=any(epilogue.values()))
    if problem:
        return None, problem
    fused = any(epilogue.values())
    forward = plans.plan("forward", dtype, sizes, **epilogue) if fused else None
    if not fused or forward.refused:
        fused, forward = False, plans.plan("forward", dtype, sizes)
    needed = [forward] + [plans.plan(pass_, dtype, sizes) for pass_, wanted in zip(("data", "weight"), gradients) if wanted]
    refused = next((f"cuDNN: {plan.refused}" for plan in needed if plan.refused), "")
    return (None, refused) if refused else (_Call(sizes, shape, forward, fused, epilogue["relu"], gradients), "")


_already_said: set = set()


def _say_once(text: str) -> None:
    if text not in _already_said:
        _already_said.add(text)
        print(f"jea: convolutions as Jittor's own, {text}", file=sys.stderr, flush=True)


def conv2d_reference(x, weight, bias=None, residual=None, relu=False, stride=1, padding=0, dilation=1):
    """conv2d as Jittor's own convolution, between two transposes."""
    from jea.ops import transpose
    weight = weight if weight.dtype == x.dtype else weight.cast(x.dtype)
    convolve = conv2d_half if x.dtype in HALF else nn.conv2d
    y = transpose(convolve(transpose(x, (0, 3, 1, 2)), weight, stride=stride, padding=padding, dilation=dilation),
                  (0, 2, 3, 1))
    if bias is None and residual is None and not relu:
        return y
    y = y.float32()
    if residual is not None:
        y = y + residual.float32()
    if bias is not None:
        y = y + bias.float32()
    y = jt.maximum(y, 0.0) if relu else y
    return y if x.dtype == "float32" else y.cast(x.dtype)
