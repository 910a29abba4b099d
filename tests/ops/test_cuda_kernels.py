"""The arithmetic of the CUDA kernels, run on the CPU (cuda_on_cpu.py), against the float64 forms of the CPU's tests."""
import itertools
import shutil

import cuda_on_cpu
import numpy as np
import pytest
from test_batch_norm import case as batch_norm_case
from test_batch_norm import expected as expected_batch_norm
from test_cross_entropy import expected as expected_cross_entropy
from test_linear import expected as expected_linear
from test_resize import CASES as RESIZE_CASES
from test_resize import weights
from test_soft_split import SPLITS
from test_soft_split import expected as expected_soft_split

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cuda_on_cpu")


def for_both_types(functions: str) -> str:
    """Functions of T, called name and name16: for float and for half precision."""
    return "".join(functions.replace("NAME", suffix).replace("T*", f"{kind}*")
                   for suffix, kind in (("", "float"), ("16", "_Float16")))


BATCH_NORM = for_both_types("""
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
        like = (lambda *arrays: [np.full_like(a, np.nan) for a in arrays])
        y, means, variances, dx, dweight, dbias, dresidual = like(x, weight, weight, x, weight, weight, x)
        work = np.full(c * (3 + 6 * splits), np.nan, np.float32)
        half = "16" if x.dtype == np.float16 else ""
        cuda_on_cpu.call(getattr(library, "forward" + half), *sizes, x, weight, bias, *(statistics or (bias, weight)),
                         residual, y, means, variances, work)
        work[:] = np.nan
        cuda_on_cpu.call(getattr(library, "backward" + half), *sizes, x, y, g, weight, means, variances, dx, dweight, dbias,
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


def test_resize(folder):
    library = cuda_on_cpu.build("pictures/resize.cuh", """
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


CROSS_ENTROPY = for_both_types("""
void forwardNAME(long b, long c, long n, long ignored, float smoothing, const T* x, const int* labels, float* losses,
                 float* maxima, float* inverses) {
    jea::cross_entropy_forward({b, c, n, ignored, smoothing}, x, labels, losses, maxima, inverses);
}
void backwardNAME(long b, long c, long n, long ignored, float smoothing, const T* x, const int* labels,
                  const float* maxima, const float* inverses, const float* g, T* dx) {
    jea::cross_entropy_backward({b, c, n, ignored, smoothing}, x, labels, maxima, inverses, g, dx);
}
""")


@pytest.fixture(scope="module")
def cross_entropy(folder):
    library = cuda_on_cpu.build("losses/cross_entropy.cuh", CROSS_ENTROPY, folder)

    def run(x, labels, g, smoothing=0., ignored=255):
        """Losses and dx, which start as NaN."""
        half = "16" if x.dtype == np.float16 else ""
        losses, maxima, inverses = (np.full(labels.shape, np.nan, np.float32) for _ in range(3))
        dx = np.full_like(x, np.nan)
        sizes = *x.shape, ignored, smoothing
        cuda_on_cpu.call(getattr(library, "forward" + half), *sizes, x, labels, losses, maxima, inverses)
        cuda_on_cpu.call(getattr(library, "backward" + half), *sizes, x, labels, maxima, inverses, g, dx)
        return losses, dx
    return run


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy(cross_entropy, smoothing):
    rng = np.random.default_rng(0)
    for b, c, n, scale in ((1, 1, 1, 1.0), (2, 5, 63, 20.0), (1, 21, 301, 3.0), (2, 150, 37, 1e4), (7, 1000, 1, 1.0),
                           (3, 11, 5, 2.0), (5, 300, 3, 2.0)):
        x = (rng.standard_normal((b, c, n)) * scale).astype(np.float32)
        labels = rng.integers(0, c, (b, n)).astype(np.int32)
        labels[rng.random(labels.shape) < 0.2] = 255 if c < 255 else -1
        g = rng.standard_normal((b, n)).astype(np.float32)
        ignored = 255 if c < 255 else -1
        losses, dx = cross_entropy(x, labels, g, smoothing, ignored)
        losses64, dx64 = expected_cross_entropy(x, labels, g, smoothing, ignored)
        assert np.abs(losses - losses64).max() <= 3e-6 * max(np.abs(losses64).max(), 1), (b, c, n)
        assert np.abs(dx - dx64).max() <= 1e-6 * max(np.abs(dx64).max(), 1), (b, c, n)
        half = x.astype(np.float16)
        if scale < 100:
            losses, dx = cross_entropy(half, labels, g, smoothing, ignored)
            losses64, dx64 = expected_cross_entropy(half, labels, g, smoothing, ignored)
            assert np.abs(losses - losses64).max() <= 3e-6 * max(np.abs(losses64).max(), 1), (b, c, n)
            assert np.abs(dx - dx64).max() <= 2 ** -11 * max(np.abs(dx64).max(), 1), (b, c, n)


def test_cross_entropy_of_what_has_none(cross_entropy):
    x = np.zeros((7, 3, 1), np.float32)
    x[0, 1], x[1, 1], x[4, 1], x[5] = np.nan, np.inf, -np.inf, -np.inf
    x[6, 0] = np.nan
    labels = np.array([[0], [0], [3], [-7], [0], [0], [255]], np.int32)
    losses, dx = cross_entropy(x, labels, np.ones((7, 1), np.float32))
    assert np.isnan(losses[[0, 1, 2, 3, 5]]).all()
    assert losses[4] == pytest.approx(np.log(2)) and losses[6] == 0 and (dx[6] == 0).all()


LINEAR = for_both_types("""
void forwardNAME(long rows, long columns, bool gelu, long splits, const T* product, const T* bias, const T* summand,
                 T* y) {
    jea::linear_forward({rows, columns, gelu, splits}, product, bias, summand, y);
}
void backwardNAME(long rows, long columns, bool gelu, long splits, const T* product, const T* bias, const T* dy,
                  T* dproduct, T* dbias, float* work) {
    jea::linear_backward({rows, columns, gelu, splits}, product, bias, dy, dproduct, dbias, work);
}
""")


def test_linear(folder):
    library = cuda_on_cpu.build("products/linear.cuh", LINEAR, folder)
    rng = np.random.default_rng(0)
    for rows, columns, splits in ((1, 1, 1), (5, 33, 1), (70, 31, 3), (40, 130, 2), (300, 7, 10), (3, 5, 2)):
        for bias, gelu, summand in ((1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1)):
            for dtype in (np.float32, np.float16):
                half, rounding = ("", 0.) if dtype == np.float32 else ("16", 2. ** -11)
                product, s, g = (rng.standard_normal((rows, columns)).astype(dtype) * dtype(2) for _ in range(3))
                b = rng.standard_normal(columns).astype(dtype) if bias else None
                s = s if summand else None
                y, dproduct = np.full_like(product, np.nan), np.full_like(product, np.nan)
                dbias, work = np.full(columns, np.nan, dtype), np.full(splits * columns, np.nan, np.float32)
                sizes = rows, columns, bool(gelu), splits
                cuda_on_cpu.call(getattr(library, "forward" + half), *sizes, product, b, s, y)
                # As a linear map whose weight is 1.
                y64, (dx64, _, dbias64, _) = expected_linear(product, np.eye(columns), b, s, gelu, g)
                assert np.abs(y - y64).max() <= (1e-6 + rounding) * max(np.abs(y64).max(), 1), (rows, columns)
                cuda_on_cpu.call(getattr(library, "backward" + half), *sizes, product, b, g, dproduct, dbias, work)
                if gelu:
                    assert np.abs(dproduct - dx64).max() <= (1e-6 + rounding) * max(np.abs(dx64).max(), 1)
                else:
                    assert np.isnan(dproduct).all()  # it is dy
                if bias:
                    scale = max(np.abs(dbias64).max(), rows ** 0.5)
                    assert np.abs(dbias - dbias64).max() <= (2e-6 + rounding) * scale
                else:
                    assert np.isnan(dbias).all()


SOFT_SPLIT = for_both_types("""
void forwardNAME(long b, long c, long h, long w, long kernel, long stride, long padding, bool last, const T* x, T* y) {
    jea::soft_split_forward({b, c, h, w, kernel, stride, padding, last}, x, y);
}
void backwardNAME(long b, long c, long h, long w, long kernel, long stride, long padding, bool last, const T* dy,
                  T* dx) {
    jea::soft_split_backward({b, c, h, w, kernel, stride, padding, last}, dy, dx);
}
""")


def test_soft_split(folder):
    library = cuda_on_cpu.build("pictures/soft_split.cuh", SOFT_SPLIT, folder)
    rng = np.random.default_rng(0)
    for kernel, stride, padding in SPLITS:
        for shape, last in itertools.product(((1, 1, 7, 7), (2, 3, 16, 21), (2, 40, 9, 8)), (False, True)):
            x = rng.standard_normal(shape).astype(np.float32)
            wanted, index = expected_soft_split(x, kernel, stride, padding)
            g = rng.standard_normal(wanted.shape).astype(np.float32)
            picture = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x
            for dtype, half, tolerance in ((np.float32, "", 2e-6), (np.float16, "16", 4e-3)):
                y, dx = np.full(wanted.shape, np.nan, dtype), np.full(picture.shape, np.nan, dtype)
                sizes = *shape, kernel, stride, padding, last
                cuda_on_cpu.call(getattr(library, "forward" + half), *sizes, picture.astype(dtype), y)
                assert np.array_equal(y, wanted.astype(dtype)), (shape, last)
                cuda_on_cpu.call(getattr(library, "backward" + half), *sizes, g.astype(dtype), dx)
                dx64 = np.bincount(index[index >= 0], g.astype(dtype)[index >= 0].astype(np.float64), x.size)
                error = (dx.transpose(0, 3, 1, 2) if last else dx) - dx64.reshape(shape)
                assert np.abs(error).max() <= tolerance, (shape, last)
