"""Convolution of channels-last pictures on CUDA with cuDNN, with gradients.

Jittor's own convolution (1.3.11) runs (B, C, H, W) through cuDNN's older interface, adds half precision up in half
precision, and remembers algorithms by shape without the dtype. This one runs (B, H, W, C) on cuDNN's graph interface,
in float32 (TF32 where it is allowed), float16 and bfloat16 with float32 sums, with bias, residual and ReLU inside where
cuDNN fuses them. What cuDNN refuses, and what failed its check on this card (check.py), runs as Jittor's convolution.
"""
from __future__ import annotations

import sys
from dataclasses import dataclass

from jea._jittor import jt, nn
from jea.ops import kernels
from jea.ops.common.declared import FLOATS, Support
from jea.ops.convolution.cudnn import check, plans
from jea.ops.function import Function
from jea.ops.products.half import HALF, conv2d_half

SUPPORT = Support("conv2d", cuda=FLOATS)

_EPILOGUE = "convolution/cudnn/epilogue.cuh"
_SIZES = 'const jea::Epilogue sizes{(int64_t)in0->num / in0_shape3, (int64_t)in0_shape3, data["relu"] != 0};'
_FORWARD = """
    ((jea::Forward)(intptr_t)data["run"])((const void*)(intptr_t)data["plan"], in0_p, in1_p, (long)data["w_type"], out0_p, %s, %s);
"""
_BACKWARD = """
    ((jea::Backward)(intptr_t)data["run"])((const void*)(intptr_t)data["data"], (const void*)(intptr_t)data["weight"], in0_p,
                                           in1_p, (long)data["w_type"], in2_p, %s, %s);
"""


@dataclass(frozen=True)
class _Call:
    """The plans of one convolution and what stands around them."""
    sizes: dict
    shape: tuple  # of the result
    forward: plans.Plan
    fused: bool  # bias, residual and relu are inside `forward`
    relu: bool
    data: plans.Plan | None  # for the gradient of x, where it is wanted
    weight: plans.Plan | None


class Convolution(Function):
    def execute(self, x, weight, bias, residual, call):
        self.x, self.weight, self.call = x, weight, call
        self.bias_dtype = None if bias is None else bias.dtype
        bias = None if bias is None else bias.float32()
        if call.fused:
            y = _forward(call, x, weight, bias, residual)
        else:
            y = _forward(call, x, weight)
            if bias is not None or residual is not None or call.relu:
                y = _epilogue(y, bias, residual, call.relu)
        self.y = y if call.relu else None
        return y

    def grad(self, dy):
        call, x, weight = self.call, self.x, self.weight
        if call.relu:
            dy = kernels.cuda_code(dy.shape, dy.dtype, [self.y, dy], kernel=_EPILOGUE, data={"relu": 1},
                                   source=_SIZES + "jea::relu_backward(sizes, in0_p, in1_p, out0_p);")
        db = None
        if self.bias_dtype is not None:
            db = kernels.cuda_code((dy.shape[3],), "float32", [dy], kernel=_EPILOGUE, data={"relu": 0},
                                   source=_SIZES + "jea::bias_backward(sizes, in0_p, out0_p);")
            db = db if self.bias_dtype == "float32" else db.cast(self.bias_dtype)
        return (*_backward(call, x, weight, dy), db, dy, None)


def _forward(call, x, weight, bias=None, residual=None):
    summands = [var for var in (bias, residual) if var is not None]
    pointers = ("nullptr" if bias is None else "in2_p", "nullptr" if residual is None else f"in{1 + len(summands)}_p")
    return kernels.cuda_code(call.shape, x.dtype, [x, weight, *summands], kernel="convolution/cudnn/call.cuh",
                             source=_FORWARD % pointers, data={
                                 "run": call.forward.forward, "plan": call.forward.address,
                                 "w_type": plans.TYPES[str(weight.dtype)]})


def _backward(call, x, weight, dy) -> tuple:
    """The gradients of x and of weight; None where it is not wanted."""
    found = call.data, call.weight
    wanted = [var for var, plan in zip((x, weight), found) if plan]
    if not wanted:
        return None, None
    pointers = ("out0_p" if found[0] else "nullptr", f"out{len(wanted) - 1}_p" if found[1] else "nullptr")
    made = iter(kernels.cuda_code(
        [var.shape for var in wanted], [var.dtype for var in wanted], [x, weight, dy],
        kernel="convolution/cudnn/call.cuh", source=_BACKWARD % pointers, data={
            "run": next(plan for plan in found if plan).backward, "w_type": plans.TYPES[str(weight.dtype)],
            **{name: plan.address if plan else 0 for name, plan in zip(("data", "weight"), found)}}))
    return tuple(next(made) if plan else None for plan in found)


def _epilogue(y, bias, residual, relu: bool):
    inputs = [y] + [var for var in (bias, residual) if var is not None]
    bias_p = "nullptr" if bias is None else "in1_p"
    residual_p = "(decltype(in0_p))nullptr" if residual is None else f"in{len(inputs) - 1}_p"
    return kernels.cuda_code(y.shape, y.dtype, inputs, kernel=_EPILOGUE, data={"relu": int(relu)}, source=(
        _SIZES + f"jea::epilogue(sizes, in0_p, (const float*){bias_p}, {residual_p}, out0_p);"))


def sizes_of(x, weight, stride: int, padding: int, dilation: int) -> tuple:
    """(sizes, shape of the result) of a convolution; ValueError where they do not fit together."""
    if x.ndim != 4 or weight.ndim != 4 or weight.shape[1] != x.shape[3] \
            or not {str(x.dtype), str(weight.dtype)} <= plans.TYPES.keys():
        raise ValueError(f"conv2d: got {x.dtype} {tuple(x.shape)} and weight {weight.dtype} {tuple(weight.shape)}; "
                         f"expected (B, H, W, I) and (O, I, kH, kW), each of {', '.join(plans.TYPES)}")
    if min(stride, dilation) < 1 or padding < 0:
        raise ValueError(f"conv2d: stride {stride}, padding {padding}, dilation {dilation}; expected at least 1, 0, 1")
    sizes = dict(zip(plans.SIZES, (*x.shape, weight.shape[0], *weight.shape[2:], stride, padding, dilation)))
    out = [(length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
           for length, kernel in zip(x.shape[1:3], weight.shape[2:])]
    if min(out) < 1:
        raise ValueError(f"conv2d: picture {x.shape[1]} x {x.shape[2]} is too small for a {weight.shape[2]} x "
                         f"{weight.shape[3]} kernel with dilation {dilation} and padding {padding}")
    return sizes, (x.shape[0], *out, weight.shape[0])


def conv2d(x, weight, bias=None, residual=None, relu: bool = False, stride: int = 1, padding: int = 0,
           dilation: int = 1, *, impl: str = "auto"):
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
        ValueError: shapes or dtypes that do not agree, a picture smaller than the kernel, or "fused" where it cannot
        run.
    """
    gradients = tuple(not jt.flags.no_grad and not var.is_stop_grad() for var in (x, weight))
    key = (tuple(x.shape), tuple(weight.shape), str(x.dtype), str(weight.dtype), stride, padding, dilation, gradients,
           relu, *(None if var is None else (tuple(var.shape), str(var.dtype)) for var in (bias, residual)),
           jt.flags.use_cuda)
    call = plans.calls.get(key) if impl == "auto" else None  # a training step asks for each convolution again
    if call is not None:
        return Convolution.apply(x, weight, bias, residual, call)
    sizes, shape = sizes_of(x, weight, stride, padding, dilation)
    if bias is not None and tuple(bias.shape) != shape[3:]:
        raise ValueError(f"conv2d: bias has shape {tuple(bias.shape)}; expected {shape[3:]}")
    if residual is not None and (tuple(residual.shape) != shape or residual.dtype != x.dtype):
        raise ValueError(f"conv2d: residual is {residual.dtype} {tuple(residual.shape)}; expected {x.dtype} {shape}")
    epilogue = {"bias": bias is not None, "residual": residual is not None, "relu": bool(relu)}
    reason = ""
    if impl != "ref" and not kernels.references_only() or impl == "fused":
        call, reason = planned(sizes, shape, str(x.dtype), epilogue, gradients)
    if not kernels.use_fused(impl, SUPPORT, unless=reason, decided=True):
        if reason and jt.flags.use_cuda:
            _say_once(f"{x.dtype} {sizes['kernel_h']}x{sizes['kernel_w']}, stride {stride}, dilation {dilation}, "
                      f"{sizes['channels']} to {sizes['out_channels']} channels: {reason}")
        return conv2d_reference(x, weight, bias, residual, relu, stride, padding, dilation)
    if impl == "auto":
        plans.calls[key] = call
    return Convolution.apply(x, weight, bias, residual, call)


def planned(sizes: dict, shape: tuple, dtype: str, epilogue: dict, gradients: tuple) -> tuple:
    """(_Call, "") or (None, why not)."""
    problem = check.unavailable(dtype, sizes, epilogue=any(epilogue.values()))
    if problem:
        return None, problem
    fused = any(epilogue.values())
    forward = plans.plan("forward", dtype, sizes, **epilogue) if fused else None
    if not fused or forward.refused:
        fused, forward = False, plans.plan("forward", dtype, sizes)
    data, weight = (plans.plan(pass_, dtype, sizes) if wanted else None
                    for pass_, wanted in zip(("data", "weight"), gradients))
    refused = next((f"cuDNN: {plan.refused}" for plan in (forward, data, weight) if plan and plan.refused), "")
    return (None, refused) if refused else (_Call(sizes, shape, forward, fused, epilogue["relu"], data, weight), "")


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
