"""The CUDA kernels of soft_split, run on the CPU (cuda_on_cpu.py), against plain loops."""
import itertools
import shutil

import cuda_on_cpu
import numpy as np
import pytest
from expected.soft_split import SPLITS
from expected.soft_split import expected as expected_soft_split

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cuda_on_cpu")


SOFT_SPLIT = cuda_on_cpu.for_both_types("""
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
