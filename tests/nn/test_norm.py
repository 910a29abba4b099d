"""BatchNorm and LayerNorm have PyTorch's semantics, also far from zero."""
import numpy as np
import pytest

from jea._jittor import jt
from jea.nn import BatchNorm1d, BatchNorm2d, LayerNorm


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_batch_norm_trains_like_pytorch(offset):
    x = (np.random.default_rng(0).standard_normal((4, 5, 9, 7)) + offset).astype(np.float32)
    norm = BatchNorm2d(5)
    y = norm(jt.array(x)).numpy()
    x64 = x.astype(np.float64)
    mean, var = x64.mean((0, 2, 3)), x64.var((0, 2, 3))
    wanted = (x64 - mean[:, None, None]) / np.sqrt(var + 1e-5)[:, None, None]
    assert np.abs(y - wanted).max() < (1e-5 if offset == 0 else 5e-4)
    count = 4 * 9 * 7
    assert np.allclose(norm.running_mean.numpy(), 0.1 * mean, rtol=1e-5, atol=1e-6)
    assert np.allclose(norm.running_var.numpy(), 0.9 + 0.1 * var * count / (count - 1), rtol=1e-5)


def test_batch_norm_gradient():
    rng = np.random.default_rng(1)
    x, g = rng.standard_normal((3, 4, 5, 2)), rng.standard_normal((3, 4, 5, 2))
    norm = BatchNorm2d(4)
    weight, bias = rng.standard_normal(4), rng.standard_normal(4)
    norm.weight.assign(weight.astype(np.float32))
    norm.bias.assign(bias.astype(np.float32))
    v = jt.array(x.astype(np.float32))
    dx, dw, db = jt.grad((norm(v) * jt.array(g.astype(np.float32))).sum(), [v, norm.weight, norm.bias])
    axes = (0, 2, 3)
    mean, std = x.mean(axes, keepdims=True), np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    xh = (x - mean) / std
    want = weight[:, None, None] / std * (g - g.mean(axes, keepdims=True) - xh * (g * xh).mean(axes, keepdims=True))
    assert np.abs(dx.numpy() - want).max() < 1e-5
    assert np.allclose(dw.numpy(), (g * xh).sum(axes), atol=1e-4) and np.allclose(db.numpy(), g.sum(axes), atol=1e-4)


def test_evaluation_uses_running_statistics():
    norm = BatchNorm1d(3)
    norm.running_mean.assign(np.array([1, 2, 3], np.float32))
    norm.running_var.assign(np.array([4, 9, 16], np.float32))
    norm.eval()
    x = np.random.default_rng(2).standard_normal((2, 3, 6)).astype(np.float32)
    wanted = (x - np.array([1, 2, 3])[:, None]) / np.sqrt(np.array([4, 9, 16]) + 1e-5)[:, None]
    assert np.abs(norm(jt.array(x)).numpy() - wanted).max() < 1e-6
    assert np.array_equal(norm.running_mean.numpy(), [1, 2, 3])


def test_layer_norm_far_from_zero():
    x = (np.random.default_rng(3).standard_normal((4, 7, 16)) + 1000).astype(np.float32)
    y = LayerNorm(16)(jt.array(x)).numpy()
    x64 = x.astype(np.float64)
    wanted = (x64 - x64.mean(-1, keepdims=True)) / np.sqrt(x64.var(-1, keepdims=True) + 1e-5)
    assert np.abs(y - wanted).max() < 1e-3


def test_errors():
    with pytest.raises(ValueError, match="3 channels"):
        BatchNorm2d(3)(jt.randn(1, 4, 2, 2))
    with pytest.raises(ValueError, match="one value per channel"):
        BatchNorm2d(3)(jt.randn(1, 3, 1, 1))
    with pytest.raises(ValueError, match="its last axes differ"):
        LayerNorm(5)(jt.randn(2, 4))
