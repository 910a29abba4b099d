"""What follows a matrix product on CUDA, run on the CPU (cuda_on_cpu.py), against float64."""
import shutil

import cuda_on_cpu
import numpy as np
import pytest
from expected.linear import expected as expected_linear

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cuda_on_cpu")


LINEAR = cuda_on_cpu.for_both_types("""
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
