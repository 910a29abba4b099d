"""cross_entropy: the kernel and the composed form against float64, value and gradient."""
import numpy as np
import pytest
from expected.cross_entropy import expected

from jea._jittor import jt
from jea.ops import cross_entropy, kernels

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("impl", ["fused", "ref"])
def test_value_and_gradient(impl, smoothing):
    rng = np.random.default_rng(0)
    cases = ((1, 1, 1, 1.0), (2, 5, 63, 20.0), (1, 21, 4225, 3.0), (3, 150, 257, 1e4), (32, 40, 1, 1.0))
    # Jittor compiles the composed form anew for each pattern of axes of size 1: it gets one.
    for b, c, n, scale in cases if impl == "fused" else (cases[1], cases[3]):
        x = (rng.standard_normal((b, c, n)) * scale).astype(np.float32)
        labels = rng.integers(0, c, (b, n)).astype(np.int32)
        labels[rng.random(labels.shape) < 0.2] = 255
        g = rng.standard_normal((b, n)).astype(np.float32)
        var = jt.array(x)
        losses = cross_entropy(var, jt.array(labels), label_smoothing=smoothing, impl=impl)
        dx = jt.grad((losses * jt.array(g)).sum(), var)
        losses64, dx64 = expected(x, labels, g, smoothing, 255)
        assert np.abs(losses.numpy() - losses64).max() <= 3e-6 * max(np.abs(losses64).max(), 1)
        assert np.abs(dx.numpy() - dx64).max() <= 1e-6 * max(np.abs(dx64).max(), 1)


@pytest.mark.parametrize("impl", ["fused", "ref"])
def test_shapes_and_ignore_index(impl):
    x = np.zeros((2, 4), np.float32)
    x[1, 1:3] = -np.inf  # masked classes
    losses = cross_entropy(jt.array(x), jt.array(np.array([0, 3], np.int32)), impl=impl).numpy()
    assert losses == pytest.approx(np.log([4, 2]))
    pixels = cross_entropy(jt.zeros((1, 3, 2, 2)), jt.array(np.array([[[0, -1], [2, 2]]], np.int32)), ignore_index=-1,
                           impl=impl).numpy()
    assert pixels.shape == (1, 2, 2) and pixels[0, 0, 1] == 0 and pixels[0, 1, 1] == pytest.approx(np.log(3))


def test_what_has_no_loss_is_nan():
    """In the kernel also for logits without a softmax: under -Ofast they would vanish without a word."""
    x = np.zeros((4, 3), np.float32)
    x[0, 1], x[1, 1] = np.nan, np.inf
    losses = cross_entropy(jt.array(x), jt.array(np.array([0, 0, 3, 2], np.int32))).numpy()
    assert np.isnan(losses[:3]).all() and losses[3] == pytest.approx(np.log(3))
    outside = cross_entropy(jt.zeros((2, 3)), jt.array(np.array([-7, 3], np.int32)), impl="ref").numpy()
    assert np.isnan(outside).all()


def test_the_kernel_ran(monkeypatch, device):
    function, kernel = ("cpu_code", "training/cross_entropy.h") if device == "cpu" else ("cuda_code",
                                                                                       "training/cross_entropy.cuh")
    calls, original = [], getattr(kernels, function)
    monkeypatch.setattr(kernels, function, lambda *a, **k: calls.append(k["kernel"]) or original(*a, **k))
    x, labels = jt.randn(2, 8), jt.zeros((2,)).int32()
    cross_entropy(x, labels, impl="ref").sync()
    assert calls == []
    losses = cross_entropy(x, labels)
    assert calls == [kernel]
    jt.grad(losses.sum(), x).sync()
    assert calls == [kernel] * 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sums_in_float32(dtype, device):
    if device == "cpu":
        pytest.skip("the CPU's kernel takes float32")
    rng = np.random.default_rng(1)
    for b, c, n in ((2, 21, 4225), (64, 1000, 1)):
        x = jt.array((3 * rng.standard_normal((b, c, n))).astype(np.float32)).cast(dtype)
        labels, g = rng.integers(0, c, (b, n)).astype(np.int32), rng.standard_normal((b, n)).astype(np.float32)
        losses = cross_entropy(x, jt.array(labels), label_smoothing=0.1, impl="fused")
        dx = jt.grad((losses * jt.array(g)).sum(), x)
        assert losses.dtype == "float32" and dx.dtype == dtype
        losses64, dx64 = expected(x.float32().numpy(), labels, g, 0.1, 255)
        assert np.abs(losses.numpy() - losses64).max() <= 3e-6 * np.abs(losses64).max()
        digits = 2 ** -11 if dtype == "float16" else 2 ** -8
        assert np.abs(dx.float32().numpy() - dx64).max() <= digits * max(np.abs(dx64).max(), 1)


@pytest.mark.parametrize("logits, labels, message", [
    ((2, 3, 4), np.zeros((2, 5), np.int32), r"expected \(B, C, ...\)"),
    ((2,), np.zeros(2, np.int32), r"expected \(B, C, ...\)"),
    ((2, 3), np.zeros(2, np.float32), "expected int32"),
])
def test_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(jt.zeros(logits), jt.array(labels))


def test_smoothing_is_a_share():
    with pytest.raises(ValueError, match="label_smoothing"):
        cross_entropy(jt.zeros((2, 3)), jt.zeros((2,)).int32(), label_smoothing=1.0)
