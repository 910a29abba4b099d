"""max_pool_nhwc: CUDA's kernels on the CPU (cuda_on_cpu.py), and the public function, against plain loops."""
import shutil

import cuda_on_cpu
import numpy as np
import pytest

from jea._jittor import jt
from jea.ops import max_pool_nhwc

SHAPES = [(1, 1, 1, 1), (2, 1, 5, 3), (2, 4, 4, 8), (1, 7, 6, 16), (3, 9, 5, 12), (1, 2, 3, 33)]
IDS = ["x".join(map(str, shape)) for shape in SHAPES]

KERNELS = "".join("""
void forwardNAME(long b, long h, long w, long c, const T* x, T* y, signed char* places) {
    jea::max_pool(jea::MaxPool{b, (int)h, (int)w, (int)c}, x, y, places);
}
void backwardNAME(long b, long h, long w, long c, const T* dy, const signed char* places, T* dx) {
    jea::max_pool_backward(jea::MaxPool{b, (int)h, (int)w, (int)c}, dy, places, dx);
}
""".replace("NAME", name).replace("T*", f"{kind}*") for name, kind in (("", "float"), ("16", "_Float16")))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return cuda_on_cpu.build("pictures/max_pool.cuh", KERNELS, tmp_path_factory.mktemp("max_pool"))


def case(shape, dtype=np.float32):
    """x with many equal values, g, and what loops make of them."""
    rng = np.random.default_rng(0)
    b, h, w, c = shape
    x = rng.integers(-3, 4, shape).astype(dtype)
    g = rng.standard_normal((b, (h + 1) // 2, (w + 1) // 2, c)).astype(dtype)
    y, dx = np.empty(g.shape, np.float64), np.zeros(shape)
    for at in np.ndindex(*g.shape):
        n, i, j, k = at
        inside = [(r, s) for r in range(2 * i - 1, 2 * i + 2) for s in range(2 * j - 1, 2 * j + 2)
                  if 0 <= r < h and 0 <= s < w]
        best = max(inside, key=lambda rs: (x[n, rs[0], rs[1], k], -inside.index(rs)))
        y[at] = x[n, best[0], best[1], k]
        dx[n, best[0], best[1], k] += g[at]
    return x, g, y, dx


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_the_kernels(library, shape, dtype):
    x, g, y64, dx64 = case(shape, dtype)
    half = "16" if dtype == np.float16 else ""
    y, dx, places = np.full_like(g, np.nan), np.full_like(x, np.nan), np.full(g.shape, -1, np.int8)
    cuda_on_cpu.call(getattr(library, "forward" + half), *shape, x, y, places)
    cuda_on_cpu.call(getattr(library, "backward" + half), *shape, g, places, dx)
    np.testing.assert_array_equal(y, y64)
    assert np.abs(dx - dx64).max() <= (1e-6 if dtype == np.float32 else 4e-3)


def test_nan_is_the_maximum(library):
    x = np.zeros((1, 5, 5, 4), np.float32)
    x[0, 1, 1, 2], x[0, 0, 0, 1] = np.nan, -np.inf
    y, places = np.full((1, 3, 3, 4), 7, np.float32), np.zeros((1, 3, 3, 4), np.int8)
    cuda_on_cpu.call(library.forward, 1, 5, 5, 4, x, y, places)
    assert np.isnan(y[0, :2, :2, 2]).all() and np.isnan(y).sum() == 4 and (y[..., 1] == 0).all()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("shape", [(2, 4, 4, 8), (1, 7, 6, 5)])
def test_the_function_and_its_gradient(shape):
    rng = np.random.default_rng(1)
    _, g, _, _ = case(shape)
    x = rng.permutation(np.prod(shape)).reshape(shape).astype(np.float32)  # no two equal
    var = jt.array(x)
    y = max_pool_nhwc(var)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2].max((-1, -2))
    np.testing.assert_array_equal(y.numpy(), windows)
    dx = jt.grad((y * jt.array(g)).sum(), var).numpy()
    wanted = np.zeros(x.size)
    np.add.at(wanted, windows.astype(int).ravel(), g.ravel())  # by value, of which each stands once in x
    assert np.abs(dx - wanted[x.astype(int)]).max() < 1e-6


def test_the_kernel_of_the_cpu_is_for_inference():
    with jt.flag_scope(use_cuda=0):
        with pytest.raises(ValueError, match="on the CPU it has no gradient"):
            max_pool_nhwc(jt.zeros((1, 2, 2, 3)), impl="fused")
