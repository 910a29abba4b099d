"""batch_norm with the channels last: its CUDA kernels on the CPU (cuda_on_cpu.py), and the public function, against
float64."""
import itertools
import shutil

import cuda_on_cpu
import numpy as np
import pytest
from expected.batch_norm import case, expected, run_kernels

from jea._jittor import jt
from jea.ops import batch_norm
from jea.ops.normalisation.batch_norm_functions import nhwc_splits

KERNELS = "".join("""
void forwardNAME(long rows, long c, bool training, bool relu, long splits, long each, const T* x, const float* weight,
                 const float* bias, const float* mean, const float* variance, const T* residual, T* y, float* means,
                 float* variances, float* work) {
    jea::batch_norm_forward({rows, (int)c, training, relu, 1e-5, (int)splits, (int)each}, x, weight, bias, mean, variance,
                            residual, y, means, variances, work);
}
void backwardNAME(long rows, long c, bool training, bool relu, long splits, long each, const T* x, const T* y, const T* dy,
                  const float* weight, const float* means, const float* variances, T* dx, float* dweight, float* dbias,
                  T* dresidual, float* work) {
    jea::batch_norm_backward({rows, (int)c, training, relu, 1e-5, (int)splits, (int)each}, x, y, dy, weight, means,
                             variances, dx, dweight, dbias, dresidual, work);
}
""".replace("NAME", name).replace("T*", f"{kind}*") for name, kind in (("", "float"), ("16", "_Float16")))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    library = cuda_on_cpu.build("normalisation/batch_norm_nhwc.cuh", KERNELS, tmp_path_factory.mktemp("batch_norm"))

    def run(x, weight, bias, statistics, residual, relu, g, each=None):
        """y, mean, variance and the gradients of x, weight, bias and the residual, all of (rows, C)."""
        rows, c = x.shape
        splits, each = nhwc_splits(rows, c) if each is None else (-(-rows // each), each)
        sizes = rows, c, statistics is None, relu, splits, each
        return run_kernels(library, sizes, c * (3 + 3 * splits), x, weight, bias, statistics, residual, g)
    return run


def rows_of(shape, offset=0.0):
    """A case of (B, C, N), and of each array its rows (B N, C)."""
    x, weight, bias, statistics, residual, g = case(shape, offset=offset)
    return x, weight, bias, statistics, residual, g


def turned(array):
    return np.ascontiguousarray(array.transpose(0, 2, 1)).reshape(-1, array.shape[1])


SHAPES = [((1, 1, 1), None), ((4, 3, 1), None), ((2, 5, 63), 50), ((1, 8, 625), 100), ((2, 64, 65), 17),
          ((2, 260, 20), 30), ((300, 12, 1), 256), ((2, 40, 2000), None)]


@pytest.mark.parametrize("shape,each", SHAPES, ids=["x".join(map(str, shape)) for shape, _ in SHAPES])
@pytest.mark.parametrize("training", [True, False])
def test_the_kernels(kernels, training, shape, each):
    for with_residual, relu in itertools.product((False, True), repeat=2):
        x, weight, bias, statistics, residual, g = rows_of(shape)
        statistics, residual = None if training else statistics, residual if with_residual else None
        y, mean, variance, gradients = kernels(turned(x), weight, bias, statistics,
                                               None if residual is None else turned(residual), relu, turned(g), each)
        y64, mean64, variance64, gradients64 = expected(x, weight, bias, statistics, residual, relu, g)
        assert np.abs(mean - mean64).max() <= 2e-6
        assert np.abs(variance - variance64).max() <= 2e-6 * max(np.abs(variance64).max(), 1e-30)
        assert np.abs(y - turned(y64)).max() <= 2e-6 * np.abs(y64).max()
        for got, wanted in zip(gradients, gradients64):
            if got is not None:
                scale = max(np.abs(wanted).max(), (x.size / shape[1]) ** 0.5 if wanted.ndim == 1 else 1)
                assert np.abs(got - (wanted if wanted.ndim == 1
                                     else turned(wanted))).max() <= 2e-6 * scale, (with_residual, relu)


def test_far_from_zero(kernels):
    x, weight, bias, _, _, g = rows_of((4, 8, 63), offset=1000.0)
    y, mean, variance, gradients = kernels(turned(x), weight, bias, None, None, False, turned(g), 60)
    y64, mean64, variance64, gradients64 = expected(x, weight, bias, None, None, False, g)
    assert np.abs(y - turned(y64)).max() < 5e-6
    assert np.abs(variance / variance64 - 1).max() < 1e-6
    assert np.abs(gradients[0] - turned(gradients64[0])).max() < 1e-4  # here the mean is a float32: off by up to 3e-5


@pytest.mark.parametrize("shape,relu", [((2, 5, 63), True), ((4, 16, 4096), False)])
def test_half_precision(kernels, shape, relu):
    """The sums are float32: over 16,384 values a sum in float16 would be wrong in its second digit."""
    x, weight, bias, _, residual, g = rows_of(shape, offset=1.0)
    x, residual, g = (v.astype(np.float16) for v in (x, residual, g))
    y, mean, variance, gradients = kernels(turned(x), weight, bias, None, turned(residual), relu, turned(g))
    y64, mean64, variance64, gradients64 = expected(x, weight, bias, None, residual, relu, g)
    assert np.abs(mean - mean64).max() <= 2e-6 and np.abs(variance / variance64 - 1).max() <= 2e-6
    for got, wanted in zip([y, gradients[0], gradients[3]], [y64, gradients64[0], gradients64[3]]):
        assert got.dtype == np.float16 and np.abs(got - turned(wanted)).max() <= 2.0 ** -11 * np.abs(wanted).max()
    for got, wanted in zip(gradients[1:3], gradients64[1:3]):
        assert np.abs(got - wanted).max() <= 2e-6 * max(np.abs(wanted).max(), (x.size / shape[1]) ** 0.5)


def test_nan_is_handed_on(kernels):
    x, weight, bias, statistics, _, g = rows_of((2, 8, 40))
    x[1, 1, 7] = np.nan
    for given in (None, statistics):
        y, mean, _, _ = kernels(turned(x), weight, bias, given, None, True, turned(g), 13)
        assert np.isnan(y[47, 1]) and np.isfinite(y[:, [0, *range(2, 8)]]).all()
        assert np.isnan(y[:, 1]).all() == np.isnan(mean[1]) == (given is None)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("impl", ["auto", "ref"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 63), (2, 8, 3, 5)], ids=["5-channels", "8-channels"])
def test_the_function(training, shape, impl):
    x, weight, bias, statistics, residual, g = case(shape)
    def last(array):
        return (np.ascontiguousarray(np.moveaxis(array, 1, -1)))
    inputs = [jt.array(v) for v in (last(x), weight, bias, last(residual))]
    y, mean, variance = batch_norm(*inputs[:3], statistics=None if training else tuple(map(jt.array, statistics)),
                                   residual=inputs[3], relu=True, layout="nhwc", impl=impl)
    gradients = jt.grad((y * jt.array(last(g))).sum(), inputs)
    y64, mean64, variance64, gradients64 = expected(x, weight, bias, None if training else statistics, residual,
                                                    True, g)
    assert np.abs(mean.numpy() - mean64).max() <= 1e-5 and np.abs(variance.numpy() - variance64).max() <= 1e-5
    for got, wanted in zip([y, *gradients], [y64, *gradients64]):
        wanted = wanted if wanted.ndim == 1 else last(wanted)
        assert np.abs(got.numpy() - wanted).max() <= 1e-5 * max(np.abs(wanted).max(), (x.size / shape[1]) ** 0.5)


def test_refusals():
    ones = jt.ones((3,))
    with pytest.raises(ValueError, match='layout is "?\'?chwn'):
        batch_norm(jt.zeros((2, 3)), ones, ones, layout="chwn")
    with pytest.raises(ValueError, match=r"x is \(2, 3, 5\) and weight \(3,\); expected \(\.\.\., C\) and \(C,\)"):
        batch_norm(jt.zeros((2, 3, 5)), ones, ones, layout="nhwc")
    with jt.flag_scope(use_cuda=0):
        with pytest.raises(ValueError, match="on the CPU it takes the layout nchw"):
            batch_norm(jt.zeros((2, 5, 3)), ones, ones, layout="nhwc", impl="fused")
