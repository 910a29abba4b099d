"""BatchNorm and its gradients in float64, and arrays to try."""
import cuda_on_cpu
import numpy as np


def expected(x, weight, bias, statistics, residual, relu, g, eps=1e-5):
    """y, mean, variance and the gradients of x, weight, bias, residual, in float64."""
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    def wide(v):
        return (np.asarray(v, np.float64).reshape((1, -1) + (1,) * (x.ndim - 2)))
    x = x.astype(np.float64)
    mean, variance = (x.mean(axes), x.var(axes)) if statistics is None else statistics
    inverse = 1 / np.sqrt(wide(variance) + eps)
    h = (x - wide(mean)) * inverse
    y = h * wide(weight) + wide(bias) + (0 if residual is None else residual)
    g = g.astype(np.float64)
    if relu:
        g, y = g * (y > 0), np.maximum(y, 0)
    dx = g
    if statistics is None:
        dx = g - g.mean(axes, keepdims=True) - h * (g * h).mean(axes, keepdims=True)
    return y, mean, variance, [wide(weight) * inverse * dx, (g * h).sum(axes), g.sum(axes), g]


def case(shape, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    def new(*size):
        return (rng.standard_normal(size).astype(np.float32))
    statistics = (new(shape[1]) + np.float32(offset), (rng.random(shape[1]) + 0.5).astype(np.float32))
    return new(*shape) + np.float32(offset), new(shape[1]), new(shape[1]), statistics, new(*shape), new(*shape)


def run_kernels(library, sizes, work_size, x, weight, bias, statistics, residual, g):
    """y, mean, variance and the gradients of x, weight, bias and the residual, by the kernels of a library of
    cuda_on_cpu; what they must write is NaN before."""
    def like(*arrays):
        return [np.full_like(a, np.nan) for a in arrays]
    y, means, variances, dx, dweight, dbias, dresidual = like(x, weight, weight, x, weight, weight, x)
    work = np.full(work_size, np.nan, np.float32)
    half = "16" if x.dtype == np.float16 else ""
    cuda_on_cpu.call(getattr(library, "forward" + half), *sizes, x, weight, bias, *(statistics or (bias, weight)),
                     residual, y, means, variances, work)
    work[:] = np.nan
    cuda_on_cpu.call(getattr(library, "backward" + half), *sizes, x, y, g, weight, means, variances, dx, dweight,
                     dbias, None if residual is None else dresidual, work)
    return y, means, variances, [dx, dweight, dbias, None if residual is None else dresidual]
