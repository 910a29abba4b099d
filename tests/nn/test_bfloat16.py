"""jea.fuse(model, precision="bfloat16") on the CPU: close to float32, and really in bfloat16."""
import numpy as np
import pytest

import jea
from jea._jittor import jt, nn
from jea.errors import ConfigError, SetupError
from jea.nn import formats, precision
from jea.nn.mode import freeze_batch_norm
from jea.nn.norm import _BatchNorm
from jea.ops import conv2d_nhwc, kernels, max_pool_nhwc, pack_conv
from jea.ops.convolution.conv import bfloat16_unavailable
from jea.ops.products.bfloat16 import matmul_bfloat16, to_bfloat16
from jea.ops.products.packed import linear_packed, pack_linear

pytestmark = pytest.mark.skipif(bool(bfloat16_unavailable()), reason=bfloat16_unavailable() or "-")

FAMILIES = {
    "eanet_tiny": {"num_classes": 5}, "eanet_jseg_resnet50": {"num_classes": 5, "layers": (1, 1, 1, 1), "width": 16,
                                                              "head_channels": 32, "num_memories": 16},
    "eamlp_tiny": {"img_size": 64, "num_classes": 7}, "t2t_vit_7": {"img_size": 32, "num_classes": 7},
    "ea_pct_tiny_cls": {"num_classes": 5}, "ea_pct_tiny_partseg": {"num_classes": 5}, "ea_sagan_tiny": {}}


def normal(*shape, seed=1):
    return jt.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def model_of(name):
    jt.set_global_seed(3)
    if name == "eanet_jseg_resnet50":
        from jea.models.eanet_jseg import JSegEANet
        model = JSegEANet(**FAMILIES[name])
    else:
        model = jea.create_model(name, **FAMILIES[name])
    rng = np.random.default_rng(4)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.assign(jt.array(rng.standard_normal(module.num_features).astype(np.float32) * 0.2))
            module.running_var.assign(jt.array((rng.random(module.num_features) + 0.5).astype(np.float32)))
    model.eval()
    return model


def inputs_of(name, model):
    if "sagan" in name:
        return normal(3, model.z_dim), np.int32([0, 1, 2])
    if "pct" in name:
        return (normal(2, 3, 150), jt.array(np.eye(16, dtype=np.float32)[[3, 7]]))[:2 if "partseg" in name else 1]
    size = FAMILIES[name].get("img_size", 65)
    return (normal(2, 3, size, size),)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_agrees_with_float32(name):
    model = model_of(name)
    inputs = inputs_of(name, model)
    wanted = model(*inputs).numpy()
    got = jea.fuse(model, precision="bfloat16")(*inputs)
    assert got.dtype == "float32"
    error = np.abs(got.numpy() - wanted).max() / np.abs(wanted).max()
    assert 1e-5 < error < 0.03, error  # bfloat16 has 8 digits: 0.004 each
    again = jea.fuse(model)(*inputs).numpy()
    assert np.abs(again - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_activations_stay_in_it_from_the_first_convolution_to_the_logits():
    model = model_of("eanet_tiny")
    fused = jea.fuse(model, precision="bfloat16")
    with formats.inference("bfloat16"):
        steps = formats.way(fused.network, normal(1, 3, 33, 33))
    convolutions = [(layer, what) for layer, kind, what, _ in steps if kind == "convolution"]
    wide = [layer for layer, what in convolutions if what == "nhwc float32"]
    assert wide == ["linu.linear_0", "fc2"] and len(convolutions) > 15
    assert {what for layer, what in convolutions if layer not in wide} == {"nhwc bfloat16"}
    assert [what for _, kind, what, _ in steps if kind == "max_pool"] == ["nhwc bfloat16"]
    assert [what for _, kind, what, _ in steps if kind == "double_norm"] == ["nhwc float32"]
    conversions = [layer for layer, kind, *_ in steps if kind == "convert"]
    assert len(conversions) == 2  # at the entrance, and before the resize


def rounded(x):
    """To the nearest of 8 binary digits."""
    mantissa, exponent = np.frexp(np.asarray(x.float32().numpy(), np.float64))
    return np.ldexp(np.round(mantissa * 256), exponent - 8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("given", ["float32", "bfloat16"])
@pytest.mark.parametrize("residual", ["none", "kept", "reused"])
def test_convolution(given, dtype, residual):
    x, weight, bias, summand = normal(2, 9, 7, 20), normal(24, 20, 3, 3, seed=2), normal(24, seed=3), normal(2, 9,
                                                                                                             7, 24)
    x, summand = x.cast(given), summand.cast(dtype)
    packed = pack_conv(weight, bias, padding=1, dtype="bfloat16")
    padded = np.pad(rounded(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    wanted = sum(padded[:, i:i + 9, j:j + 7] @ rounded(weight)[:, :, i, j].T for i in range(3) for j in range(3))
    wanted = wanted + bias.numpy() + (0 if residual == "none" else summand.float32().numpy())
    before = summand.float32().numpy()
    y = conv2d_nhwc(x, packed, relu=True, residual=None if residual == "none" else summand, dtype=dtype,
                    reuse_residual=residual == "reused")
    assert y.dtype == dtype
    limit = 1e-5 if dtype == "float32" else 2 ** -8
    assert np.abs(y.float32().numpy() - np.maximum(wanted, 0)).max() <= limit * np.abs(wanted).max()
    if residual != "reused":
        assert np.array_equal(summand.float32().numpy(), before)


def test_linear_maps_and_products():
    x, weight, bias, summand = normal(3, 5, 24), normal(40, 24, seed=2), normal(40, seed=3), normal(3, 5, 40)
    packed = pack_linear(weight, bias)
    wanted = rounded(x) @ rounded(weight).T + bias.numpy()
    assert np.abs(linear_packed(x, packed).numpy() - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert np.abs(linear_packed(x, packed, summand=summand).numpy() - wanted - summand.numpy()).max() < 1e-4
    from math import erf
    gelu = wanted * 0.5 * (1 + np.vectorize(erf)(wanted / 2 ** 0.5))
    assert np.abs(linear_packed(x, packed, gelu=True).numpy() - gelu).max() < 1e-4
    assert np.abs(linear_packed(x.bfloat16(), packed, gelu=True, dtype="bfloat16").float32().numpy() - gelu).max() < 0.1
    for shapes, transpose_b in ((((6, 9), (9, 4)), False), (((6, 9), (4, 9)), True),
                                (((2, 3, 6, 9), (2, 3, 4, 9)), True), (((2, 6, 9), (9, 4)), False)):
        a, b = normal(*shapes[0]), normal(*shapes[1], seed=2)
        y = matmul_bfloat16(a, b, transpose_b=transpose_b)
        flip = np.swapaxes(rounded(b), -1, -2) if transpose_b else rounded(b)
        wanted = rounded(a) @ flip
        assert np.abs(y.numpy() - wanted).max() < 1e-5 * np.abs(wanted).max()
        g = normal(*y.shape, seed=5)
        da, db = (v.numpy() for v in jt.grad((y * g).sum(), [a, b]))
        wanted_a, wanted_b = rounded(g) @ np.swapaxes(flip, -1, -2), np.swapaxes(rounded(a), -1, -2) @ rounded(g)
        wanted_b = np.swapaxes(wanted_b, -1, -2) if transpose_b else wanted_b
        wanted_b = wanted_b.sum(0) if wanted_b.ndim > b.ndim else wanted_b
        assert np.abs(da - wanted_a).max() < 1e-5 * np.abs(wanted_a).max()
        assert np.abs(db - wanted_b).max() < 1e-5 * np.abs(wanted_b).max()
    with pytest.raises(ValueError, match=r"got float32 \(2, 6, 9\) and float32 \(3, 9, 4\)"):
        matmul_bfloat16(normal(2, 6, 9), normal(3, 9, 4))


def test_casts_round_to_the_nearest():
    x = normal(1000)
    y = to_bfloat16(x)
    assert y.dtype == "bfloat16" and np.array_equal(y.float32().numpy(), rounded(x))
    assert np.array_equal(jt.grad((to_bfloat16(x).float32() * 2).sum(), x).numpy(), np.full(1000, 2.0))


def test_maximum():
    x = normal(2, 9, 12, 40).bfloat16()
    with jt.no_grad():
        assert np.array_equal(max_pool_nhwc(x).float32().numpy(), max_pool_nhwc(x.float32()).numpy())


def test_what_is_refused(monkeypatch):
    model = model_of("eanet_tiny")
    with pytest.raises(ConfigError, match="precision is 'int8'; expected float32, float16, bfloat16"):
        jea.fuse(model, precision="int8")
    with pytest.raises(SetupError, match="float16 needs CUDA. Take bfloat16"):
        jea.fuse(model, precision="float16")
    fused = jea.fuse(model)
    assert jea.fuse(fused) is fused
    with pytest.raises(ConfigError, match="fused in float32 already"):
        jea.fuse(fused, precision="bfloat16")
    with pytest.raises(ValueError, match="conv2d_nhwc: dtype is 'bfloat16'; expected float32"):
        conv2d_nhwc(normal(1, 5, 5, 3), pack_conv(normal(4, 3, 1, 1)), dtype="bfloat16")
    with pytest.raises(ValueError, match="pack_conv: dtype is 'float16'"):
        pack_conv(normal(4, 3, 1, 1), dtype="float16")
    monkeypatch.setattr(kernels, "REFERENCES_ONLY", True)
    assert "JEA_OPS=ref" in precision.unavailable("bfloat16")
    monkeypatch.setattr(precision, "bfloat16_unavailable",
                        lambda: "this processor has neither avx512_bf16 nor amx_bf16")
    with pytest.raises(SetupError, match="neither avx512_bf16 nor amx_bf16. Take float32"):
        jea.fuse(model, precision="bfloat16")


def test_the_processor_is_asked(monkeypatch, tmp_path):
    import builtins
    original, said = builtins.open, tmp_path / "cpuinfo"
    monkeypatch.setattr(builtins, "open", lambda path, *a, **k: original(
        said if path == "/proc/cpuinfo" else path, *a, **k))
    for flags, wanted in (("fpu avx2 avx512f", "neither avx512_bf16 nor amx_bf16"), ("fpu avx512_bf16", ""),
                          ("amx_bf16", "")):
        said.write_text(f"model name: x\nflags : {flags}\n")
        assert wanted in bfloat16_unavailable() and bool(wanted) == bool(bfloat16_unavailable())


@pytest.mark.parametrize("name", ["eanet_tiny", "eamlp_tiny", "ea_pct_tiny_cls", "ea_sagan_tiny"])
def test_training_rounds_the_operands_of_products_alone(name):
    model = model_of(name)
    inputs = inputs_of(name, model)
    model.train()
    freeze_batch_norm(model)  # statistics over two samples make signs of values
    for module in model.modules():
        if isinstance(module, (nn.Dropout, jea.nn.Dropout2d)):
            module.p = 0.0
    state = {key: var.numpy().copy() for key, var in model.state_dict().items()}

    def step(dtype):
        for key, var in model.state_dict().items():
            var.assign(jt.array(state[key]))
        parameters = [var for var in model.parameters() if not var.is_stop_grad()]
        with precision.autocast(dtype):
            y = model(*inputs)
            gradients = jt.grad((y * normal(*y.shape, seed=9)).sum(), parameters)
        assert {str(v.dtype) for v in (y, *gradients, *model.state_dict().values())} == {"float32"}
        return y.numpy(), np.concatenate([g.numpy().reshape(-1) for g in gradients])
    (wanted, wanted_gradient), (y, gradient) = step("float32"), step("bfloat16")
    assert 1e-5 < np.abs(y - wanted).max() / np.abs(wanted).max() < 0.05
    error = np.linalg.norm(gradient - wanted_gradient) / np.linalg.norm(wanted_gradient)
    assert 1e-5 < error < 0.15, error


@pytest.mark.parametrize("channels", [3, 32])
def test_blocked_convolution(channels):
    from jea.ops.convolution.blocked import conv2d_blocked, from_blocked, to_blocked
    x, weight, bias = normal(2, channels, 9, 7), normal(32, channels, 3, 3, seed=2), normal(32, seed=3)
    values = [v.detach() for v in (x, weight)]
    g = normal(2, 32, 5, 4, seed=4)
    options = {"stride": 2, "padding": 1}
    given = to_blocked(x) if channels == 32 else x
    y = from_blocked(conv2d_blocked(given, weight, bias, dtype="bfloat16", **options))
    gradients = [v.numpy() for v in jt.grad((y * g).sum(), [x, weight, bias])]
    x, weight = (jt.array(rounded(v).astype(np.float32)) for v in values)
    wanted = nn.conv2d(x, weight, bias, **options)
    assert np.abs(y.numpy() - wanted.numpy()).max() < 1e-5 * np.abs(wanted.numpy()).max()
    for place, (got, of) in enumerate(zip(gradients, (x, weight, bias))):
        dy = g if of is bias else jt.array(rounded(g).astype(np.float32))
        expected = jt.grad((nn.conv2d(x, weight, bias, **options) * dy).sum(), of).numpy()
        assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max(), place
    with pytest.raises(ValueError, match="dtype 'float16'"):
        conv2d_blocked(given, weight, dtype="float16")
