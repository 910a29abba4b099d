"""BatchNorm with PyTorch's semantics, with an optional summand and ReLU in the same pass."""
from __future__ import annotations

from jea import ranks
from jea._jittor import jt, nn
from jea.ops import kernels
from jea.ops.products.half import HALF, single

_SIZES = """
    const jea::BatchNorm sizes{in0_shape0, in0_shape1, in0_shape2, data["training"] != 0, data["relu"] != 0,
                               data["eps"]};
"""


class _BatchNorm(kernels.Function):
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


class _BatchNormCuda(kernels.Function):
    """As _BatchNorm."""

    def execute(self, x, weight, bias, residual, statistics, numbers):
        channels = x.shape[1]
        splits = cuda_splits(channels, x.shape[0] * x.shape[2])
        self.numbers = dict(numbers, residual=int(residual is not None), splits=splits)
        self.x, self.weight, self.workspace = x, weight, channels * (3 + 6 * splits)
        mean, variance = (bias, weight) if statistics is None else statistics
        self.y, self.mean, self.variance = kernels.cuda_code(
            [x.shape, weight.shape, weight.shape], [x.dtype, "float32", "float32"],
            [x, weight, bias, mean, variance, x if residual is None else residual], kernel="normalisation/batch_norm.cuh",
            data=self.numbers, workspace=self.workspace, source=_CUDA_SIZES + """
            jea::batch_norm_forward(sizes, in0_p, in1_p, in2_p, in3_p, in4_p, data["residual"] != 0 ? in5_p : nullptr,
                                    out0_p, out1_p, out2_p, workspace);""")
        return self.y

    def grad(self, dy):
        masked = self.numbers["residual"] and self.numbers["relu"]  # without ReLU its gradient is dy
        shapes = [self.x.shape] + [self.weight.shape] * 2 + [self.x.shape] * masked
        dtypes = [self.x.dtype] + ["float32"] * 2 + [self.x.dtype] * masked
        dx, dweight, dbias, *rest = kernels.cuda_code(
            shapes, dtypes, [self.x, self.y, dy, self.weight, self.mean, self.variance],
            kernel="normalisation/batch_norm.cuh", data=self.numbers, workspace=self.workspace,
            source=_CUDA_SIZES + "jea::batch_norm_backward(sizes, in0_p, in1_p, in2_p, in3_p, in4_p, in5_p, out0_p, "
                                 f"out1_p, out2_p, {'out3_p' if masked else '(decltype(out0_p))nullptr'}, workspace);")
        dresidual = rest[0] if masked else dy if self.numbers["residual"] else None
        return dx, dweight, dbias, dresidual, None, None


def moments(x, axes):
    """Mean, x - mean and biased variance over `axes`, kept as axes of length 1, stable for data far from zero."""
    # Any element near the mean will do as pivot: sums of x - pivot do not lose their digits.
    pivot = x[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(x.ndim))].stop_grad()
    shifted = x - pivot
    mean = shifted.mean(axes, keepdims=True)
    centred = shifted - mean
    return mean + pivot, centred, (centred * centred).mean(axes, keepdims=True)


def batch_norm_reference(x, weight, bias, *, statistics=None, residual=None, relu=False, eps=1e-5):
    """batch_norm composed of Jittor's own functions."""
    shape = [1, x.shape[1]] + [1] * (x.ndim - 2)
    if statistics is None:
        mean, centred, variance = moments(x, [axis for axis in range(x.ndim) if axis != 1])
        y = centred * (weight.reshape(shape) / jt.sqrt(variance + eps)) + bias.reshape(shape)
        mean, variance = mean.reshape(-1).stop_grad(), variance.reshape(-1).stop_grad()
    else:
        mean, variance = statistics
        # The root in float64: Jittor compiles float32 divisions and roots to approximations, and 50 layers add them up.
        # The mean is subtracted first: x * scale - mean * scale would cancel for data far from zero.
        scale = (weight.float64() / jt.sqrt(variance.float64() + eps)).float32()
        y = (x - mean.reshape(shape)) * scale.reshape(shape) + bias.reshape(shape)
    if residual is not None:
        y = y + residual
    return (nn.relu(y) if relu else y), mean, variance


def batch_norm_over_ranks(x, weight, bias, *, residual=None, relu=False, eps=1e-5, blocked=False):
    """batch_norm of a batch that is spread evenly over the ranks, with its gradient; `blocked`: batch_norm_blocked.

    Composed of Jittor's own functions: the statistics must be known everywhere before anything is normalised. They are
    computed in float64, which needs no pivot.
    """
    axes = [0, 2, 3] if blocked else [axis for axis in range(x.ndim) if axis != 1]
    shape = [1 if axis in axes else x.shape[axis] for axis in range(x.ndim)]
    residual, wide = None if residual is None else single(residual), x.float64()
    mean = wide.mean(axes, keepdims=True).mpi_all_reduce("mean")
    centred = (wide - mean).float32()
    variance = centred.float64().sqr().mean(axes, keepdims=True).mpi_all_reduce("mean")
    scale = (weight.reshape(shape).float64() / jt.sqrt(variance + eps)).float32()
    y = centred * scale + bias.reshape(shape)
    if residual is not None:
        y = y + residual
    statistics = [value.float32().reshape(-1).stop_grad() for value in (mean, variance)]
    return (nn.relu(y) if relu else y), statistics[0], statistics[1]


def batch_norm(x, weight, bias, *, statistics=None, residual=None, relu: bool = False, eps: float = 1e-5,
               impl: str = "auto"):
    """y = relu?((x - mean) weight / sqrt(variance + eps) + bias + residual?), per channel.

    Without `statistics` mean and biased variance are the batch's, over all axes but 1, and the gradient goes through
    them. With g = dL/dy, zero where the ReLU cuts, h = (x - mean) / sqrt(variance + eps) and means over the batch:

        dL/dx = weight / sqrt(variance + eps) (g - mean(g) - h mean(g h))       [given statistics: the first g alone]
        dL/dweight = sum g h,   dL/dbias = sum g,   dL/dresidual = g

    The fused kernels keep their digits far from zero and hand NaN through the ReLU. On CUDA they also take x and residual
    in half precision and give y in it; what they sum and the vectors are float32. Under mpirun the batch is that of all
    ranks together.

    Args:
        x: float (B, C, ...), with any number of further axes.
        weight, bias: (C,).
        statistics: (mean, variance), each (C,), to use those instead of the batch's; they get no gradient.
        residual: of x's shape, added before the ReLU, or None.
        relu: with ReLU.
        eps: added to the variance.
        impl: "auto", "fused" or "ref".
    Returns:
        y, mean, variance: of x's shape, (C,) and (C,); the variance is the biased one. Only y has a gradient.
    Raises:
        ValueError: shapes that do not agree, or "fused" where there is no kernel.
    """
    shape, channels = tuple(x.shape), (x.shape[1],) if x.ndim > 1 else ()
    vectors = {"weight": weight, "bias": bias}
    if statistics is not None:
        vectors.update(zip(("mean", "variance"), statistics))
    for name, value in vectors.items():
        if tuple(value.shape) != channels:
            raise ValueError(f"batch_norm: x is {shape} and {name} {tuple(value.shape)}; expected (B, C, ...) and (C,)")
    if residual is not None and tuple(residual.shape) != shape:
        raise ValueError(f"batch_norm: residual is {tuple(residual.shape)}; expected x's shape {shape}")
    if statistics is None and ranks.size() > 1:
        return batch_norm_over_ranks(x, weight, bias, residual=residual, relu=relu, eps=eps)
    dtypes = ("float32",) + (HALF if jt.flags.use_cuda else ())
    possible = x.dtype in dtypes and all(v.dtype == "float32" for v in vectors.values())
    if not kernels.use_fused(impl, name="batch_norm", possible=possible, reason=f"it takes {' and '.join(dtypes)}"):
        residual = None if residual is None else single(residual)
        return batch_norm_reference(single(x), weight, bias, statistics=statistics, residual=residual, relu=relu,
                                    eps=eps)
    numbers = {"training": int(statistics is None), "relu": int(relu), "eps": eps}
    flat = shape[:2] + (-1,)
    function = _BatchNormCuda() if jt.flags.use_cuda else _BatchNorm()
    if residual is not None:
        residual = (residual if residual.dtype == x.dtype else residual.cast(x.dtype)).reshape(flat)
    y = function(x.reshape(flat), weight, bias, residual, statistics, numbers)
    return y.reshape(shape), function.mean.stop_grad(), function.variance.stop_grad()
