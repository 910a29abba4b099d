"""soft_split: the kernel and the composed form against a loop over patches, output and gradient."""
import numpy as np
import pytest
from expected.soft_split import SPLITS, expected

from jea._jittor import jt
from jea.ops import kernels, soft_split

pytestmark = pytest.mark.usefixtures("device")


# Jittor compiles its unfold anew for each geometry: the reference gets one.
@pytest.mark.parametrize("split, impl", [*((split, "fused") for split in SPLITS), (SPLITS[1], "ref")], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_output_and_gradient(split, impl, channels_last):
    kernel, stride, padding = split
    for shape in ((1, 1, 7, 7), (2, 3, 16, 21), (2, 64, 9, 8), (1, 3, 65, 65)):
        rng = np.random.default_rng(0)
        x = rng.standard_normal(shape).astype(np.float32)
        wanted, index = expected(x, kernel, stride, padding)
        var = jt.array(np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if channels_last else x)
        y = soft_split(var, kernel_size=kernel, stride=stride, padding=padding, channels_last=channels_last, impl=impl)
        assert np.array_equal(y.numpy(), wanted)
        g = rng.standard_normal(wanted.shape).astype(np.float32)
        dx = jt.grad((y * jt.array(g)).sum(), var).numpy()
        dx64 = np.bincount(index[index >= 0], g[index >= 0].astype(np.float64), x.size).reshape(shape)
        assert np.abs((dx.transpose(0, 3, 1, 2) if channels_last else dx) - dx64).max() <= 1e-5


def test_every_output_element_is_written():
    for _ in range(3):
        poison = [jt.full((2, 64, 16, 16), float("nan")) for _ in range(4)] + [jt.full((2, 64, 576), float("nan"))] * 4
        jt.sync(poison)
        del poison
        x = jt.randn(2, 16, 16, 64)
        y = soft_split(x, kernel_size=3, stride=2, padding=1, channels_last=True, impl="fused")
        assert np.isfinite(y.numpy()).all() and np.isfinite(jt.grad(y.sum(), x).numpy()).all()


def test_the_kernel_ran(monkeypatch, device):
    function, kernel = ("cpu_code", "pictures/soft_split.h") if device == "cpu" else ("cuda_code",
                                                                                      "pictures/soft_split.cuh")
    calls, original = [], getattr(kernels, function)
    monkeypatch.setattr(kernels, function, lambda *a, **k: calls.append(k["kernel"]) or original(*a, **k))
    x = jt.randn(1, 3, 8, 8)
    jt.grad(soft_split(x, kernel_size=3, stride=2, padding=1).sum(), x).sync()
    assert calls == [kernel] * 2
    monkeypatch.setattr(kernels, "REFERENCES_ONLY", True)
    soft_split(x, kernel_size=3, stride=2, padding=1).sync()
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype, device):
    if device == "cpu":
        pytest.skip("the CPU's kernel takes float32")
    x = jt.randn(2, 16, 21, 3).cast(dtype)
    y = soft_split(x, kernel_size=7, stride=4, padding=2, channels_last=True, impl="fused")
    wanted, index = expected(x.float32().numpy().transpose(0, 3, 1, 2), 7, 4, 2)
    dx = jt.grad(y.float32().sum(), x)
    assert y.dtype == dx.dtype == dtype and np.array_equal(y.float32().numpy(), wanted)
    times = np.bincount(index[index >= 0], minlength=x.numel()).reshape(2, 3, 16, 21).transpose(0, 2, 3, 1)
    assert np.array_equal(dx.float32().numpy(), times)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\); expected four axes"):
        soft_split(jt.zeros((3, 8, 8)), kernel_size=3, stride=2, padding=1)
    with pytest.raises(ValueError, match="2 x 8 is too small for patches of 7 with padding 2"):
        soft_split(jt.zeros((1, 3, 2, 8)), kernel_size=7, stride=4, padding=2)
