"""layer_norm: the kernel and the composed form against float64, output and every gradient."""
import numpy as np
import pytest

from jea._jittor import jt
from jea.nn import LayerNorm
from jea.ops import kernels, layer_norm

pytestmark = pytest.mark.usefixtures("device")


def expected(x, weight, bias, g, eps=1e-5):
    """y, the gradients of x, weight, bias over the last axis, and the scale of x's, in float64."""
    x, weight, g = (v.astype(np.float64) for v in (x, weight, g))
    inverse = 1 / np.sqrt(x.var(-1, keepdims=True) + eps)
    h = (x - x.mean(-1, keepdims=True)) * inverse
    gw = g * weight
    dx = inverse * (gw - gw.mean(-1, keepdims=True) - h * (gw * h).mean(-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    return h * weight + bias, [dx, (g * h).sum(rows), g.sum(rows)], max(inverse.max(), 1)


def case(shape, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    def new(*size):
        return (rng.standard_normal(size).astype(np.float32))
    return new(*shape) + np.float32(offset), new(shape[-1]), new(shape[-1]), new(*shape)


def check(x, weight, bias, g, impl, tolerance, eps=1e-5):
    inputs = [jt.array(v) for v in (x, weight, bias)]
    y = layer_norm(*inputs, eps=eps, impl=impl)
    gradients = jt.grad((y * jt.array(g)).sum(), inputs)
    y64, gradients64, scale = expected(x, weight, bias, g, eps)
    assert tuple(y.shape) == x.shape
    assert np.abs(y.numpy() - y64).max() <= tolerance * np.abs(y64).max()
    for name, got, wanted in zip(("x", "weight", "bias"), gradients, gradients64):
        # dx is a difference of terms as large as `scale`; the others are sums over rows, of either sign.
        size = scale if name == "x" else (x.size / x.shape[-1]) ** 0.5
        assert np.abs(got.numpy() - wanted).max() <= tolerance * max(np.abs(wanted).max(), size), name


@pytest.mark.parametrize("impl", ["fused", "ref"])
def test_output_and_gradients(impl):
    if impl == "ref":  # compiled anew for each number of axes and pattern of sizes of 1: it gets one
        for rows, width in ((63, 64), (4225, 3), (33, 4225), (2, 10000)):
            check(*case((rows, width)), impl, 2e-5)  # Jittor's sums have one accumulator
        return
    for rows, width in ((1, 1), (1, 63), (63, 1), (63, 64), (1, 4225), (4225, 3), (33, 4225), (4225, 147), (2, 10000)):
        check(*case((rows, width)), impl, 3e-6)
    check(*case((2, 7, 3, 16)), impl, 3e-6)


def test_data_far_from_zero():
    x, weight, bias, g = case((9, 576), offset=1000.0)
    check(x, weight, bias, g, "fused", 2e-6)
    check(x * 1e4, weight, bias, g, "fused", 2e-6)
    check(np.full_like(x, 1000.0), weight, bias, g, "fused", 2e-6)  # no variance at all


def test_eps():
    x, weight, bias, g = case((5, 63))
    check(x, weight, bias, g, "fused", 3e-6, eps=0.5)
    check(x, weight, bias, g, "fused", 3e-6, eps=0.0)


def test_the_kernel_ran(monkeypatch, device):
    function, kernel = ("cpu_code", "normalisation/layer_norm.h") if device == "cpu" else ("cuda_code", "normalisation/layer_norm.cuh")
    calls = []
    original = getattr(kernels, function)
    monkeypatch.setattr(kernels, function, lambda *a, **k: calls.append(k["kernel"]) or original(*a, **k))
    x, weight, bias, _ = map(jt.array, case((4, 9)))
    layer_norm(x, weight, bias, impl="ref").sync()
    assert calls == []
    y = layer_norm(x, weight, bias)
    assert calls == [kernel]
    jt.grad(y.sum(), x).sync()
    assert calls == [kernel] * 2
    LayerNorm(9)(x).sync()
    assert calls == [kernel] * 3
    monkeypatch.setattr(kernels, "REFERENCES_ONLY", True)
    layer_norm(x, weight, bias).sync()
    assert len(calls) == 3


def test_every_output_element_is_written():
    """Memory that Jittor hands out holds what was there before: fill it with NaN first."""
    x, weight, bias, g = case((63, 4225))
    for _ in range(3):
        poison = [jt.full(x.shape, float("nan")) for _ in range(6)] + [jt.full((63, 3), float("nan")) for _ in range(6)]
        jt.sync(poison)
        del poison
        check(x, weight, bias, g, "fused", 3e-6)


def test_nan_stays_in_its_row():
    x, weight, bias, _ = case((5, 63))
    x[2, 7] = np.nan
    y = layer_norm(jt.array(x), jt.array(weight), jt.array(bias), impl="fused").numpy()
    assert np.isnan(y[2]).all() and np.isfinite(y[[0, 1, 3, 4]]).all()


def test_several_axes():
    x, _, _, g = case((4, 5, 6))
    weight, bias = case((5, 6), seed=1)[0], case((5, 6), seed=2)[0]
    y = layer_norm(jt.array(x), jt.array(weight), jt.array(bias), impl="fused").numpy()
    y64, *_ = expected(x.reshape(4, 30), weight.reshape(30), bias.reshape(30), g.reshape(4, 30))
    assert np.abs(y - y64.reshape(4, 5, 6)).max() <= 3e-6
    y = LayerNorm((5, 6), elementwise_affine=False)(jt.array(x)).numpy()
    y64, *_ = expected(x.reshape(4, 30), np.ones(30), np.zeros(30), g.reshape(4, 30))
    assert np.abs(y - y64.reshape(4, 5, 6)).max() <= 3e-6


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"x is \(2, 4\), weight \(5,\) and bias \(5,\); expected the last axes"):
        layer_norm(jt.zeros((2, 4)), jt.ones((5,)), jt.zeros((5,)))
    with pytest.raises(ValueError, match="layer_norm: no fused kernel here: it takes float32"):
        layer_norm(jt.zeros((2, 4)).float64(), jt.ones((4,)), jt.zeros((4,)), impl="fused")
