"""Half precision on CUDA: what the operators make of float16 and bfloat16, and the convolution of such pictures.

Sums run in float32 everywhere. Jittor's own convolution (1.3.11) tells cuDNN to add up in the pictures' dtype, so that
a weight's gradient over 60,000 positions loses its digits in float16, while cuDNN has no such sum for bfloat16 at all;
it also remembers cuDNN's algorithms by shape without the dtype. Hence a convolution of our own.
"""
from __future__ import annotations

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.function import Function

HALF = ("float16", "bfloat16")

_SIZES = """
    using Half = std::decay_t<decltype(*in0_p)>;
    const auto number = [&](const char* name) { return (int)data[name]; };
    static jea::HalfConvs<Half> convs;
    auto& conv = convs.find({number("batch"), number("channels"), number("height"), number("width"),
                             number("out_channels"), number("kernel_h"), number("kernel_w"), number("stride"),
                             number("padding"), number("dilation")}, cudnn_handle);
"""


def single(x):
    """x, in float32 if it was half precision."""
    return x.float32() if x.dtype in HALF else x


class _Conv(Function):
    def execute(self, x, weight, numbers, shape):
        self.x, self.weight, self.numbers = x, weight, numbers
        return self.run([x, weight], shape, "conv.forward<Scratch>(in0_p, in1_p, out0_p);")

    def grad(self, dy):
        return (self.run([dy, self.weight], self.x.shape, "conv.backward_input<Scratch>(in0_p, in1_p, out0_p);"),
                self.run([self.x, dy], self.weight.shape, "conv.backward_weights<Scratch>(in0_p, in1_p, out0_p);"),
                None, None)

    def run(self, inputs, shape, call):
        return kernels.cuda_code(shape, self.x.dtype, inputs, kernel="convolution/conv_half.cuh", data=self.numbers,
                                 cudnn=True,
                              source=_SIZES + call)


def conv2d_half(x, weight, *, stride: int = 1, padding: int = 0, dilation: int = 1):
    """Convolution of half-precision pictures with cuDNN on CUDA, with gradients; its sums run in float32.

    Args:
        x: float16 or bfloat16 (B, I, H, W).
        weight: (O, I, kH, kW), of x's dtype.
        stride, padding, dilation: equal on both axes.
    Returns:
        (B, O, H', W') of x's dtype.
    Raises:
        ValueError: shapes or dtypes that do not agree, a picture smaller than the kernel, or no CUDA.
    """
    if (not jt.flags.use_cuda or x.ndim != 4 or weight.ndim != 4 or x.dtype not in HALF or weight.dtype != x.dtype
            or weight.shape[1] != x.shape[1]):
        raise ValueError(f"conv2d_half: got {x.dtype} {tuple(x.shape)} and weight {weight.dtype} "
                         f"{tuple(weight.shape)}; expected (B, I, H, W) and (O, I, kH, kW), both float16 or both "
                         "bfloat16, on CUDA")
    (batch, channels, height, width), (out_channels, _, kernel_h, kernel_w) = x.shape, weight.shape
    size = [(length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for length, kernel in ((height, kernel_h), (width, kernel_w))]
    if min(size) < 1:
        raise ValueError(f"conv2d_half: picture {height} x {width} is too small for a {kernel_h} x {kernel_w} kernel "
                         f"with dilation {dilation} and padding {padding}")
    numbers = {"batch": batch, "channels": channels, "height": height, "width": width, "out_channels": out_channels,
               "kernel_h": kernel_h, "kernel_w": kernel_w, "stride": stride, "padding": padding, "dilation": dilation}
    return _Conv.apply(x, weight, numbers, (batch, out_channels, *size))
