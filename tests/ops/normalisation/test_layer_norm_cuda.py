"""The CUDA kernels of layer_norm, run on the CPU (cuda_on_cpu.py), against float64."""
import shutil

import cuda_on_cpu
import numpy as np
import pytest

from jea.ops.normalisation.layer_norm import cuda_vectors

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

# rows, width, splits, offset, and the vectors of a lane: K of V
CASES = [(1, 1, 1, 0, 1, 1), (5, 16, 1, 1000, 1, 4), (5, 16, 1, 1000, 1, 1), (70, 33, 3, 0, 2, 1), (9, 384, 2, 0, 3, 4),
         (300, 7, 10, -50, 1, 1), (40, 147, 2, 3, 5, 1), (20, 500, 1, 0, 4, 4)]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    functions = "".join(f"""
    void forward{k}x{v}(long rows, long width, long splits, const float* x, const float* weight, const float* bias, float* y,
                        float* statistics) {{
        jea::layer_norm_forward<{k}, {v}>({{rows, width, 1e-5, splits}}, x, weight, bias, y, statistics);
    }}
    void backward{k}x{v}(long rows, long width, long splits, const float* x, const float* weight, const float* statistics,
                         const float* dy, float* dx, float* dweight, float* dbias, float* work) {{
        jea::layer_norm_backward<{k}, {v}>({{rows, width, 1e-5, splits}}, x, weight, statistics, dy, dx, dweight, dbias, work);
    }}""" for k, v in sorted({case[4:] for case in CASES}))
    return cuda_on_cpu.build("normalisation/layer_norm.cuh", functions, tmp_path_factory.mktemp("layer_norm"))


@pytest.mark.parametrize("rows,width,splits,offset,count,each", CASES, ids=["-".join(map(str, case)) for case in CASES])
def test_values_and_gradients(library, rows, width, splits, offset, count, each):
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((rows, width)).astype(np.float32) for _ in range(2))
    x += np.float32(offset)
    weight, bias = rng.standard_normal((2, width)).astype(np.float32)
    y, dx, dweight, dbias = (np.full_like(a, np.nan) for a in (x, x, weight, weight))
    statistics, work = np.full((rows, 3), np.nan, np.float32), np.full(2 * splits * width, np.nan, np.float32)
    forward, backward = (getattr(library, f"{name}{count}x{each}") for name in ("forward", "backward"))
    cuda_on_cpu.call(forward, rows, width, splits, x, weight, bias, y, statistics)
    cuda_on_cpu.call(backward, rows, width, splits, x, weight, statistics, g, dx, dweight, dbias, work)
    x64 = x.astype(np.float64)
    inverse = 1 / np.sqrt(x64.var(1, keepdims=True) + 1e-5)
    h, gw = (x64 - x64.mean(1, keepdims=True)) * inverse, g * weight.astype(np.float64)
    wanted = (h * weight + bias, inverse * (gw - gw.mean(1, keepdims=True) - h * (gw * h).mean(1, keepdims=True)),
              (g * h).sum(0), g.astype(np.float64).sum(0))
    for name, got, exact in zip(("y", "dx", "dweight", "dbias"), (y, dx, dweight, dbias), wanted):
        assert np.abs(got - exact).max() <= 3e-6 * max(np.abs(exact).max(), rows ** 0.5), name


@pytest.mark.parametrize("width", [1, 3, 4, 128, 132, 147, 384, 1023, 1024])
def test_vectors_hold_a_row(width):
    count, each = cuda_vectors(width)
    assert width % each == 0 and 32 * (count - 1) * each < width <= 32 * count * each
