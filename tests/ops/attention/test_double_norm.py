"""double_norm: the kernel and the composed form against float64, output and gradient."""
import platform

import numpy as np
import pytest
from expected.double_norm import LAYOUTS, expected, logits

from jea._jittor import jt
from jea.ops import double_norm, kernels

pytestmark = pytest.mark.usefixtures("device")


def check(x, layout, impl, eps=1e-9, var=None):
    g = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    var = jt.array(x) if var is None else var
    y = double_norm(var, layout=layout, eps=eps, impl=impl)
    dx = jt.grad((y * jt.array(g)).sum(), var)
    y64, dx64 = expected(x, layout, eps, g)
    tolerance = 2e-5 if impl == "ref" else 3e-6  # Jittor's own sums run in one float32 accumulator
    assert np.abs(y.numpy() - y64).max() <= tolerance
    # u - y d sum(u) cancels where the gradient is small: the scale of the error is y's and g's.
    assert np.abs(dx.numpy() - dx64).max() <= tolerance * max(np.abs(dx64).max(), 1.0)


SIZES = [(8, 64, 63), (8, 8, 4225), (2, 256, 4225), (2, 70000, 3)]
# The composed form is compiled anew for each pattern of sizes of 1.
SIZES_OF_THE_KERNEL = SIZES + [(1, 1, 1), (1, 8, 1), (8, 1, 63), (1, 64, 63), (1, 1, 4225), (1, 64, 4225),
                               (1, 256, 4225), (1, 256, 63)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("impl,batch,s,n", [("fused", *size) for size in SIZES_OF_THE_KERNEL]
                         + [("ref", *size) for size in SIZES])
def test_output_and_gradient(layout, impl, batch, s, n):
    check(logits(np.random.default_rng(0), layout, batch, s, n), layout, impl)


def test_the_kernel_ran(monkeypatch, device):
    calls, function, kernel = [], *(("cpu_code", "attention/double_norm.h") if device == "cpu"
                                    else ("cuda_code", "attention/double_norm.cuh"))
    original = getattr(kernels, function)
    monkeypatch.setattr(kernels, function, lambda *a, **k: calls.append(k["kernel"]) or original(*a, **k))
    x = jt.randn(2, 8, 9)
    double_norm(x, impl="ref").sync()
    assert calls == []
    y = double_norm(x)
    assert calls == [kernel]
    jt.grad(y.sum(), x).sync()
    assert calls == [kernel] * 2
    monkeypatch.setattr(kernels, "REFERENCES_ONLY", True)
    double_norm(x).sync()
    assert len(calls) == 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 5, 7), (2, 2, 2, 5, 7)])
def test_any_rank(layout, shape):
    x = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    check(x, layout, "fused")
    assert tuple(double_norm(jt.array(x), layout=layout).shape) == shape


@pytest.mark.parametrize("layout", LAYOUTS)
def test_extreme_logits(layout):
    rng = np.random.default_rng(3)
    for n in (63, 4225):
        x = np.where(rng.random((2, n, 8)) < 0.5, 1e4, -1e4).astype(np.float32)
        x = x if layout == "bns" else np.ascontiguousarray(x.transpose(0, 2, 1))
        check(x, layout, "fused")
        check(np.full_like(x, 1e4), layout, "fused")
        check(np.full_like(x, -3e38), layout, "fused")
    equal = double_norm(jt.full((1, 8, 63) if layout == "bsn" else (1, 63, 8), -7.0), layout=layout).numpy()
    assert np.abs(equal - 1 / 8).max() < 1e-7


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masked_positions(layout):
    rng = np.random.default_rng(4)
    x = logits(rng, layout, 2, 8, 4225)
    rows = x if layout == "bsn" else x.transpose(0, 2, 1)
    rows[0, :7, 100:4000] = -np.inf  # whole tiles of them
    y64 = expected(x, layout)
    y = double_norm(jt.array(x), layout=layout, impl="fused").numpy()
    assert np.isfinite(y).all() and np.abs(y - y64).max() <= 2e-6
    assert (y[y64 == 0] == 0).all()


@pytest.mark.parametrize("impl", ["fused", "ref"])
def test_heads_side_by_side(impl):
    """(B, N, H, S) is the same as (B H, N, S) of heads moved apart, output and gradient."""
    tolerance = 2e-5 if impl == "ref" else 3e-6
    sizes = ((2, 63, 3, 5), (3, 4225, 2, 8))
    if impl == "fused":
        sizes += ((1, 1, 1, 1), (1, 197, 16, 64), (2, 9, 70, 1))
    for batch, n, heads, s in sizes:
        rng = np.random.default_rng(10)
        x = (rng.standard_normal((batch, n, heads, s)) * 3).astype(np.float32)
        g = rng.standard_normal(x.shape).astype(np.float32)
        def apart(a):
            return (np.ascontiguousarray(a.transpose(0, 2, 1, 3)))
        y64, dx64 = expected(apart(x), "bns", 1e-9, apart(g))
        var = jt.array(x)
        y = double_norm(var, layout="bnhs", impl=impl)
        dx = jt.grad((y * jt.array(g)).sum(), var).numpy()
        assert np.abs(apart(y.numpy()) - y64).max() <= tolerance
        assert np.abs(apart(dx) - dx64).max() <= tolerance * max(np.abs(dx64).max(), 1.0)


def test_nan_stays_in_its_head():
    x = np.zeros((2, 300, 3, 8), np.float32)
    x[1, 7, 2, 0] = np.nan
    y = double_norm(jt.array(x), layout="bnhs", impl="fused").numpy()
    assert np.isnan(y[1, :, 2]).all() and np.isfinite(y[0]).all() and np.isfinite(y[1, :, :2]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_has_no_softmax_comes_out_as_nan(layout, bad):
    for n in (63, 4225):
        x = logits(np.random.default_rng(5), layout, 3, 8, n)
        clean = expected(x, layout)
        x[1].reshape(-1)[-1] = bad
        y = double_norm(jt.array(x), layout=layout, impl="fused").numpy()
        assert np.isnan(y[1]).all()
        assert np.abs(y[[0, 2]] - clean[[0, 2]]).max() <= 2e-6


def test_a_memory_with_every_position_masked_is_nan():
    x = np.zeros((2, 3, 5000), np.float32)
    x[0, 1] = -np.inf
    y = double_norm(jt.array(x), impl="fused").numpy()
    assert np.isnan(y[0]).all() and np.allclose(y[1], 1 / 3)


def test_nan_gradient_comes_out_as_nan():
    x, g = jt.randn(1, 8, 63), np.zeros((1, 8, 63), np.float32)
    g[0, 2, 5] = np.nan
    dx = jt.grad((double_norm(x, impl="fused") * jt.array(g)).sum(), x).numpy()
    assert np.isnan(dx).any()


def test_every_output_element_is_written():
    """Memory that Jittor hands out holds what was there before: fill it with NaN first."""
    for layout in LAYOUTS:
        x = logits(np.random.default_rng(6), layout, 2, 8, 4225)
        for _ in range(3):
            poison = [jt.full(x.shape, float("nan")) for _ in range(6)]
            jt.sync(poison)
            del poison
            check(x, layout, "fused")


@pytest.fixture
def without_avx512(monkeypatch, device):
    """Kernels as a processor without AVX-512 compiles them."""
    if device != "cpu":
        pytest.skip("the kernels of the CPU")
    header, compiled = kernels.header, kernels._compiled
    monkeypatch.setattr(kernels, "header", lambda name: header(name) + """
        #ifdef __AVX512F__
        static_assert(false, "AVX-512 is on");
        #endif
        """)

    def narrow(result, onednn):
        for var in result if isinstance(result, (list, tuple)) else (result,):
            var.compile_options = {"FLAGS: -mno-avx512f ": 1}
        return compiled(result, onednn)
    monkeypatch.setattr(kernels, "_compiled", narrow)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="-mno-avx512f is x86's")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_avx512(layout, without_avx512):
    rng = np.random.default_rng(8)
    for batch, s, n in ((2, 8, 63), (1, 70, 4225)):
        check(logits(rng, layout, batch, s, n), layout, "fused")
    for bad in (np.nan, np.inf):
        x = np.zeros((2, 37, 37), np.float32)
        x[1, 20, 36] = bad
        y = double_norm(jt.array(x), layout=layout, impl="fused").numpy()
        assert np.isnan(y[1]).all() and np.isfinite(y[0]).all()


def test_inputs_that_are_views():
    x = np.random.default_rng(7).standard_normal((2, 63, 8)).astype(np.float32)
    y = double_norm(jt.array(x).transpose(0, 2, 1), layout="bsn", impl="fused").numpy()
    assert np.abs(y - expected(x.transpose(0, 2, 1), "bsn")).max() <= 2e-6
    y = double_norm(jt.array(x)[:, 3:40], layout="bns", impl="fused").numpy()
    assert np.abs(y - expected(x[:, 3:40], "bns")).max() <= 2e-6


def test_eps():
    x = logits(np.random.default_rng(8), "bsn", 1, 8, 63)
    check(x, "bsn", "fused", eps=0.0)
    check(x, "bsn", "fused", eps=0.25)  # large: the sum over the memories is no longer 1


def test_other_dtypes_take_the_reference():
    x = np.random.default_rng(9).standard_normal((1, 4, 9))
    with jt.flag_scope(auto_convert_64_to_32=0):
        var = jt.array(x)
        y = double_norm(var)
        assert y.dtype == "float64" and np.abs(y.numpy() - expected(x, "bsn")).max() < 1e-14
        with pytest.raises(ValueError, match="double_norm: no fused kernel here: it takes float32"):
            double_norm(var, impl="fused")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sums_in_float32(layout, dtype, device):
    if device == "cpu":
        pytest.skip("the CPU's kernel takes float32")
    digits = 2 ** -11 if dtype == "float16" else 2 ** -8
    rng = np.random.default_rng(10)
    for batch, s, n in ((2, 64, 63), (1, 64, 16641), (1, 256, 4225)):
        x = jt.array(logits(rng, layout, batch, s, n)).cast(dtype)
        g = jt.array(rng.standard_normal(x.shape).astype(np.float32)).cast(dtype)
        y = double_norm(x, layout=layout, impl="fused")
        dx = jt.grad((y.float32() * g.float32()).sum(), x)
        assert y.dtype == dx.dtype == dtype
        y64, dx64 = expected(x.float32().numpy(), layout, 1e-9, g.float32().numpy())
        assert np.abs(y.float32().numpy() - y64).max() <= digits
        assert np.abs(dx.float32().numpy() - dx64).max() <= 8 * digits * max(np.abs(dx64).max(), 1.0)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"layout is 'sbn'; expected \"bsn\".* or \"bns\""):
        double_norm(jt.zeros((2, 3, 4)), layout="sbn")
    with pytest.raises(ValueError, match=r"shape \(3,\); expected at least two axes"):
        double_norm(jt.zeros((3,)))
    with pytest.raises(ValueError, match=r"shape \(3, 4\); expected at least three axes"):
        double_norm(jt.zeros((3, 4)), layout="bnhs")
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        with pytest.raises(ValueError, match="at least 1 along each axis"):
            double_norm(jt.zeros(shape))
    with pytest.raises(ValueError, match="impl is 'fast'"):
        double_norm(jt.zeros((2, 3, 4)), impl="fast")


@pytest.mark.parametrize("bad, place", [(-np.inf, slice(None)), (np.nan, 3), (np.inf, 3)])
@pytest.mark.parametrize("layout", ["bsn", "bns", "bnhs"])
def test_check_refuses_a_memory_without_softmax(layout, bad, place):
    x = np.zeros({"bsn": (2, 4, 9), "bns": (2, 9, 4), "bnhs": (2, 9, 3, 4)}[layout], np.float32)
    double_norm(jt.array(x), layout=layout, check=True)
    x[{"bsn": (1, 2, place), "bns": (1, place, 2), "bnhs": (1, place, 0, 2)}[layout]] = bad
    assert np.isnan(double_norm(jt.array(x), layout=layout).numpy()).any()
    with pytest.raises(ValueError, match=r"memory \(1, (0, )?2\).*no softmax"):
        double_norm(jt.array(x), layout=layout, check=True)
    x[...] = 0
    x[{"bsn": (1, 2, slice(8)), "bns": (1, slice(8), 2), "bnhs": (1, slice(8), 0, 2)}[layout]] = -np.inf  # one is left
    double_norm(jt.array(x), layout=layout, check=True)
