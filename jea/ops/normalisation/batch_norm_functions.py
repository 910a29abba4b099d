"""What runs a batch_norm: its kernels for the CPU and CUDA, with their gradients."""
from __future__ import annotations

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.function import Function

_SIZES = """
    const jea::BatchNorm sizes{in0_shape0, in0_shape1, in0_shape2, data["training"] != 0, data["relu"] != 0,
                               data["eps"]};
"""


class BatchNorm(Function):
    """x and residual (B, C, N); the statistics are None while training. Leaves self.mean and self.variance."""

    kernel, sizes, forward, backward = "normalisation/batch_norm.h", _SIZES, "jea::batch_norm_forward", "jea::batch_norm_backward"

    def execute(self, x, weight, bias, residual, statistics, numbers):
        self.numbers = dict(numbers, residual=int(residual is not None))
        self.x, self.weight = x, weight
        # One kernel for all cases: what a case does not have is stood in for by what is there already.
        mean, variance = (bias, weight) if statistics is None else statistics
        self.y, self.mean, self.variance = kernels.cpu_code(
            [x.shape, weight.shape, weight.shape], ["float32"] * 3,
            [x, weight, bias, mean, variance, x if residual is None else residual], kernel=self.kernel,
            data=self.numbers, source=self.sizes + self.forward + """(
            sizes, in0_p, in1_p, in2_p, in3_p, in4_p, data["residual"] != 0 ? in5_p : nullptr, out0_p, out1_p, out2_p);""")
        return self.y

    def grad(self, dy):
        inputs = [self.x, self.y, dy, self.weight, self.mean, self.variance]
        shapes = [self.x.shape] + [self.weight.shape] * 2
        masked = self.numbers["residual"] and self.numbers["relu"]  # without ReLU its gradient is dy
        if masked:
            shapes.append(self.x.shape)
        gradients = kernels.cpu_code(
            shapes, ["float32"] * len(shapes), inputs, kernel=self.kernel, data=self.numbers,
            source=self.sizes + self.backward + "(sizes, in0_p, in1_p, in2_p, in3_p, in4_p, in5_p, out0_p, out1_p, "
                                                f"out2_p, {'out3_p' if masked else 'nullptr'});")
        dx, dweight, dbias = gradients[:3]
        dresidual = gradients[3] if masked else dy if self.numbers["residual"] else None
        return dx, dweight, dbias, dresidual, None, None


_CUDA_SIZES = _SIZES.replace('data["eps"]', 'data["eps"], (long)data["splits"]')


def cuda_splits(channels: int, count: int) -> int:
    """Into how many parts CUDA cuts a channel of `count` values: enough blocks for a large GPU, of 2048 or more."""
    return max(1, min(-(-count // 2048), -(-1024 // max(channels, 1))))


def nhwc_splits(rows: int, channels: int) -> tuple:
    """Into how many parts CUDA cuts the rows to sum over them, of 128 or more, and the rows of a part."""
    parts = max(1, min(-(-rows // 128), 528 // -(-channels // 128)))
    each = -(-rows // parts)
    return -(-rows // each), each


_NHWC_SIZES = """
    const jea::BatchNormNhwc sizes{(long)data["rows"], (int)data["channels"], data["training"] != 0, data["relu"] != 0,
                                   data["eps"], (int)data["splits"], (int)data["each"]};
"""


class BatchNormCuda(Function):
    """As BatchNorm."""
    kernel, sizes = "normalisation/batch_norm.cuh", _CUDA_SIZES

    def measure(self, x) -> tuple:
        """The kernel's own numbers, and how many floats it works in."""
        channels = x.shape[1]
        splits = cuda_splits(channels, x.shape[0] * x.shape[2])
        return {"splits": splits}, channels * (3 + 6 * splits)

    def execute(self, x, weight, bias, residual, statistics, numbers):
        own, self.workspace = self.measure(x)
        self.numbers = dict(numbers, residual=int(residual is not None), **own)
        self.x, self.weight = x, weight
        mean, variance = (bias, weight) if statistics is None else statistics
        self.y, self.mean, self.variance = self.run(
            [x.shape, weight.shape, weight.shape], [x.dtype, "float32", "float32"],
            [x, weight, bias, mean, variance, x if residual is None else residual], """
            jea::batch_norm_forward(sizes, in0_p, in1_p, in2_p, in3_p, in4_p, data["residual"] != 0 ? in5_p : nullptr,
                                    out0_p, out1_p, out2_p, workspace);""")
        return self.y

    def grad(self, dy):
        masked = self.numbers["residual"] and self.numbers["relu"]  # without ReLU its gradient is dy
        shapes = [self.x.shape] + [self.weight.shape] * 2 + [self.x.shape] * masked
        dtypes = [self.x.dtype] + ["float32"] * 2 + [self.x.dtype] * masked
        dx, dweight, dbias, *rest = self.run(
            shapes, dtypes, [self.x, self.y, dy, self.weight, self.mean, self.variance],
            "jea::batch_norm_backward(sizes, in0_p, in1_p, in2_p, in3_p, in4_p, in5_p, out0_p, out1_p, out2_p, "
            f"{'out3_p' if masked else '(decltype(out0_p))nullptr'}, workspace);")
        dresidual = rest[0] if masked else dy if self.numbers["residual"] else None
        return dx, dweight, dbias, dresidual, None, None

    def run(self, shapes, dtypes, inputs, call: str):
        return kernels.cuda_code(shapes, dtypes, inputs, kernel=self.kernel, data=self.numbers,
                                 workspace=self.workspace, source=self.sizes + call)


class BatchNormNhwcCuda(BatchNormCuda):
    """As BatchNorm, with x and residual (rows, C)."""
    kernel, sizes = "normalisation/batch_norm_nhwc.cuh", _NHWC_SIZES

    def measure(self, x) -> tuple:
        rows, channels = x.shape
        splits, each = nhwc_splits(rows, channels)
        return dict(rows=rows, channels=channels, splits=splits, each=each), channels * (3 + 3 * splits)


def function_for(layout: str):
    """The function for a layout on the chosen device, or None: "nchw" wants (B, C, N), "nhwc" (rows, C)."""
    if layout == "nchw":
        return BatchNormCuda if jt.flags.use_cuda else BatchNorm
    return BatchNormNhwcCuda if jt.flags.use_cuda else None
