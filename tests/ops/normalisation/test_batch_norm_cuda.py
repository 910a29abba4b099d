"""The CUDA kernels of batch_norm, run on the CPU (cuda_on_cpu.py), against float64."""
import itertools
import shutil

import cuda_on_cpu
import numpy as np
import pytest
from expected.batch_norm import case as batch_norm_case
from expected.batch_norm import expected as expected_batch_norm
from expected.batch_norm import run_kernels

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cuda_on_cpu")


BATCH_NORM = cuda_on_cpu.for_both_types("""
void forwardNAME(long b, long c, long n, bool training, bool relu, long splits, const T* x, const float* weight,
                 const float* bias, const float* mean, const float* variance, const T* residual, T* y, float* means,
                 float* variances, float* work) {
    jea::batch_norm_forward({b, c, n, training, relu, 1e-5, splits}, x, weight, bias, mean, variance, residual, y,
                            means, variances, work);
}
void backwardNAME(long b, long c, long n, bool training, bool relu, long splits, const T* x, const T* y, const T* dy,
                  const float* weight, const float* means, const float* variances, T* dx, float* dweight, float* dbias,
                  T* dresidual, float* work) {
    jea::batch_norm_backward({b, c, n, training, relu, 1e-5, splits}, x, y, dy, weight, means, variances, dx, dweight,
                             dbias, dresidual, work);
}
""")


@pytest.fixture(scope="module")
def batch_norm(folder):
    library = cuda_on_cpu.build("normalisation/batch_norm.cuh", BATCH_NORM, folder)

    def run(x, weight, bias, statistics, residual, relu, g, splits):
        """y, mean, variance and the gradients of x, weight, bias and the residual."""
        b, c, n = x.shape[0], x.shape[1], x.size // (x.shape[0] * x.shape[1])
        sizes = b, c, n, statistics is None, relu, splits
        return run_kernels(library, sizes, c * (3 + 6 * splits), x, weight, bias, statistics, residual, g)
    return run


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(batch_norm, training):
    for shape, splits in (((2, 1), 1), ((4, 3), 1), ((2, 5, 63), 2), ((1, 2, 25, 25), 3), ((8, 3, 9, 7), 5),
                          ((2, 40, 3), 1), ((300, 2, 1), 2)):
        for with_residual, relu in itertools.product((False, True), repeat=2):
            x, weight, bias, statistics, residual, g = batch_norm_case(shape)
            statistics, residual = None if training else statistics, residual if with_residual else None
            y, mean, variance, gradients = batch_norm(x, weight, bias, statistics, residual, relu, g, splits)
            y64, mean64, variance64, gradients64 = expected_batch_norm(x, weight, bias, statistics, residual, relu, g)
            assert np.abs(mean - mean64).max() <= 2e-6
            assert np.abs(variance - variance64).max() <= 2e-6 * np.abs(variance64).max()
            assert np.abs(y - y64).max() <= 2e-6 * np.abs(y64).max()
            for got, wanted in zip(gradients, gradients64):
                if got is not None:
                    scale = max(np.abs(wanted).max(), (x.size / shape[1]) ** 0.5 if wanted.ndim == 1 else 1)
                    assert np.abs(got - wanted).max() <= 2e-6 * scale, (shape, with_residual, relu)


def test_batch_norm_in_half_precision(batch_norm):
    """The sums are float32: over 16,384 values a sum in float16 would be wrong in its second digit."""
    for shape, splits, relu in (((2, 5, 63), 2, True), ((4, 2, 64, 64), 3, False)):
        x, weight, bias, _, residual, g = batch_norm_case(shape, offset=1.0)
        x, residual, g = (v.astype(np.float16) for v in (x, residual, g))
        y, mean, variance, gradients = batch_norm(x, weight, bias, None, residual, relu, g, splits)
        y64, mean64, variance64, gradients64 = expected_batch_norm(x, weight, bias, None, residual, relu, g)
        assert np.abs(mean - mean64).max() <= 2e-6 and np.abs(variance / variance64 - 1).max() <= 2e-6
        for got, wanted in zip([y, gradients[0], gradients[3]], [y64, gradients64[0], gradients64[3]]):
            assert got.dtype == np.float16 and np.abs(got - wanted).max() <= 2.0 ** -11 * np.abs(wanted).max()
        for got, wanted in zip(gradients[1:3], gradients64[1:3]):
            assert np.abs(got - wanted).max() <= 2e-6 * max(np.abs(wanted).max(), (x.size / shape[1]) ** 0.5)


def test_batch_norm_far_from_zero_and_of_nan(batch_norm):
    x, weight, bias, _, _, g = batch_norm_case((4, 5, 90), offset=1000.0)
    x[0, 0, 0] = 1300.0  # one value far from the others: no pivot for all
    y, _, variance, _ = batch_norm(x, weight, bias, None, None, False, g, 2)
    y64, _, variance64, _ = expected_batch_norm(x, weight, bias, None, None, False, g)
    assert np.abs(y - y64).max() < 1e-5 and np.abs(variance / variance64 - 1).max() < 1e-6
    x, weight, bias, statistics, _, g = batch_norm_case((2, 3, 40))
    x[1, 1, 7] = np.nan
    for given in (statistics, None):
        y, mean, variance, _ = batch_norm(x, weight, bias, given, None, True, g, 1)
        assert np.isnan(y[1, 1, 7]) and np.isfinite(y[:, [0, 2]]).all()
        assert np.isnan([mean[1], variance[1]]).all() == (given is None) == np.isnan(y[:, 1]).all()
    y, _, variance, _ = batch_norm(np.full_like(x, 7.25), weight, bias, None, None, False, g, 2)
    assert (variance == 0).all() and (y == bias[:, None]).all()
