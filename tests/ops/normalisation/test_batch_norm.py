"""batch_norm: the kernel and the composed form against float64, output, statistics and every gradient."""
import itertools

import numpy as np
import pytest
from expected.batch_norm import case, expected

from jea._jittor import jt
from jea.ops import batch_norm, kernels

pytestmark = pytest.mark.usefixtures("device")

SHAPES = [(2, 1), (4, 3), (2, 5, 63), (1, 2, 65, 65), (8, 3, 9, 7), (2, 2, 3, 3, 3)]


def check(shape, training, with_residual, relu, impl, seed=0):
    x, weight, bias, statistics, residual, g = case(shape, seed)
    statistics, residual = None if training else statistics, residual if with_residual else None
    inputs = [jt.array(v) for v in (x, weight, bias)] + ([jt.array(residual)] if with_residual else [])
    y, mean, variance = batch_norm(
        *inputs[:3], statistics=None if training else tuple(map(jt.array, statistics)),
        residual=inputs[3] if with_residual else None, relu=relu, impl=impl)
    gradients = jt.grad((y * jt.array(g)).sum(), inputs)
    y64, mean64, variance64, gradients64 = expected(x, weight, bias, statistics, residual, relu, g)
    tolerance = 1e-5 if impl == "ref" else 2e-6  # Jittor's own sums run in one float32 accumulator
    count = x.size / shape[1]
    assert np.abs(mean.numpy() - mean64).max() <= tolerance
    assert np.abs(variance.numpy() - variance64).max() <= tolerance * np.abs(variance64).max()
    assert np.abs(y.numpy() - y64).max() <= tolerance * np.abs(y64).max()
    for name, got, wanted in zip(("x", "weight", "bias", "residual"), gradients, gradients64):
        # Sums of `count` terms of either sign: the error's scale is the terms', not the sum's.
        scale = max(np.abs(wanted).max(), count ** 0.5 if name in ("weight", "bias") else 1)
        assert np.abs(got.numpy() - wanted).max() <= tolerance * scale, name


def of(shape):
    return "x".join(map(str, shape))


@pytest.mark.parametrize("with_residual,relu", list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=of)
def test_output_statistics_and_gradients(shape, training, with_residual, relu):
    check(shape, training, with_residual, relu, "fused")


@pytest.mark.parametrize("both", [False, True])  # each combination compiles kernels of its own
@pytest.mark.parametrize("training", [True, False])
def test_output_statistics_and_gradients_of_the_reference(training, both):
    check(SHAPES[2], training, both, both, "ref")


def test_large_channels_are_summed_in_blocks():
    check((2, 1, 300, 301), True, True, True, "fused")


def test_far_from_zero():
    x, weight, bias, _, _, g = case((4, 5, 9, 7), offset=1000.0)
    v = jt.array(x)
    y, mean, variance = batch_norm(v, jt.array(weight), jt.array(bias), impl="fused")
    y64, mean64, variance64, gradients = expected(x, weight, bias, None, None, False, g)
    assert np.abs(y.numpy() - y64).max() < 5e-6
    assert np.abs(variance.numpy() / variance64 - 1).max() < 1e-6
    dx = jt.grad((y * jt.array(g)).sum(), v).numpy()
    assert np.abs(dx - gradients[0]).max() < 1e-4  # here the mean is a float32: off by up to 3e-5


def test_constant_channel():
    y, mean, variance = batch_norm(jt.full((2, 3, 5), 7.25), jt.ones((3,)), jt.full((3,), 0.5), impl="fused")
    assert (mean.numpy() == 7.25).all() and (variance.numpy() == 0).all() and (y.numpy() == 0.5).all()


def test_the_kernel_ran(monkeypatch, device):
    calls, function, kernel = [], *(("cpu_code", "normalisation/batch_norm.h") if device == "cpu"
                                    else ("cuda_code", "normalisation/batch_norm.cuh"))
    original = getattr(kernels, function)
    monkeypatch.setattr(kernels, function, lambda *a, **k: calls.append(k["kernel"]) or original(*a, **k))
    x, weight, bias = jt.randn(2, 3, 5), jt.ones((3,)), jt.zeros((3,))
    batch_norm(x, weight, bias, impl="ref")
    assert calls == []
    y = batch_norm(x, weight, bias, relu=True)[0]
    assert calls == [kernel]
    jt.grad(y.sum(), x).sync()
    assert calls == [kernel] * 2


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_nan_is_handed_on(training, relu):
    """Through the ReLU too, or a broken training run would go on with zeros."""
    for sign in (0x7fc00000, 0xffc00000):
        x, weight, bias, statistics, _, _ = case((2, 3, 40))
        x[1, 1, 7] = np.array([sign], np.uint32).view(np.float32)[0]
        statistics = None if training else tuple(map(jt.array, statistics))
        y, mean, _ = batch_norm(jt.array(x), jt.array(weight), jt.array(bias), statistics=statistics, relu=relu,
                                impl="fused")
        y = y.numpy()
        assert np.isnan(y[1, 1, 7]) and np.isfinite(y[:, [0, 2]]).all()
        assert np.isnan(y[:, 1]).all() == training
        assert np.isnan(mean.numpy()[1]) == training


def test_every_output_element_is_written():
    for seed in range(3):
        poison = [jt.full(shape, float("nan")) for shape in ((8, 3, 9, 7), (3,)) for _ in range(8)]
        jt.sync(poison)
        del poison
        check((8, 3, 9, 7), True, True, True, "fused", seed)


def test_inputs_that_are_views():
    x, _, _, _, residual, g = case((4, 9, 5))
    v = jt.array(x)
    y, _, _ = batch_norm(v.transpose(0, 2, 1), jt.ones((5,)), jt.zeros((5,)),
                         residual=jt.array(residual).transpose(0, 2, 1))
    x, residual, turned = (array.transpose(0, 2, 1) for array in (x, residual, g))
    y64, _, _, (dx64, *_) = expected(x, np.ones(5), np.zeros(5), None, residual, False, turned)
    assert np.abs(y.numpy() - y64).max() < 1e-5
    dx = jt.grad((y * jt.array(g).transpose(0, 2, 1)).sum(), v).numpy()
    assert np.abs(dx - dx64.transpose(0, 2, 1)).max() < 1e-5


def test_statistics_carry_no_gradient():
    x = jt.randn(2, 3, 5)
    for impl in ("fused", "ref"):
        _, mean, variance = batch_norm(x, jt.ones((3,)), jt.zeros((3,)), impl=impl)
        assert mean.is_stop_grad() and variance.is_stop_grad()


def test_equals_pytorch():
    torch = pytest.importorskip("torch")
    x, weight, bias, _, residual, g = case((2, 16, 33, 33))
    tensors = [torch.from_numpy(v).requires_grad_() for v in (x, weight, bias, residual)]
    wanted = torch.relu(torch.nn.functional.batch_norm(tensors[0], None, None, *tensors[1:3], True) + tensors[3])
    wanted.backward(torch.from_numpy(g))
    inputs = [jt.array(v) for v in (x, weight, bias, residual)]
    y, _, _ = batch_norm(*inputs[:3], residual=inputs[3], relu=True)
    gradients = jt.grad((y * jt.array(g)).sum(), inputs)
    assert np.abs(y.numpy() - wanted.detach().numpy()).max() < 1e-5
    for got, tensor in zip(gradients, tensors):
        assert np.abs(got.numpy() - tensor.grad.numpy()).max() < 1e-5 * max(tensor.grad.abs().max().item(), 1)


def test_bad_arguments():
    ones = jt.ones((3,))
    with pytest.raises(ValueError, match=r"x is \(2, 4, 5\) and weight \(3,\); expected \(B, C, \.\.\.\) and \(C,\)"):
        batch_norm(jt.zeros((2, 4, 5)), ones, ones)
    with pytest.raises(ValueError, match=r"x is \(3,\) and weight"):
        batch_norm(ones, ones, ones)
    with pytest.raises(ValueError, match=r"and variance \(2,\)"):
        batch_norm(jt.zeros((2, 3)), ones, ones, statistics=(ones, jt.ones((2,))))
    with pytest.raises(ValueError, match=r"residual is \(2, 3, 1\); expected x's shape \(2, 3, 5\)"):
        batch_norm(jt.zeros((2, 3, 5)), ones, ones, residual=jt.zeros((2, 3, 1)))
    with pytest.raises(ValueError, match="batch_norm: no fused kernel here: it takes float32"):
        batch_norm(jt.zeros((2, 3, 5)).float64(), ones, ones, impl="fused")
