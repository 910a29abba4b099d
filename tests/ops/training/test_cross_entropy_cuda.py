"""The CUDA kernels of cross_entropy, run on the CPU (cuda_on_cpu.py), against float64."""
import shutil

import cuda_on_cpu
import numpy as np
import pytest
from expected.cross_entropy import expected as expected_cross_entropy

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cuda_on_cpu")


CROSS_ENTROPY = cuda_on_cpu.for_both_types("""
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
    library = cuda_on_cpu.build("training/cross_entropy.cuh", CROSS_ENTROPY, folder)

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
