"""Which products run in half precision, and, marked cuda, loss curves against float32."""
import math

import numpy as np
import pytest

from jea import create_model
from jea._jittor import jt, nn
from jea.data import Batch
from jea.nn import precision
from jea.ops import kernels
from jea.tasks.options.training import TrainOptions
from jea.training.phase import Phase, run_step
from jea.training.scaling import LossScaler


def small(name):
    return create_model(name, **({"img_size": 64} if name == "eamlp_tiny" else {}))


def run(name):
    """A small model's outputs and the sizes of its weights of convolutions and linear maps."""
    model = small(name)
    model.train()
    rng = np.random.default_rng(0)
    if name == "ea_sagan_tiny":
        z, labels = jt.array(rng.standard_normal((2, 32)).astype(np.float32)), np.array([1, 4], np.int32)
        outputs = [model(z, labels)]
    elif name.startswith("ea_pct"):
        x = jt.array(rng.random((2, 3, 600), np.float32))
        outputs = [model(x, jt.array(np.eye(16, dtype=np.float32)[:2])) if "partseg" in name else model(x)]
    else:
        outputs = [model(jt.array(rng.standard_normal((2, 3, 64, 64)).astype(np.float32)))]
    weights = {key: var.shape for key, var in model.named_parameters() if var.ndim > 1 and not var.is_stop_grad()}
    return outputs, weights


# What stays in float32: a class token, a lookup of rows, and the few rows of a classifier of points. And what is cast
# in two parts: name -> columns of the first.
FLOAT32 = {"eanet_tiny": (), "eamlp_tiny": ("cls_token",), "ea_sagan_tiny": ("discriminator.embedding.weight_orig",),
           "ea_pct_tiny_cls": ("linear1.weight", "linear2.weight", "linear3.weight"), "ea_pct_tiny_partseg": ()}
PARTS = {"gather_local_0.conv1.weight": 16, "gather_local_1.conv1.weight": 32, "convs1.weight": 256}


@pytest.mark.parametrize("name", FLOAT32)
def test_every_weight_goes_through_a_cast(name, monkeypatch):
    """CUDA's way, seen on the CPU: the operands are taken down and handed on as they are."""
    seen = []

    def operands(*values):
        seen.extend(value.numel() for value in values[-2:] if value is not None and value.ndim > 1)
        return values
    monkeypatch.setattr(kernels, "REFERENCES_ONLY", True)
    monkeypatch.setattr(precision, "operands", operands)
    with precision.autocast("float16"):
        _, weights = run(name)
    assert set(FLOAT32[name]) <= set(weights)
    for key, shape in weights.items():
        size, first = math.prod(shape), PARTS.get(key, 0) * shape[0]
        for part in () if key in FLOAT32[name] else (first, size - first) if first else (size,):
            assert part in seen, f"{key}: no product has a weight of {part} numbers"
            seen.remove(part)


def test_autocast_ends_with_its_block():
    x = jt.ones((2, 3))
    assert precision.current() == "float32" and precision.operands(x)[0] is x
    with pytest.raises(KeyError):
        with precision.autocast("float16"):
            half, nothing = precision.operands(x, None)
            assert half.dtype == "float16" and nothing is None and precision.operands(half)[0] is half
            with precision.autocast("float32"):
                assert precision.operands(x)[0] is x
            raise KeyError
    assert precision.current() == "float32"


def test_the_gradient_of_a_cast_is_float32():
    w = jt.array(np.array([1.0, 2.0], np.float32))
    with precision.autocast("bfloat16"):
        half, = precision.operands(w)
    gradient = jt.grad((half.float32() * jt.array(np.array([3.0, 5.0], np.float32))).sum(), w)
    assert gradient.dtype == "float32" and gradient.numpy().tolist() == [3, 5]


# -- on a GPU -----------------------------------------------------------------------------------------------------

# The pair's loss begins at 400: at the rate of the others it is soon NaN.
RATES = {"eanet_tiny": 0.01, "eamlp_tiny": 0.01, "ea_pct_tiny_cls": 0.01, "ea_sagan_tiny": 1e-6}


def curve(name, dtype, steps=12):
    """Losses of a few steps on fixed data, and the model."""
    jt.set_global_seed(0)
    model = small(name)
    parts = [model.generator, model.discriminator] if name == "ea_sagan_tiny" else [model]
    optimizer = jt.optim.SGD([p for part in parts for p in part.parameters()], lr=RATES[name], momentum=0.9)
    phase = Phase(name="all", optimizer=optimizer, losses=lambda batch: {"loss": loss_of(name, model)})
    phase.scaler = LossScaler() if dtype == "float16" else None
    options = TrainOptions(steps=steps, batch_size=2, precision=dtype)
    return [run_step([phase], Batch({"x": np.zeros((2, 1))}), step, options)["loss"] for step in range(steps)], model


def loss_of(name, model):
    rng = np.random.default_rng(0)
    if name == "ea_sagan_tiny":
        z, labels = jt.array(rng.standard_normal((8, 32)).astype(np.float32)), np.arange(8, dtype=np.int32) % 6
        return (model(z, labels) - 1).sqr().mean()
    if name.startswith("ea_pct"):
        return (model(jt.array(rng.random((2, 3, 600), np.float32))) - 1).sqr().mean()
    return (model(jt.array(rng.standard_normal((4, 3, 64, 64)).astype(np.float32))) - 1).sqr().mean()


@pytest.mark.parametrize("name", RATES)
def test_float32_learns_what_half_precision_is_compared_with(name):
    losses, _ = curve(name, "float32")
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", RATES)
def test_half_precision_trains_as_float32(name, dtype):
    single, _ = curve(name, "float32")
    half, model = curve(name, dtype)
    assert all(var.dtype == "float32" for var in model.state_dict().values())
    assert half != single  # it did run in half precision
    assert single[-1] < single[0]
    assert np.allclose(half, single, rtol=0.05 if dtype == "float16" else 0.1, atol=0.02), (half, single)


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kernel, stride, padding, dilation", [(1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 4, 4)])
def test_convolution_in_half_precision(dtype, kernel, stride, padding, dilation):
    """Against float32 from the same rounded numbers: sums of 40,000 products keep the digits of the dtype."""
    from jea.ops.products.half import conv2d_half
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    jt.set_global_seed(0)
    x, w = jt.randn(4, 32, 101, 99).cast(dtype), jt.randn(48, 32, kernel, kernel).cast(dtype)
    y = conv2d_half(x, w, **geometry)
    g = jt.randn(y.shape).cast(dtype)
    ours = [y] + jt.grad((y.float32() * g.float32()).sum(), [x, w])
    x, w = x.float32().detach().start_grad(), w.float32().detach().start_grad()
    y = nn.conv2d(x, w, **geometry)
    theirs = [y] + jt.grad((y * g.float32()).sum(), [x, w])
    for what, a, b in zip(("y", "dx", "dw"), ours, theirs):
        assert a.dtype == dtype
        a, b = a.float32().numpy(), b.numpy()
        assert np.abs(a - b).max() <= 2.0 ** (-10 if dtype == "float16" else -7) * np.abs(b).max(), what


def test_the_convolution_is_refused_without_cuda():
    from jea.ops.products.half import conv2d_half
    with jt.flag_scope(use_cuda=0):
        with pytest.raises(ValueError, match="conv2d_half: got float16 .* on CUDA"):
            conv2d_half(jt.ones((1, 2, 3, 3)).float16(), jt.ones((4, 2, 1, 1)).float16())
