"""BatchNorm with PyTorch's semantics, with an optional summand and ReLU in the same pass."""
from __future__ import annotations

from jea import ranks
from jea._jittor import jt, nn
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, FLOATS, Support
from jea.ops.normalisation.batch_norm_functions import function_for
from jea.ops.products.half import single

SUPPORT = Support("batch_norm", cpu=FLOAT, cuda=FLOATS)


def moments(x, axes):
    """Mean, x - mean and biased variance over `axes`, kept as axes of length 1, stable for data far from zero."""
    # Any element near the mean will do as pivot: sums of x - pivot do not lose their digits.
    pivot = x[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(x.ndim))].stop_grad()
    shifted = x - pivot
    mean = shifted.mean(axes, keepdims=True)
    centred = shifted - mean
    return mean + pivot, centred, (centred * centred).mean(axes, keepdims=True)


def _channel_axis(x, layout: str) -> int:
    return 1 if layout == "nchw" else x.ndim - 1


def batch_norm_reference(x, weight, bias, *, statistics=None, residual=None, relu=False, eps=1e-5, layout="nchw"):
    """batch_norm composed of Jittor's own functions."""
    channel = _channel_axis(x, layout)
    shape = [x.shape[axis] if axis == channel else 1 for axis in range(x.ndim)]
    if statistics is None:
        mean, centred, variance = moments(x, [axis for axis in range(x.ndim) if axis != channel])
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


def batch_norm_over_ranks(x, weight, bias, *, residual=None, relu=False, eps=1e-5, layout="nchw"):
    """batch_norm of a batch that is spread evenly over the ranks, with its gradient; "blocked" is batch_norm_blocked's.

    Composed of Jittor's own functions: the statistics must be known everywhere before anything is normalised. They are
    computed in float64, which needs no pivot.
    """
    axes = [0, 2, 3] if layout == "blocked" else [axis for axis in range(x.ndim) if axis != _channel_axis(x, layout)]
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
               layout: str = "nchw", impl: str = "auto"):
    """y = relu?((x - mean) weight / sqrt(variance + eps) + bias + residual?), per channel.

    Without `statistics` mean and biased variance are the batch's, over all axes but 1, and the gradient goes through
    them. With g = dL/dy, zero where the ReLU cuts, h = (x - mean) / sqrt(variance + eps) and means over the batch:

        dL/dx = weight / sqrt(variance + eps) (g - mean(g) - h mean(g h))       [given statistics: the first g alone]
        dL/dweight = sum g h,   dL/dbias = sum g,   dL/dresidual = g

    The fused kernels keep their digits far from zero and hand NaN through the ReLU. On CUDA they also take x and
    residual in half precision and give y in it; what they sum and the vectors are float32. Under mpirun the batch is
    that of all ranks together.

    Args:
        x: float (B, C, ...), with any number of further axes, or (..., C).
        weight, bias: (C,).
        statistics: (mean, variance), each (C,), to use those instead of the batch's; they get no gradient.
        residual: of x's shape, added before the ReLU, or None.
        relu: with ReLU.
        eps: added to the variance.
        layout: "nchw", the channels are axis 1; or "nhwc", the last one. The kernel for that is CUDA's.
        impl: "auto", "fused" or "ref".
    Returns:
        y, mean, variance: of x's shape, (C,) and (C,); the variance is the biased one. Only y has a gradient.
    Raises:
        ValueError: shapes that do not agree, or "fused" where there is no kernel.
    """
    if layout not in ("nchw", "nhwc"):
        raise ValueError(f'batch_norm: layout is {layout!r}; expected "nchw" (B, C, ...) or "nhwc" (..., C)')
    shape, channels = tuple(x.shape), (x.shape[_channel_axis(x, layout)],) if x.ndim > 1 else ()
    vectors = {"weight": weight, "bias": bias}
    if statistics is not None:
        vectors.update(zip(("mean", "variance"), statistics))
    for name, value in vectors.items():
        if tuple(value.shape) != channels:
            raise ValueError(f"batch_norm: x is {shape} and {name} {tuple(value.shape)}; expected "
                             f"{'(B, C, ...)' if layout == 'nchw' else '(..., C)'} and (C,)")
    if residual is not None and tuple(residual.shape) != shape:
        raise ValueError(f"batch_norm: residual is {tuple(residual.shape)}; expected x's shape {shape}")
    if statistics is None and ranks.size() > 1:
        return batch_norm_over_ranks(x, weight, bias, residual=residual, relu=relu, eps=eps, layout=layout)
    function = function_for(layout)
    unless = "" if function else "on the CPU it takes the layout nchw"
    if any(vector.dtype != "float32" for vector in vectors.values()):
        unless = "it takes float32 vectors"
    if not kernels.use_fused(impl, SUPPORT, x, unless=unless):
        residual = None if residual is None else single(residual)
        return batch_norm_reference(single(x), weight, bias, statistics=statistics, residual=residual, relu=relu,
                                    eps=eps, layout=layout)
    numbers = {"training": int(statistics is None), "relu": int(relu), "eps": eps}
    flat = shape[:2] + (-1,) if layout == "nchw" else (-1, *channels)
    function = function()
    if residual is not None:
        residual = (residual if residual.dtype == x.dtype else residual.cast(x.dtype)).reshape(flat)
    y = function(x.reshape(flat), weight, bias, residual, statistics, numbers)
    return y.reshape(shape), function.mean.stop_grad(), function.variance.stop_grad()
