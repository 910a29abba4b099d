"""Convolutions on cuDNN's graph interface: values, gradients, the kernels around it, and when it is not used."""
import shutil

import cuda_on_cpu
import numpy as np
import pytest

from jea._jittor import jt
from jea.ops.common import sources
from jea.ops.convolution.cudnn import check, operator, plans

CASES = {  # height, width, channels, out_channels, kernel, stride, padding, dilation
    "1x1": (9, 7, 16, 24, 1, 1, 0, 1),
    "1x1 strided": (9, 8, 8, 16, 1, 2, 0, 1),
    "3x3": (10, 9, 16, 8, 3, 1, 1, 1),
    "3x3 strided": (10, 9, 3, 16, 3, 2, 1, 1),
    "3x3 dilated": (9, 9, 8, 8, 3, 1, 4, 4),
    "7x7": (12, 11, 3, 8, 7, 2, 3, 1),
    "21 classes": (5, 5, 32, 21, 1, 1, 0, 1),
}
TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


def operands(case, dtype="float32", epilogue=False):
    h, w, c, o, k, stride, padding, dilation = case
    rng = np.random.default_rng(0)
    out = [(n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n in (h, w)]
    shapes = {"x": (2, h, w, c), "weight": (o, c, k, k)}
    if epilogue:
        shapes.update(bias=(o,), residual=(2, *out, o))
    values = {name: jt.array(rng.standard_normal(shape).astype(np.float32)) for name, shape in shapes.items()}
    if dtype != "float32":
        values = {name: var if name == "bias" else var.cast(dtype) for name, var in values.items()}
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    return values, geometry, rng.standard_normal((2, *out, o)).astype(np.float32)


def compare(case, close, impl, dtype="float32", epilogue=False):
    values, geometry, g = operands(case, dtype, epilogue)
    y = operator.conv2d(**values, relu=epilogue, **geometry, impl=impl)
    assert y.dtype == dtype
    gradients = jt.grad((y.float32() * jt.array(g)).sum(), list(values.values()))
    numbers = {name: var.float32().numpy().astype(np.float64) for name, var in values.items()}
    wanted = check.convolution(numbers["x"], numbers["weight"], *geometry.values())
    wanted = wanted + numbers.get("residual", 0) + numbers.get("bias", 0)
    if epilogue:
        wanted, g = np.maximum(wanted, 0), np.where(y.float32().numpy() > 0, g, 0)
    dx, dw = check.gradients_of(numbers["x"], numbers["weight"], g, *geometry.values())
    close(y.float32().numpy(), wanted, TOLERANCES[dtype], "y")
    for (name, var), gradient in zip(values.items(), gradients):
        assert gradient.dtype == var.dtype
        close(gradient.float32().numpy(), {"x": dx, "weight": dw, "bias": g.sum((0, 1, 2)), "residual": g}[name],
              TOLERANCES[dtype], f"gradient of {name}")


@pytest.mark.parametrize("epilogue", (False, True), ids=("plain", "epilogue"))
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_reference(case, epilogue, close):
    with jt.flag_scope(use_cuda=0):
        compare(case, close, "ref", epilogue=epilogue)


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("dtype", plans.TYPES)
@pytest.mark.parametrize("epilogue", (False, True), ids=("plain", "epilogue"))
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cudnn(case, epilogue, dtype, close):
    try:
        compare(case, close, "fused", dtype, epilogue)
    except ValueError as error:
        if "wants a card" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("arguments, said", (
    ({"x": (2, 8, 9, 9)}, "expected (B, H, W, I)"), ({"weight": (16, 8, 3)}, "expected (B, H, W, I)"),
    ({"x": (2, 2, 9, 8)}, "too small"), ({"stride": 0}, "stride 0"), ({"bias": (3,)}, "bias has shape (3,)"),
    ({"residual": (2, 9, 9, 8)}, "residual is float32"), ({"impl": "fast"}, 'impl is \'fast\'; expected "auto"')))
def test_wrong_arguments(arguments, said):
    given = {"x": (2, 9, 9, 8), "weight": (16, 8, 3, 3), **arguments}
    with jt.flag_scope(use_cuda=0), pytest.raises(ValueError) as raised:
        operator.conv2d(**{name: jt.ones(value) if isinstance(value, tuple) else value
                           for name, value in given.items()})
    assert said in str(raised.value)


def test_fused_without_cuda_says_why():
    with jt.flag_scope(use_cuda=0), pytest.raises(ValueError, match="CUDA is off"):
        operator.conv2d(jt.ones((1, 3, 3, 4)), jt.ones((4, 4, 1, 1)), impl="fused")


# -- the kernels around it, run on the CPU ---------------------------------------------------------------------------

FUNCTIONS = """
void epilogue(long rows, long c, bool relu, const float* x, const float* b, const float* r, float* y) {
    jea::epilogue(jea::Epilogue{rows, c, relu}, x, b, r, y);
}
void relu_backward(long n, const float* y, const float* dy, float* dx) { jea::relu_backward(jea::Epilogue{n, 1, false}, y, dy, dx); }
void bias_backward(long rows, long c, const float* dy, float* db) { jea::bias_backward(jea::Epilogue{rows, c, false}, dy, db); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return cuda_on_cpu.build("convolution/cudnn/epilogue.cuh", FUNCTIONS, tmp_path_factory.mktemp("epilogue"))


# Of plan.cuh the part after what speaks to cuDNN.
WEIGHTS = """
void pack(long o, long i, long k, const float* from, _Float16* to) {
    jea::reorder_either_way<float, _Float16>(true, from, to, o, i, k);
}
void unpack(long o, long i, long k, const float* from, float* to) {
    jea::reorder_either_way<float, float>(false, from, to, o, i, k);
}
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    text = sources.header("convolution/cudnn/plan.cuh")
    own = text[text.index("template <bool kToChannelsLast"):text.index("template <class From>\nvoid reorder_to(")]
    shared = sources.header("common/reduce.cuh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "header", lambda name: f"#include <cstdint>\n{shared}\nnamespace jea {{\n{own}}}\n")
        return cuda_on_cpu.build("weights.cuh", WEIGHTS, tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize("o, i, k", ((5, 7, 9), (300, 3, 1), (2, 130, 4)))
def test_weights_in_cudnns_order(weights, o, i, k):
    weight = np.random.default_rng(0).standard_normal((o, i, k)).astype(np.float32)
    packed, back = np.full((o, k, i), np.nan, np.float16), np.full((o, i, k), np.nan, np.float32)
    cuda_on_cpu.call(weights.pack, o, i, k, weight, packed)
    assert np.array_equal(packed, weight.swapaxes(1, 2).astype(np.float16))
    cuda_on_cpu.call(weights.unpack, o, i, k, np.ascontiguousarray(weight.swapaxes(1, 2)), back)
    assert np.array_equal(back, weight)


@pytest.mark.parametrize("relu", (False, True))
@pytest.mark.parametrize("given", ("b", "r", "br", ""))
def test_the_epilogue(library, given, relu):
    rng, rows, c = np.random.default_rng(1), 37, 21
    x, b, r = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, c), (c,), (rows, c)))
    y = np.full_like(x, np.nan)
    cuda_on_cpu.call(library.epilogue, rows, c, relu, x, b if "b" in given else None, r if "r" in given else None, y)
    wanted = x + (r if "r" in given else 0) + (b if "b" in given else 0)
    assert np.allclose(y, np.maximum(wanted, 0) if relu else wanted, atol=1e-6)


@pytest.mark.parametrize("rows, c", ((1, 1), (70, 33), (5, 100)))
def test_gradients_of_bias_and_relu(library, rows, c):
    rng = np.random.default_rng(2)
    y, dy = (rng.standard_normal((rows, c)).astype(np.float32) for _ in range(2))
    dx, db = np.full_like(y, np.nan), np.full(c, np.nan, np.float32)
    cuda_on_cpu.call(library.relu_backward, rows * c, y, dy, dx)
    assert np.array_equal(dx, np.where(y > 0, dy, 0))
    cuda_on_cpu.call(library.bias_backward, rows, c, dy, db)
    assert np.allclose(db, dy.sum(0, dtype=np.float64), atol=1e-5)
