"""The 3x3 maximum of channels-last activations, as in ResNet's stem."""
from __future__ import annotations

from jea._jittor import jt, nn
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, FLOATS, Support
from jea.ops.function import Function
from jea.ops.shapes.transpose import transpose

SUPPORT = Support("max_pool_nhwc", cpu=FLOAT + ("bfloat16",), cuda=FLOATS)

_SIZES = """
    const jea::MaxPool sizes{(long)data["batch"], (int)data["height"], (int)data["width"], (int)data["channels"]};
"""


class _MaxPoolCuda(Function):
    def execute(self, x):
        b, h, w, c = self.shape = tuple(x.shape)
        self.numbers = {"batch": b, "height": h, "width": w, "channels": c}
        shape = (b, (h + 1) // 2, (w + 1) // 2, c)
        y, self.places = kernels.cuda_code(
            [shape, shape], [x.dtype, "int8"], [x], kernel="pictures/max_pool.cuh", data=self.numbers,
            source=_SIZES + "jea::max_pool(sizes, in0_p, out0_p, out1_p);")
        return y

    def grad(self, dy):
        return kernels.cuda_code(self.shape, dy.dtype, [dy, self.places], kernel="pictures/max_pool.cuh",
                                 data=self.numbers,
                                 source=_SIZES + "jea::max_pool_backward(sizes, in0_p, in1_p, out0_p);")


def max_pool_nhwc_reference(x):
    """max_pool_nhwc composed of Jittor's own functions."""
    return transpose(nn.Pool(3, stride=2, padding=1, op="maximum")(transpose(x, (0, 3, 1, 2))), (0, 2, 3, 1))


def max_pool_nhwc(x, *, impl: str = "auto"):
    """3x3 maximum, stride 2, padding 1, of channels-last activations: (B, H, W, C) -> (B, (H+1)//2, (W+1)//2, C).

    A NaN in a window is its maximum. Of several largest the first, row by row, gets the gradient. On the CPU the kernel
    (float32, bfloat16) is for inference, where no gradient is asked for; on CUDA it takes half precision too.

    Raises:
        ValueError: another rank, an empty axis, or "fused" where there is no kernel.
    """
    if x.ndim != 4 or min(x.shape) < 1:
        raise ValueError(f"max_pool_nhwc: got shape {tuple(x.shape)}; expected (B, H, W, C), none empty")
    gradient = not (jt.flags.use_cuda or jt.flags.no_grad or x.is_stop_grad())
    if not kernels.use_fused(impl, SUPPORT, x, unless="on the CPU it has no gradient" if gradient else ""):
        return max_pool_nhwc_reference(x)
    if jt.flags.use_cuda:
        return _MaxPoolCuda.apply(x)
    b, h, w, c = x.shape
    with jt.no_grad():
        kind = "float" if x.dtype == "float32" else "uint16_t"
        return kernels.cpu_code((b, (h + 1) // 2, (w + 1) // 2, c), x.dtype, [x], kernel="pictures/max_pool.h",
                                source=f"jea::max_pool((const {kind}*)in0_p, ({kind}*)out0_p, in0_shape0, in0_shape1, "
                                       "in0_shape2, in0_shape3);")
