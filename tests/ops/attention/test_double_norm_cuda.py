"""The CUDA kernels of double_norm, run on the CPU (cuda_on_cpu.py), against the float64 form of the CPU's tests."""
import shutil

import cuda_on_cpu
import numpy as np
import pytest
from expected.double_norm import LAYOUTS, expected, logits

from jea.ops.attention.double_norm import cuda_held, cuda_splits

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
HELD = (8, 64, 128, 512)  # of the seven that there are

KERNELS = """
template <class Use>
void with(bool last, long held, const Use& use) {
    const auto then = [&](auto last) {
        switch (held) {
            case 8: return use(last, std::integral_constant<int, 8>());
            case 64: return use(last, std::integral_constant<int, 64>());
            case 128: return use(last, std::integral_constant<int, 128>());
            default: return use(last, std::integral_constant<int, 512>());
        }
    };
    if (last) then(std::true_type()); else then(std::false_type());
}
extern "C++" template <class T>
void forward_of(jea::DoubleNorm d, bool last, long held, float eps, const T* x, T* y, float* denominators, float* work) {
    with(last, held, [&](auto l, auto h) { jea::double_norm_forward<l.value, h.value>(d, eps, x, y, denominators, work); });
}
extern "C++" template <class T>
void backward_of(jea::DoubleNorm d, bool last, long held, const T* y, const float* denominators, const T* g, T* dx,
                 float* work) {
    with(last, held, [&](auto l, auto h) { jea::double_norm_backward<l.value, h.value>(d, y, denominators, g, dx, work); });
}
""".replace("template <class Use>", 'extern "C++" template <class Use>') + "".join("""
void forwardNAME(long batch, long s, long n, long heads, long splits, long each, bool last, long held, float eps, const T* x,
                 T* y, float* d, float* work) {
    forward_of(jea::DoubleNorm{batch, (int)s, (int)n, (int)heads, (int)splits, (int)each}, last, held, eps, x, y, d, work);
}
void backwardNAME(long batch, long s, long n, long heads, long splits, long each, bool last, long held, const T* y,
                  const float* d, const T* g, T* dx, float* work) {
    backward_of(jea::DoubleNorm{batch, (int)s, (int)n, (int)heads, (int)splits, (int)each}, last, held, y, d, g, dx, work);
}
""".replace("NAME", name).replace("T*", f"{kind}*") for name, kind in (("", "float"), ("16", "_Float16")))


def apart(array, offset: int):
    """A copy that begins `offset` elements behind an address that 16 divides."""
    room = np.full(array.size + 64, np.nan, array.dtype)
    begin = -room.ctypes.data % 16 // array.itemsize + offset
    room[begin:begin + array.size] = array.ravel()
    return room[begin:begin + array.size].reshape(array.shape)


@pytest.fixture(scope="module")
def double_norm(tmp_path_factory):
    library = cuda_on_cpu.build("attention/double_norm.cuh", KERNELS, tmp_path_factory.mktemp("double_norm"))

    def run(x, layout, g=None, eps=1e-9, splits=None, held=None, offset=0):
        """y and, with g, dx; every output and the scratch memory start as NaN."""
        if layout == "bsn":
            batch, s, n = x.shape
            heads = 1
        else:  # (B, N, heads, S); "bns" is one head
            heads = x.shape[2] if layout == "bnhs" else 1
            batch, n, s = x.shape[0] * heads, x.shape[1], x.shape[-1]
        held = held or next(h for h in HELD if h >= cuda_held(s))
        half = "16" if x.dtype == np.float16 else ""

        def call(name, *arguments, backward):
            several, each = cuda_splits(layout, batch, s, n, backward=backward)
            if splits:  # whole vectors of either type each; with positions last rows begin up to 7 behind a part
                several, each = splits, -(-(n + 7) // (8 * splits)) * 8
            room = batch * s * (several + 1) * (1 if backward else 2) + batch * n * backward
            cuda_on_cpu.call(getattr(library, name + half), batch, s, n, heads, several, each, layout == "bsn", held,
                             *arguments, np.full(room, np.nan, np.float32))
        def nan(like):
            return (apart(np.full(like.shape, np.nan, like.dtype), offset))
        y, d, dx = nan(x), np.full((batch, n), np.nan, np.float32), nan(x)
        call("forward", eps, apart(x, offset), y, d, backward=False)
        if g is None:
            return y
        call("backward", y, d, apart(g, offset), dx, backward=True)
        return y, dx
    return run


SIZES = [(1, 1, 1, None), (1, 8, 1, None), (3, 1, 63, None), (2, 64, 63, None), (1, 128, 70, 1), (2, 20, 65, 7),
         (1, 256, 40, 2), (1, 700, 9, None), (1, 5, 1100, 3), (2, 3, 2, 5), (2, 64, 272, 3), (1, 64, 4225, None),
         (40, 8, 136, None)]


def close(y, dx, x, layout, g):
    y64, dx64 = expected(x, layout, 1e-9, g)
    assert np.abs(y - y64).max() <= 3e-6
    assert np.abs(dx - dx64).max() <= 3e-6 * max(np.abs(dx64).max(), 1.0)


@pytest.mark.parametrize("batch,s,n,splits", SIZES, ids=["-".join(map(str, size)) for size in SIZES])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradient(double_norm, layout, batch, s, n, splits):
    rng = np.random.default_rng(0)
    x = logits(rng, layout, batch, s, n)
    g = rng.standard_normal(x.shape).astype(np.float32)
    close(*double_norm(x, layout, g, splits=splits), x, layout, g)


@pytest.mark.parametrize("s,n,held", [(20, 65, 8), (64, 132, 8), (200, 68, 64), (700, 13, 64), (700, 12, 128)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_memories_than_the_registers_hold(double_norm, layout, s, n, held):
    rng = np.random.default_rng(4)
    x = logits(rng, layout, 2, s, n)
    g = rng.standard_normal(x.shape).astype(np.float32)
    close(*double_norm(x, layout, g, held=held), x, layout, g)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_addresses_that_no_vector_has(double_norm, layout, dtype):
    """What a slice of a batch may begin at."""
    rng = np.random.default_rng(5)
    x = logits(rng, layout, 2, 64, 72).astype(dtype)
    g = rng.standard_normal(x.shape).astype(dtype)
    for got, wanted in zip(double_norm(x, layout, g, offset=1), double_norm(x, layout, g)):
        assert np.abs(got - wanted).max() <= (1e-6 if dtype == np.float32 else 2 ** -10) * np.abs(wanted).max()


@pytest.mark.parametrize("batch,n,heads,s", [(2, 65, 3, 20), (1, 40, 5, 64), (1, 300, 2, 7)])
def test_several_heads(double_norm, batch, n, heads, s):
    rng = np.random.default_rng(2)
    x, g = (rng.standard_normal((batch, n, heads, s)).astype(np.float32) for _ in range(2))
    y, dx = double_norm(x * 3, "bnhs", g, splits=2)
    close(y.transpose(0, 2, 1, 3), dx.transpose(0, 2, 1, 3), 3 * x.transpose(0, 2, 1, 3), "bns",
          g.transpose(0, 2, 1, 3))


@pytest.mark.parametrize("batch,s,n", [(2, 64, 63), (1, 64, 1032), (1, 20, 130)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision(double_norm, layout, batch, s, n):
    rng = np.random.default_rng(1)
    x = logits(rng, layout, batch, s, n).astype(np.float16)
    g = rng.standard_normal(x.shape).astype(np.float16)
    y, dx = double_norm(x, layout, g)
    y64, dx64 = expected(x, layout, 1e-9, g.astype(np.float64))
    assert np.abs(y - y64).max() <= 2 ** -11
    assert np.abs(dx - dx64).max() <= 2 ** -9 * np.abs(dx64).max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_extreme_logits(double_norm, layout):
    rng = np.random.default_rng(3)
    x = np.where(rng.random((2, 8, 63)) < 0.5, 1e4, -1e4).astype(np.float32)
    cases = [x, np.full_like(x, 1e4), np.full_like(x, -3e38)]
    masked = rng.standard_normal((2, 8, 300)).astype(np.float32)
    masked[0, :7, 20:250] = -np.inf  # whole splits
    for x in cases + [masked]:
        x = np.ascontiguousarray(x if layout == "bsn" else x.transpose(0, 2, 1))
        y = double_norm(x, layout, splits=5)
        assert np.abs(y - expected(x, layout)).max() <= 3e-6
    for bad in (np.nan, np.inf, -np.inf):
        x = rng.standard_normal((3, 8, 63)).astype(np.float32)
        clean = expected(x, "bsn")
        x[1, 5, slice(None) if bad == -np.inf else 40] = bad
        y = double_norm(np.ascontiguousarray(x if layout == "bsn" else x.transpose(0, 2, 1)), layout)
        y = y if layout == "bsn" else y.transpose(0, 2, 1)
        assert np.isnan(y[1]).all() and np.abs(y[[0, 2]] - clean[[0, 2]]).max() <= 3e-6
