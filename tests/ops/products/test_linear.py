"""linear: the kernel and the composed form against float64, output and every gradient."""
import math

import numpy as np
import pytest
from expected.linear import expected, normal_integral

from jea._jittor import jt
from jea.ops import kernels, linear

needs_onednn = pytest.mark.skipif(kernels.onednn_include() is None, reason="Jittor runs without oneDNN")
pytestmark = [needs_onednn, pytest.mark.usefixtures("device")]


def check(shape, out, *, bias=True, summand=False, gelu=False, impl="fused"):
    rng = np.random.default_rng(0)
    def new(*size):
        return (rng.standard_normal(size).astype(np.float32))
    x, weight, g = new(*shape), new(out, shape[-1]) / np.float32(shape[-1] ** 0.5), new(*shape[:-1], out)
    arrays = [x, weight, new(out) if bias else None, new(*shape[:-1], out) if summand else None]
    variables = [None if v is None else jt.array(v) for v in arrays]
    y = linear(*variables[:3], gelu=gelu, summand=variables[3], impl=impl)
    with jt.no_grad():  # the form that keeps nothing for a gradient
        same = linear(*variables[:3], gelu=gelu, summand=variables[3], impl=impl)
    assert tuple(y.shape) == shape[:-1] + (out,)
    gradients = jt.grad((y * jt.array(g)).sum(), [v for v in variables if v is not None])
    y64, gradients64 = expected(*arrays, gelu, g)
    assert np.abs(y.numpy() - y64).max() <= 2e-6 * max(np.abs(y64).max(), 1)
    assert np.abs(same.numpy() - y64).max() <= 2e-6 * max(np.abs(y64).max(), 1)
    wanted = [v for v, array in zip(gradients64, arrays) if array is not None]
    assert len(wanted) == len(gradients)
    for got, value in zip(gradients, wanted):
        assert np.abs(got.numpy() - value).max() <= 4e-6 * max(np.abs(value).max(), x.size ** 0.5)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"summand": True}, {"bias": False, "summand": True},
                                     {"gelu": True}, {"gelu": True, "bias": False}], ids=str)
@pytest.mark.parametrize("impl", ["fused", "ref"])
def test_output_and_gradients(options, impl):
    cases = (((4225, 9), 5), ((1, 1), 1), ((1, 63), 64), ((63, 1), 3), ((2, 3, 5, 64), 64))
    for shape, out in cases if impl == "fused" else cases[:1]:
        check(shape, out, impl=impl, **options)


def test_gelu_everywhere():
    """The whole range: the tails, zero, and values whose square overflows."""
    special = [0.0, -0.0, 1e-30, -1e-30, 40, -40, 1e30, -1e30]
    x = np.concatenate([np.linspace(-12, 12, 4001), special]).astype(np.float32)
    var, one = jt.array(x[:, None]), jt.ones((1, 1))
    wanted = x * normal_integral(x.astype(np.float64))
    for grad in (True, False):
        with jt.flag_scope(no_grad=int(not grad)):
            y = linear(var, one, gelu=True, impl="fused").numpy()[:, 0]
        assert np.abs(y - wanted).max() <= 1e-6 * np.abs(wanted).max() and np.abs(y - wanted)[:4001].max() <= 1e-6
    slope = jt.grad(linear(var, one, gelu=True, impl="fused").sum(), var).numpy()[:4001, 0]
    x64 = x[:4001].astype(np.float64)
    assert np.abs(slope - normal_integral(x64) - x64 * np.exp(-x64 ** 2 / 2) / math.sqrt(2 * math.pi)).max() <= 1e-6


def test_batch_sizes_do_not_mix():
    """Products are prepared once per shape: a second shape must not get the first one's."""
    weight = jt.randn(5, 7)
    for rows in (3, 8, 3, 1):
        x = jt.randn(rows, 7)
        assert np.abs(linear(x, weight, impl="fused").numpy() - x.numpy() @ weight.numpy().T).max() < 1e-5
        x = jt.randn(rows, 7).transpose(1, 0)
        sums = linear(x, jt.ones((2, rows)), impl="fused").numpy()
        assert np.abs(sums - x.numpy().sum(1, keepdims=True)).max() < 1e-5


def test_the_kernel_ran(monkeypatch, device):
    function, kernel = ("cpu_code", "products/linear.h") if device == "cpu" else ("cuda_code", "products/linear.cuh")
    calls, original = [], getattr(kernels, function)
    monkeypatch.setattr(kernels, function, lambda *a, **k: calls.append(k["kernel"]) or original(*a, **k))
    x, weight, bias = jt.randn(4, 9), jt.randn(3, 9), jt.randn(3)
    linear(x, weight, bias, impl="ref").sync()
    assert calls == []
    y = linear(x, weight, bias)
    jt.grad(y.sum(), bias).sync()
    assert calls == [kernel] * 2
    if device == "cuda":  # where nothing follows the product, nothing but cuBLAS runs
        linear(x, weight).sync()
        assert len(calls) == 2
    monkeypatch.setattr(kernels, "REFERENCES_ONLY", True)
    linear(x, weight, bias).sync()
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"gelu": True}, {"summand": True}], ids=str)
def test_half_precision(options, dtype, device):
    if device == "cpu":
        pytest.skip("the CPU's kernel takes float32")
    rng = np.random.default_rng(0)
    x, weight, bias, summand, g = (jt.array(rng.standard_normal(shape).astype(np.float32)).cast(dtype)
                                   for shape in ((300, 64), (48, 64), (48,), (300, 48), (300, 48)))
    inputs = [x, weight, bias] + [summand] * ("summand" in options)
    y = linear(x, weight, bias, gelu="gelu" in options, summand=summand if "summand" in options else None, impl="fused")
    gradients = jt.grad((y.float32() * g.float32()).sum(), inputs)
    assert y.dtype == dtype and all(v.dtype == dtype for v in gradients)
    wide = [v.float32().numpy() for v in (x, weight, bias, summand, g)]
    y64, gradients64 = expected(*wide[:3], wide[3] if "summand" in options else None, "gelu" in options, wide[4])
    digits = 2 ** -10 if dtype == "float16" else 2 ** -7  # the product and the result are rounded
    assert np.abs(y.float32().numpy() - y64).max() <= digits * np.abs(y64).max()
    for got, wanted in zip(gradients, gradients64):
        assert np.abs(got.float32().numpy() - wanted).max() <= 2 * digits * np.abs(wanted).max()


def test_every_output_element_is_written():
    """Memory that Jittor hands out holds what was there before: fill it with NaN first."""
    for _ in range(3):
        poison = [jt.full((rows, 64), float("nan")) for rows in (63, 64) for _ in range(6)]
        jt.sync(poison)
        del poison
        check((63, 64), 64, gelu=True)
        check((63, 64), 64, summand=True)


def test_bad_arguments():
    x, weight = jt.zeros((2, 4)), jt.zeros((3, 4))
    with pytest.raises(ValueError, match=r"x is \(2, 5\) and weight \(3, 4\)"):
        linear(jt.zeros((2, 5)), weight)
    for empty, out in (((0, 4), 3), ((2, 0, 4), 3), ((2, 4), 0)):
        with pytest.raises(ValueError, match="none empty"):
            linear(jt.zeros(empty), jt.zeros((out, 4)))
    with pytest.raises(ValueError, match=r"bias is \(4,\); expected \(3,\)"):
        linear(x, weight, jt.zeros((4,)))
    with pytest.raises(ValueError, match=r"summand is \(3,\); expected \(2, 3\)"):
        linear(x, weight, summand=jt.zeros((3,)))
    with pytest.raises(ValueError, match="gelu and summand together"):
        linear(x, weight, gelu=True, summand=jt.zeros((2, 3)))
    with pytest.raises(ValueError, match="linear: no fused kernel here: it takes float32"):
        linear(x.float64(), weight, impl="fused")
