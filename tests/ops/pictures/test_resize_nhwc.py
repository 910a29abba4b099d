"""resize_bilinear with the channels last: CUDA's kernels on the CPU (cuda_on_cpu.py) and the function, in float64."""
import shutil

import cuda_on_cpu
import numpy as np
import pytest
from expected.resize import CASES, weights

from jea._jittor import jt
from jea.ops import resize_bilinear

SIZES = CASES[:-1] + [((17, 17), (129, 129)), ((40, 70), (7, 9)), ((3, 3), (3, 40))]
IDS = [f"{'x'.join(map(str, size))}-to-{'x'.join(map(str, out))}" for size, out in SIZES]

KERNELS = "".join("""
void forwardNAME(long b, long h, long w, long c, long oh, long ow, const T* x, float* y) {
    jea::resize_forward(jea::ResizeNhwc{b, (int)h, (int)w, (int)c, (int)oh, (int)ow}, x, y);
}
void backwardNAME(long b, long h, long w, long c, long oh, long ow, const float* dy, T* dx) {
    jea::resize_backward(jea::ResizeNhwc{b, (int)h, (int)w, (int)c, (int)oh, (int)ow}, dy, dx);
}
""".replace("NAME", name).replace("T*", f"{kind}*") for name, kind in (("", "float"), ("16", "_Float16")))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return cuda_on_cpu.build("pictures/resize_nhwc.cuh", KERNELS, tmp_path_factory.mktemp("resize"))


def case(size, out, channels):
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((2, *shape, channels)).astype(np.float32) for shape in (size, out))
    rows, columns = weights(size[0], out[0]), weights(size[1], out[1])
    y64 = np.einsum("ih,bhwc,jw->bijc", rows, x.astype(np.float64), columns)
    dx64 = np.einsum("ih,bijc,jw->bhwc", rows, g.astype(np.float64), columns)
    return x, g, y64, dx64


@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("size,out", SIZES, ids=IDS)
def test_the_kernels(library, size, out, channels):
    x, g, y64, dx64 = case(size, out, channels)
    y, dx = np.full_like(g, np.nan), np.full_like(x, np.nan)
    cuda_on_cpu.call(library.forward, 2, *size, channels, *out, x, y)
    cuda_on_cpu.call(library.backward, 2, *size, channels, *out, g, dx)
    assert np.abs(y - y64).max() < 2e-5
    assert np.abs(dx - dx64).max() < 2e-5 * max(np.abs(dx64).max(), 1)


def test_half_precision(library):
    x, g, _, dx64 = case((5, 7), (9, 13), 8)
    x = x.astype(np.float16)
    y, dx = np.full_like(g, np.nan), np.full_like(x, np.nan)
    cuda_on_cpu.call(library.forward16, 2, 5, 7, 8, 9, 13, x, y)
    cuda_on_cpu.call(library.backward16, 2, 5, 7, 8, 9, 13, g, dx)
    y64 = np.einsum("ih,bhwc,jw->bijc", weights(5, 9), x.astype(np.float64), weights(7, 13))
    assert np.abs(y - y64).max() < 2e-5 and np.abs(dx - dx64).max() <= 2.0 ** -11 * np.abs(dx64).max()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("channels", [3, 8])
def test_the_function(channels):
    x, g, y64, dx64 = case((5, 7), (9, 13), channels)
    var = jt.array(x)
    y = resize_bilinear(var, (9, 13), layout="nhwc")
    dx = jt.grad((y * jt.array(g)).sum(), var)
    assert np.abs(y.numpy() - y64).max() < 2e-5 and np.abs(dx.numpy() - dx64).max() < 2e-5 * np.abs(dx64).max()
    assert resize_bilinear(var, (5, 7), layout="nhwc") is var


def test_refusals():
    with pytest.raises(ValueError, match="layout is 'hwc'"):
        resize_bilinear(jt.zeros((1, 2, 2, 3)), (4, 4), layout="hwc")
    with pytest.raises(ValueError, match=r"expected \(B, H, W, C\)"):
        resize_bilinear(jt.zeros((2, 2, 3)), (4, 4), layout="nhwc")
    with jt.flag_scope(use_cuda=0):
        with pytest.raises(ValueError, match="on the CPU it takes the layout nchw"):
            resize_bilinear(jt.zeros((1, 2, 2, 3)), (4, 4), layout="nhwc", impl="fused")
