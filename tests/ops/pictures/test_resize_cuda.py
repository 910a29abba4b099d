"""The CUDA kernels of resize_bilinear, run on the CPU (cuda_on_cpu.py), against float64."""
import shutil

import cuda_on_cpu
import numpy as np
import pytest
from expected.resize import CASES as RESIZE_CASES
from expected.resize import weights

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cuda_on_cpu")



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
