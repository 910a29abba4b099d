"""The arithmetic of the CUDA kernels, run on the CPU (cuda_on_cpu.py), against the float64 forms of the CPU's tests."""
import itertools
import shutil

import numpy as np
import pytest

import cuda_on_cpu
from test_batch_norm import case as batch_norm_case
from test_batch_norm import expected as expected_batch_norm
from test_double_norm import LAYOUTS, logits
from test_double_norm import expected as expected_double_norm
from test_resize import CASES as RESIZE_CASES
from test_resize import weights

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

DOUBLE_NORM = """
void forward(long batch, long s, long n, bool last, long heads, long splits, float eps, const float* x, float* y, float* d,
             float* work) {
    jea::double_norm_forward(jea::DoubleNorm{batch, s, n, last, heads, splits}, eps, x, y, d, work);
}
void backward(long batch, long s, long n, bool last, long heads, long splits, const float* y, const float* d, const float* g,
              float* dx, float* work) {
    jea::double_norm_backward(jea::DoubleNorm{batch, s, n, last, heads, splits}, y, d, g, dx, work);
}
void forward16(long batch, long s, long n, bool last, long heads, long splits, float eps, const _Float16* x, _Float16* y, float* d,
               float* work) {
    jea::double_norm_forward(jea::DoubleNorm{batch, s, n, last, heads, splits}, eps, x, y, d, work);
}
void backward16(long batch, long s, long n, bool last, long heads, long splits, const _Float16* y, const float* d,
                const _Float16* g, _Float16* dx, float* work) {
    jea::double_norm_backward(jea::DoubleNorm{batch, s, n, last, heads, splits}, y, d, g, dx, work);
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cuda_on_cpu")


@pytest.fixture(scope="module")
def double_norm(folder):
    library = cuda_on_cpu.build("double_norm.cuh", DOUBLE_NORM, folder)

    def run(x, layout, g=None, eps=1e-9, splits=None):
        """y and, with g, dx; every output and the scratch memory start as NaN."""
        from jea.ops.double_norm import cuda_splits
        if layout == "bsn":
            batch, s, n = x.shape
            heads = 1
        else:  # (B, N, heads, S); "bns" is one head
            heads = x.shape[2] if layout == "bnhs" else 1
            batch, n, s = x.shape[0] * heads, x.shape[1], x.shape[-1]
        splits = splits or cuda_splits(batch, n)
        nan = (lambda *shape, dtype=np.float32: np.full(shape, np.nan, dtype))
        half = "16" if x.dtype == np.float16 else ""
        y, d, dx = nan(*x.shape, dtype=x.dtype), nan(batch, n), nan(*x.shape, dtype=x.dtype)
        sizes = batch, s, n, layout == "bsn", heads, splits
        cuda_on_cpu.call(getattr(library, "forward" + half), *sizes, eps, x, y, d, nan(2 * batch * s * (splits + 1)))
        if g is None:
            return y
        cuda_on_cpu.call(getattr(library, "backward" + half), *sizes, y, d, g, dx,
                         nan(batch * s * (splits + 1) + batch * n))
        return y, dx
    return run


@pytest.mark.parametrize("layout", LAYOUTS)
def test_double_norm(double_norm, layout):
    rng = np.random.default_rng(0)
    for batch, s, n, splits in ((1, 1, 1, 0), (1, 8, 1, 0), (3, 1, 63, 0), (2, 64, 63, 0), (1, 128, 70, 1), (2, 20, 65, 7),
                                (1, 256, 40, 2), (1, 700, 9, 0), (1, 5, 1100, 3), (2, 3, 2, 5)):
        x = logits(rng, layout, batch, s, n)
        g = rng.standard_normal(x.shape).astype(np.float32)
        y, dx = double_norm(x, layout, g, splits=splits)
        y64, dx64 = expected_double_norm(x, layout, 1e-9, g)
        assert np.abs(y - y64).max() <= 3e-6, (batch, s, n)
        assert np.abs(dx - dx64).max() <= 3e-6 * max(np.abs(dx64).max(), 1.0), (batch, s, n)


def test_double_norm_of_several_heads(double_norm):
    rng = np.random.default_rng(2)
    for batch, n, heads, s in ((2, 65, 3, 20), (1, 40, 5, 64)):
        x, g = (rng.standard_normal((batch, n, heads, s)).astype(np.float32) for _ in range(2))
        y, dx = double_norm(x * 3, "bnhs", g, splits=2)
        y64, dx64 = expected_double_norm(3 * x.transpose(0, 2, 1, 3), "bns", 1e-9, g.transpose(0, 2, 1, 3))
        assert np.abs(y.transpose(0, 2, 1, 3) - y64).max() <= 3e-6
        assert np.abs(dx.transpose(0, 2, 1, 3) - dx64).max() <= 3e-6 * max(np.abs(dx64).max(), 1.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_double_norm_in_half_precision(double_norm, layout):
    rng = np.random.default_rng(1)
    x = logits(rng, layout, 2, 64, 63).astype(np.float16)
    g = rng.standard_normal(x.shape).astype(np.float16)
    y, dx = double_norm(x, layout, g)
    y64, dx64 = expected_double_norm(x, layout, 1e-9, g.astype(np.float64))
    assert np.abs(y - y64).max() <= 2 ** -11
    assert np.abs(dx - dx64).max() <= 2 ** -9 * np.abs(dx64).max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_double_norm_of_extreme_logits(double_norm, layout):
    rng = np.random.default_rng(3)
    x = np.where(rng.random((2, 8, 63)) < 0.5, 1e4, -1e4).astype(np.float32)
    cases = [x, np.full_like(x, 1e4), np.full_like(x, -3e38)]
    masked = rng.standard_normal((2, 8, 300)).astype(np.float32)
    masked[0, :7, 20:250] = -np.inf  # whole splits
    for x in cases + [masked]:
        x = np.ascontiguousarray(x if layout == "bsn" else x.transpose(0, 2, 1))
        y = double_norm(x, layout, splits=5)
        assert np.abs(y - expected_double_norm(x, layout)).max() <= 3e-6
    for bad in (np.nan, np.inf, -np.inf):
        x = rng.standard_normal((3, 8, 63)).astype(np.float32)
        clean = expected_double_norm(x, "bsn")
        x[1, 5, slice(None) if bad == -np.inf else 40] = bad
        y = double_norm(np.ascontiguousarray(x if layout == "bsn" else x.transpose(0, 2, 1)), layout)
        y = y if layout == "bsn" else y.transpose(0, 2, 1)
        assert np.isnan(y[1]).all() and np.abs(y[[0, 2]] - clean[[0, 2]]).max() <= 3e-6


BATCH_NORM = """
void forward(long b, long c, long n, bool training, bool relu, long splits, const float* x, const float* weight,
             const float* bias, const float* mean, const float* variance, const float* residual, float* y, float* means,
             float* variances, float* work) {
    jea::batch_norm_forward({b, c, n, training, relu, 1e-5, splits}, x, weight, bias, mean, variance, residual, y,
                            means, variances, work);
}
void backward(long b, long c, long n, bool training, bool relu, long splits, const float* x, const float* y,
              const float* dy, const float* weight, const float* means, const float* variances, float* dx,
              float* dweight, float* dbias, float* dresidual, float* work) {
    jea::batch_norm_backward({b, c, n, training, relu, 1e-5, splits}, x, y, dy, weight, means, variances, dx, dweight,
                             dbias, dresidual, work);
}
"""


@pytest.fixture(scope="module")
def batch_norm(folder):
    library = cuda_on_cpu.build("batch_norm.cuh", BATCH_NORM, folder)

    def run(x, weight, bias, statistics, residual, relu, g, splits):
        """y, mean, variance and the gradients of x, weight, bias and the residual."""
        b, c, n = x.shape[0], x.shape[1], x.size // (x.shape[0] * x.shape[1])
        sizes = b, c, n, statistics is None, relu, splits
        like = (lambda *arrays: [np.full_like(a, np.nan) for a in arrays])
        y, means, variances, dx, dweight, dbias, dresidual = like(x, weight, weight, x, weight, weight, x)
        work = np.full(c * (3 + 6 * splits), np.nan, np.float32)
        cuda_on_cpu.call(library.forward, *sizes, x, weight, bias, *(statistics or (bias, weight)), residual, y, means,
                         variances, work)
        work[:] = np.nan
        cuda_on_cpu.call(library.backward, *sizes, x, y, g, weight, means, variances, dx, dweight, dbias,
                         None if residual is None else dresidual, work)
        return y, means, variances, [dx, dweight, dbias, None if residual is None else dresidual]
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


def test_resize(folder):
    library = cuda_on_cpu.build("resize.cuh", """
    void forward(const float* x, float* y, long planes, long h, long w, long out_h, long out_w) {
        jea::resize_forward(x, y, planes, h, w, out_h, out_w);
    }
    void backward(const float* dy, float* dx, long planes, long h, long w, long out_h, long out_w) {
        jea::resize_backward(dy, dx, planes, h, w, out_h, out_w);
    }""", folder)
    rng = np.random.default_rng(0)
    for size, out in RESIZE_CASES[:-1] + [((17, 17), (129, 129)), ((40, 70), (7, 9)), ((3, 3), (3, 40))]:
        x = rng.standard_normal((2, 3) + size).astype(np.float32)
        g = rng.standard_normal((2, 3) + out).astype(np.float32)
        y, dx = np.full_like(g, np.nan), np.full_like(x, np.nan)
        cuda_on_cpu.call(library.forward, x, y, 6, *size, *out)
        cuda_on_cpu.call(library.backward, g, dx, 6, *size, *out)
        rows, columns = weights(size[0], out[0]), weights(size[1], out[1])
        assert np.abs(y - rows @ x @ columns.T).max() < 2e-5, (size, out)
        dx64 = rows.T @ g.astype(np.float64) @ columns
        assert np.abs(dx - dx64).max() < 2e-5 * max(np.abs(dx64).max(), 1), (size, out)


def test_layer_norm(folder):
    library = cuda_on_cpu.build("layer_norm.cuh", """
    void forward(long rows, long width, long splits, const float* x, const float* weight, const float* bias, float* y,
                 float* statistics) {
        jea::layer_norm_forward({rows, width, 1e-5, splits}, x, weight, bias, y, statistics);
    }
    void backward(long rows, long width, long splits, const float* x, const float* weight, const float* statistics,
                  const float* dy, float* dx, float* dweight, float* dbias, float* work) {
        jea::layer_norm_backward({rows, width, 1e-5, splits}, x, weight, statistics, dy, dx, dweight, dbias, work);
    }""", folder)
    rng = np.random.default_rng(0)
    for rows, width, splits, offset in ((1, 1, 1, 0), (5, 16, 1, 1000), (70, 33, 3, 0), (9, 384, 2, 0), (300, 7, 10, -50)):
        x, g = (rng.standard_normal((rows, width)).astype(np.float32) for _ in range(2))
        x += np.float32(offset)
        weight, bias = rng.standard_normal((2, width)).astype(np.float32)
        y, dx, dweight, dbias = (np.full_like(a, np.nan) for a in (x, x, weight, weight))
        statistics, work = np.full((rows, 3), np.nan, np.float32), np.full(2 * splits * width, np.nan, np.float32)
        cuda_on_cpu.call(library.forward, rows, width, splits, x, weight, bias, y, statistics)
        cuda_on_cpu.call(library.backward, rows, width, splits, x, weight, statistics, g, dx, dweight, dbias, work)
        x64 = x.astype(np.float64)
        inverse = 1 / np.sqrt(x64.var(1, keepdims=True) + 1e-5)
        h, gw = (x64 - x64.mean(1, keepdims=True)) * inverse, g * weight.astype(np.float64)
        wanted = (h * weight + bias, inverse * (gw - gw.mean(1, keepdims=True) - h * (gw * h).mean(1, keepdims=True)),
                  (g * h).sum(0), g.astype(np.float64).sum(0))
        for name, got, exact in zip(("y", "dx", "dweight", "dbias"), (y, dx, dweight, dbias), wanted):
            assert np.abs(got - exact).max() <= 3e-6 * max(np.abs(exact).max(), rows ** 0.5), (name, rows, width)
