"""resize_bilinear: kernel and Jittor's own against float64 and PyTorch, output and gradient."""
import numpy as np
import pytest
from expected.resize import CASES, weights

from jea._jittor import jt
from jea.ops import kernels, resize_bilinear

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("impl,size,out",
                         [("fused", *sizes) for sizes in CASES] + [("ref", *sizes) for sizes in CASES[4:6]],
                         ids=lambda value: value if isinstance(value, str) else "x".join(map(str, value)))
def test_output_and_gradient(impl, size, out):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3) + size).astype(np.float32)
    g = rng.standard_normal((2, 3) + out).astype(np.float32)
    rows, columns = weights(size[0], out[0]), weights(size[1], out[1])
    var = jt.array(x)
    y = resize_bilinear(var, out, impl=impl)
    dx = jt.grad((y * jt.array(g)).sum(), var).numpy()
    # Positions are float32, as in PyTorch: at 513 they are off by 4e-6 of a cell.
    assert np.abs(y.numpy() - rows @ x @ columns.T).max() < 5e-5
    dx64 = rows.T @ g.astype(np.float64) @ columns
    assert np.abs(dx - dx64).max() < 2e-5 * max(np.abs(dx64).max(), 1)


def test_equals_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    for size, out in CASES:
        x = rng.standard_normal((2, 3) + size).astype(np.float32)
        g = rng.standard_normal((2, 3) + out).astype(np.float32)
        var, tensor = jt.array(x), torch.from_numpy(x).requires_grad_()
        y = resize_bilinear(var, out, impl="fused")
        dx = jt.grad((y * jt.array(g)).sum(), var).numpy()
        wanted = torch.nn.functional.interpolate(tensor, size=out, mode="bilinear", align_corners=True)
        wanted.backward(torch.from_numpy(g))
        assert np.abs(y.numpy() - wanted.detach().numpy()).max() < 2e-6, (size, out)
        dx64 = tensor.grad.numpy()
        assert np.abs(dx - dx64).max() < 2e-6 * max(np.abs(dx64).max(), 1), (size, out)


def test_by_hand():
    x = jt.array(np.array([[[[0.0, 2.0], [4.0, 6.0]]]], np.float32))
    y = resize_bilinear(x, (3, 3), impl="fused").numpy()[0, 0]
    assert y.tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]


def test_equal_size_is_the_input_itself():
    x = jt.randn(1, 2, 4, 5)
    assert resize_bilinear(x, (4, 5)) is x


def test_the_kernel_ran(monkeypatch, device):
    calls, function, kernel = [], *(("cpu_code", "pictures/resize.h") if device == "cpu"
                                    else ("cuda_code", "pictures/resize.cuh"))
    original = getattr(kernels, function)
    monkeypatch.setattr(kernels, function, lambda *a, **k: calls.append(k["kernel"]) or original(*a, **k))
    x = jt.randn(1, 2, 4, 5)
    jt.grad(resize_bilinear(x, (8, 9)).sum(), x).sync()
    assert calls == [kernel] * 2


def test_every_output_element_is_written():
    for _ in range(3):
        poison = [jt.full((2, 3, 33, 31), float("nan")) for _ in range(6)]
        jt.sync(poison)
        del poison
        x = jt.ones((2, 3, 17, 16))
        y = resize_bilinear(x, (33, 31), impl="fused")
        dx = jt.grad(y.sum(), x).numpy()
        assert np.allclose(y.numpy(), 1, atol=1e-6)
        assert np.isclose(dx.sum(), 2 * 3 * 33 * 31, rtol=1e-5)


def test_inputs_that_are_views():
    x = np.random.default_rng(2).standard_normal((2, 5, 7, 3)).astype(np.float32)
    y = resize_bilinear(jt.array(x).transpose(0, 3, 1, 2), (9, 8), impl="fused").numpy()
    assert np.abs(y - weights(5, 9) @ x.transpose(0, 3, 1, 2) @ weights(7, 8).T).max() < 1e-5


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"shape \(2, 3\) and size \(4, 4\); expected \(B, C, H, W\)"):
        resize_bilinear(jt.zeros((2, 3)), (4, 4))
    with pytest.raises(ValueError, match=r"size \(0, 4\); .* all at least 1"):
        resize_bilinear(jt.zeros((1, 1, 2, 3)), (0, 4))
