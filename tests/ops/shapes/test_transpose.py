"""jea.ops.transpose: values and gradients against numpy, and the CUDA kernel's arithmetic on the CPU."""
import cuda_on_cpu
import numpy as np
import pytest

from jea._jittor import jt
from jea.ops import transpose
from jea.ops.shapes.transpose import geometry, merged

CASES = [((3, 5), (1, 0)), ((2, 33, 65), (0, 2, 1)), ((2, 3, 4, 5), (0, 2, 3, 1)), ((2, 5, 4, 3), (0, 3, 1, 2)),
         ((2, 3, 4, 5), (3, 2, 1, 0)), ((7, 1, 40, 1), (2, 1, 0, 3)), ((2, 3, 2, 3, 2, 5), (5, 3, 1, 4, 2, 0)),
         ((1, 64, 70), (0, 2, 1)), ((4, 3, 6), (1, 0, 2)), ((5,), (0,)), ((1, 1), (1, 0))]
IDS = [f"{'x'.join(map(str, shape))}-{''.join(map(str, axes))}" for shape, axes in CASES]


def numbers(shape):
    return np.random.RandomState(0).randn(*shape).astype(np.float32)


@pytest.mark.parametrize("shape,axes", CASES, ids=IDS)
def test_values_and_gradient(shape, axes, device):
    x, g = numbers(shape), numbers([shape[axis] for axis in axes])
    for dtype in ("float32", "float16", "bfloat16") if device == "cuda" else ("float32",):
        given = jt.array(x).cast(dtype)
        y = transpose(given, axes)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y.float32().numpy(), given.float32().numpy().transpose(axes))
        dx = jt.grad((y.float32() * jt.array(g)).sum(), given)
        wanted = jt.array(g).cast(dtype).float32().numpy().transpose(np.argsort(axes))
        np.testing.assert_array_equal(dx.float32().numpy(), wanted)


def test_negative_axes_and_refusals():
    x = jt.array(numbers((2, 3, 4)))
    np.testing.assert_array_equal(transpose(x, (0, -1, -2)).numpy(), x.numpy().transpose(0, 2, 1))
    for axes in ((0, 1), (0, 1, 1), (0, 1, 3), (0, 1, -4)):
        with pytest.raises(ValueError, match="expected each of the 3 axes"):
            transpose(x, axes)
    with pytest.raises(ValueError, match="only for CUDA"):
        transpose(x, (2, 1, 0), impl="fused")


@pytest.mark.parametrize("shape,axes", CASES, ids=IDS)
def test_merged_axes_say_the_same(shape, axes):
    x = numbers(shape)
    lengths, short = merged(shape, axes)
    assert 1 not in lengths and all(b != a + 1 for a, b in zip(short, short[1:]))
    np.testing.assert_array_equal(x.reshape(lengths).transpose(short).ravel(), x.transpose(axes).ravel())


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """The CUDA kernel, compiled for the CPU: run32 and run16 take the 16 numbers of Transpose and the elements'
    bits."""
    functions = "".join(f"""
        void run{bits}(const long* n, const {element}* x, {element}* y) {{
            const jea::Transpose sizes{{n[0], n[1], n[2], n[3], {{{{n[4], n[5], n[6]}}, {{n[7], n[8], n[9]}},
                                        {{n[10], n[11], n[12]}}, {{n[13], n[14], n[15]}}}}}};
            jea::transpose(sizes, x, y);
        }}""" for bits, element in ((32, "float"), (16, "short")))
    return cuda_on_cpu.build("shapes/transpose.cuh", functions, tmp_path_factory.mktemp("transpose"))


@pytest.mark.parametrize("bits", [32, 16])
@pytest.mark.parametrize("shape,axes", CASES, ids=IDS)
def test_the_kernel(kernel, shape, axes, bits):
    lengths, short = merged(shape, axes)
    if not short or short[-1] == len(short) - 1:
        pytest.skip("the last axis stays: not the kernel's")
    x = np.random.RandomState(0).randint(-2 ** 15, 2 ** 15, lengths).astype(np.float32 if bits == 32 else np.int16)
    y = np.full(x.size, -1, x.dtype)
    of = geometry(lengths, short)
    order = ["rows", "columns", "row_step",
             "column_step"] + [f"{n}{i}" for i in range(4) for n in ("length", "in", "out")]
    sizes = np.array([of[name] for name in order], np.int64)
    cuda_on_cpu.call(getattr(kernel, f"run{bits}"), sizes, x, y)
    np.testing.assert_array_equal(y, x.transpose(short).ravel())
