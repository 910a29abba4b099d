"""external_attention: the kernel and the composed form against float64, output, map and every gradient."""
import numpy as np
import pytest

from jea._jittor import jt
from jea.ops import external_attention, kernels

needs_onednn = pytest.mark.skipif(jt.flags.use_cuda or kernels.onednn_include() is None,
                                  reason="needs the CPU and oneDNN")
SIZES = [(1, 1, 4, 1), (2, 63, 16, 8), (1, 4225, 32, 64), (8, 65, 48, 128), (3, 50, 5, 256)]  # B, N, C, S
# Jittor compiles the composed form anew where there is one batch or position.
CASES = [pytest.param(sizes, impl, marks=[needs_onednn] if impl == "fused" else [], id=f"{sizes}-{impl}")
         for impl in ("fused", "ref", "auto") for sizes in SIZES if impl != "ref" or min(sizes[:2]) > 1]


def expected(x, m_k, m_v, g, eps=1e-9):
    """y, the map (B, N, S) and the gradients of x, m_k and m_v, in float64; x is (B, N, C)."""
    x, m_k, m_v, g = (v.astype(np.float64) for v in (x, m_k, m_v, g))
    logits = x @ m_k.T
    e = np.exp(logits - logits.max(1, keepdims=True))
    softmax = e / e.sum(1, keepdims=True)
    total = eps + softmax.sum(2, keepdims=True)
    a = softmax / total
    da = g @ m_v.T
    h = (da - (da * a).sum(2, keepdims=True)) / total
    ds = softmax * (h - (softmax * h).sum(1, keepdims=True))
    return a @ m_v, a, [ds @ m_k, np.einsum("bns,bnc->sc", ds, x), np.einsum("bns,bnc->sc", a, g)]


def turned(v, layout):
    return np.ascontiguousarray(v.transpose(0, 2, 1)) if layout == "bcn" else v


@pytest.mark.parametrize("layout", ["bnc", "bcn"])
@pytest.mark.parametrize("sizes, impl", CASES)
def test_output_and_gradients(sizes, impl, layout):
    b, n, c, s = sizes
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((b, n, c)).astype(np.float32) for _ in range(2))
    m_k, m_v = (rng.standard_normal((s, c)).astype(np.float32) for _ in range(2))
    inputs = [jt.array(turned(x, layout)), jt.array(m_k), jt.array(m_v)]
    y = external_attention(*inputs, layout=layout, impl=impl)
    gradients = jt.grad((y * jt.array(turned(g, layout))).sum(), inputs)
    y64, _, gradients64 = expected(x, m_k, m_v, g)
    gradients64[0] = turned(gradients64[0], layout)
    assert np.abs(y.numpy() - turned(y64, layout)).max() <= 5e-6 * np.abs(y64).max()
    for name, got, wanted in zip(("x", "m_k", "m_v"), gradients, gradients64):
        # Sums over n positions of either sign.
        scale = max(np.abs(wanted).max(), 1 if name == "x" else n ** 0.5)
        assert np.abs(got.numpy() - wanted).max() <= 1e-5 * scale, name


@pytest.mark.parametrize("layout", ["bnc", "bcn"])
def test_the_map_on_request(layout):
    rng = np.random.default_rng(0)
    x, m = rng.standard_normal((2, 9, 4)).astype(np.float32), rng.standard_normal((3, 4)).astype(np.float32)
    y, attention = external_attention(jt.array(turned(x, layout)), jt.array(m), jt.array(m), layout=layout,
                                      return_attention=True)
    y64, a64, _ = expected(x, m, m, x)
    assert attention.shape == [2, 3, 9] and np.abs(attention.numpy() - a64.transpose(0, 2, 1)).max() < 1e-6
    assert np.abs(y.numpy() - turned(y64, layout)).max() < 2e-6


@needs_onednn
def test_the_kernel_ran(monkeypatch):
    calls = []
    original = kernels.cpu_code
    monkeypatch.setattr(kernels, "cpu_code", lambda *a, **k: calls.append(k["kernel"]) or original(*a, **k))
    x, m = jt.randn(2, 9, 4), jt.randn(3, 4)
    external_attention(x, m, m, impl="ref").sync()
    assert calls == []
    y = external_attention(x, m, m)
    assert calls == ["attention/external_attention.h"]
    jt.grad(y.sum(), x).sync()
    assert calls == ["attention/external_attention.h"] * 2


@pytest.mark.parametrize("x, m_k, m_v, layout, message", [
    ((2, 9, 4), (3, 5), (3, 5), "bnc", r"expected \(B, N, C\)"), ((2, 9, 4), (3, 4), (4, 4), "bnc", r"\(S, C\)"),
    ((9, 4), (3, 4), (3, 4), "bnc", r"expected \(B, N, C\)"),
    ((2, 9, 4), (3, 4), (3, 4), "bcn", r"expected \(B, C, N\)"),
    ((2, 9, 4), (3, 4), (3, 4), "nbc", "layout"), ((2, 0, 4), (3, 4), (3, 4), "bnc", "none empty"),
    ((0, 9, 4), (3, 4), (3, 4), "bnc", "none empty"), ((2, 9, 4), (0, 4), (0, 4), "bnc", "none empty"),
])
def test_refused(x, m_k, m_v, layout, message):
    with pytest.raises(ValueError, match=message):
        external_attention(jt.zeros(x), jt.zeros(m_k), jt.zeros(m_v), layout=layout)
