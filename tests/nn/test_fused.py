"""jea.fuse: the same numbers as the model in evaluation mode, and what it refuses."""
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

import jea
from jea._jittor import jt, nn
from jea.models.eamlp import EAMLP
from jea.nn import Bottleneck, ConvBNReLU, ExternalAttention, MultiHeadExternalAttention, fuse
from jea.nn.external_attention import MergedMultiHeadExternalAttention
from jea.nn.norm import _BatchNorm
from jea.ops import conv_nhwc_unavailable, kernels


def randomised(model, seed=0):
    """The model in evaluation mode with statistics and parameters of BatchNorm that show every mistake."""
    rng = np.random.default_rng(seed)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            n = module.num_features
            module.running_mean.assign(jt.array(rng.standard_normal(n).astype(np.float32) * 0.3))
            module.running_var.assign(jt.array((rng.random(n) + 0.3).astype(np.float32)))
            module.weight.assign(jt.array((rng.random(n) * 0.6 + 0.4).astype(np.float32)))
            module.bias.assign(jt.array(rng.standard_normal(n).astype(np.float32) * 0.3))
    model.eval()
    return model


def picture(*shape):
    return jt.array(np.random.default_rng(1).standard_normal(shape).astype(np.float32))


@pytest.fixture(params=["nhwc", "ref"])
def layout(request, monkeypatch):
    if request.param == "ref":
        monkeypatch.setattr(kernels, "REFERENCES_ONLY", True)
    elif conv_nhwc_unavailable():
        pytest.skip(conv_nhwc_unavailable())
    return request.param


@pytest.mark.parametrize("output_stride", [8, 16])
def test_eanet(layout, output_stride, close):
    model = randomised(jea.create_model("eanet_tiny", output_stride=output_stride, num_classes=5))
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    fused = fuse(model)
    assert fused.layout == ("nhwc" if layout == "nhwc" else "nchw")
    assert (fused.num_classes, fused.output_stride) == (5, output_stride)
    for shape in ((1, 3, 65, 65), (2, 3, 49, 78), (1, 3, 33, 200)):
        x = picture(*shape)
        close(fused(x).numpy(), model(x).numpy(), 1e-5, str(shape))
        close(fused.attention_map(x).numpy(), model.attention_map(x).numpy(), 1e-5, str(shape))
    assert not model.is_training() and not fused.is_training()
    assert all(np.array_equal(value.numpy(), state[name]) for name, value in model.state_dict().items())


def test_a_model_in_training_mode_stays_in_it(close):
    model = randomised(jea.create_model("eanet_tiny", num_classes=5))
    x = picture(1, 3, 33, 33)
    wanted = model(x).numpy()
    model.train()
    close(fuse(model)(x).numpy(), wanted, 1e-5)
    assert model.is_training() and model.backbone.is_training()


def test_parts(layout, close):
    x = picture(2, 16, 9, 11)
    for model in (Bottleneck(16, 4), Bottleneck(16, 8, stride=2), Bottleneck(16, 4, dilation=2),
                  ConvBNReLU(16, 24, kernel_size=3), ConvBNReLU(16, 8, kernel_size=1)):
        randomised(model)
        before = x.numpy().copy()
        close(fuse(model)(x).numpy(), model(x).numpy(), 1e-5, repr(model))
        assert np.array_equal(x.numpy(), before), "the input was overwritten"
    model = randomised(jea.create_model("eanet_tiny")).backbone
    x = picture(1, 3, 41, 37)
    close(fuse(model)(x).numpy(), model(x).numpy(), 1e-5)


@pytest.mark.parametrize("options", [{}, {"projections": False, "eps": 0.0}])
def test_external_attention(layout, options, close):
    model = randomised(ExternalAttention(24, 8, **options))
    fused = fuse(model)
    for shape in ((2, 24, 5, 7), (2, 24, 35), (2, 35, 24)):
        x = picture(*shape)
        y, attention = fused(x, return_attention=True)
        wanted, wanted_attention = model(x, return_attention=True)
        close(y.numpy(), wanted.numpy(), 1e-5, str(shape))
        close(attention.numpy(), wanted_attention.numpy(), 1e-5, str(shape))
        close(fused(x).numpy(), wanted.numpy(), 1e-5, str(shape))
    with pytest.raises(ValueError, match=r"got shape \(2, 23, 5\)"):
        fused(picture(2, 23, 5))


@pytest.mark.parametrize("name, options", [
    ("ea_pct_tiny_cls", {}), ("ea_pct_tiny_cls", {"position": "none", "head_slope": 0.2, "attention": "self"}),
    ("ea_pct_tiny_cls", {"position": "affine"}), ("ea_pct_cls_simple", {"width": 16}),
    ("ea_pct_tiny_partseg", {}), ("ea_pct_tiny_partseg", {"attention": "self"})])
def test_point_networks(name, options, close):
    model = randomised(jea.create_model(name, num_classes=5, **options))
    for module in model.modules():
        if isinstance(module, _BatchNorm):  # a negative factor turns a maximum into a minimum
            module.weight.assign(module.weight * jt.array((-1.0) ** np.arange(module.num_features, dtype=np.float32)))
    state = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    points = picture(2, 3, 150)
    inputs = (points, jt.array(np.eye(16, dtype=np.float32)[[3, 7]])) if "partseg" in name else (points,)
    fused = fuse(model)
    wanted = model(*inputs).numpy()
    close(fused(*inputs).numpy(), wanted, 1e-5)
    assert not [m for m in fused.modules() if isinstance(m, _BatchNorm)] and fused.num_classes == 5
    assert all(np.array_equal(value.numpy(), state[key]) for key, value in model.state_dict().items())
    for value in model.state_dict().values():  # the fused form has its own values
        value.assign(jt.zeros_like(value))
    close(fused(*inputs).numpy(), wanted, 1e-5)


def filled(model, scale=0.5):
    """Values in every parameter, biases included, that show every mistake."""
    rng = np.random.default_rng(2)
    for key, var in model.state_dict().items():
        if key != "pos_embed":
            values = rng.standard_normal(var.shape) * scale / max(var.shape[-1], 4) ** 0.5
            var.assign(jt.array(values.astype(np.float32)))
    return randomised(model)


def test_multi_head_external_attention(close):
    model, x, summand = filled(MultiHeadExternalAttention(128, 2), 2), picture(2, 10, 128), picture(2, 10, 128) * 3
    fused = fuse(model)
    assert isinstance(fused.network, MergedMultiHeadExternalAttention)
    (y, attention), (wanted, wanted_attention) = (net(x, return_attention=True) for net in (fused, model))
    close(y.numpy(), wanted.numpy(), 1e-5)
    close(attention.numpy(), wanted_attention.numpy(), 1e-5)
    assert wanted_attention.numpy().std() > 1e-3
    close(fused(x, summand=summand).numpy(), model(x, summand=summand).numpy(), 1e-5)


@pytest.mark.parametrize("options, merged", [
    ({}, 2), ({"tokens": "performer"}, 2), ({"attention": "self"}, 0),
    ({"num_heads": 32}, 0)])  # a map through so many heads would be larger than the two that it replaces
def test_eamlp(options, merged, close):
    options = {"img_size": 32, "num_classes": 7, "embed_dim": 64, "depth": 2, "num_heads": 1, **options}
    model = filled(EAMLP(**options), 1.5)
    x, fused = picture(2, 3, 32, 32), fuse(model)
    close(fused(x).numpy(), model(x).numpy(), 1e-5)
    close(fused.forward_features(x).numpy(), model.forward_features(x).numpy(), 1e-5)
    assert sum(isinstance(m, MergedMultiHeadExternalAttention) for m in fused.modules()) == merged
    assert (fused.img_size, fused.num_classes) == (32, 7)
    count = [len(net.state_dict()) for net in (model, fused)]
    assert count[0] - count[1] == 4 * merged + (4 if options.get("tokens") is None else 0)
    with pytest.raises(RuntimeError, match="fused EAMLP is for inference only"):
        fused.train()


def test_what_has_nothing_to_fold_is_returned_as_it_is():
    for model in (jea.create_model("t2t_vit_7", img_size=32), nn.Sequential(nn.Linear(2, 3), nn.ReLU())):
        assert fuse(model) is model and model.is_training()


def test_convolutions_with_bias_and_batch_norm(close):
    model = ConvBNReLU(6, 8, kernel_size=3)
    model.conv = nn.Conv(6, 8, 3, padding=1, bias=True)
    x = picture(1, 6, 9, 9)
    close(fuse(randomised(model))(x).numpy(), model(x).numpy(), 1e-5)


def test_packed_path_runs(monkeypatch):
    if conv_nhwc_unavailable():
        pytest.skip(conv_nhwc_unavailable())
    model = randomised(jea.create_model("eanet_tiny"))
    fused, ran = fuse(model), []
    original = kernels.cpu_code
    monkeypatch.setattr(kernels, "cpu_code", lambda *a, **k: ran.append(k["kernel"]) or original(*a, **k))
    fused(picture(1, 3, 33, 33)).sync()
    assert [ran.count(f"{name}.h")
            for name in ("pictures/max_pool", "attention/double_norm", "pictures/resize")] == [1] * 3
    # Each block's last convolution writes into its summand and does not come by here.
    convolutions, blocks = (sum(isinstance(m, kind) for m in model.modules()) for kind in (nn.Conv, Bottleneck))
    assert ran.count("convolution/conv.h") == convolutions - blocks


def test_ref_run_in_its_own_process():
    code = ("import numpy as np, jea; from jea._jittor import jt; m = jea.create_model('eanet_tiny'); m.eval()\n"
            "from jea.nn import fuse; f = fuse(m); x = jt.randn(1, 3, 33, 33); a, b = f(x).numpy(), m(x).numpy()\n"
            "print(f.layout, abs(a - b).max() <= 1e-5 * abs(b).max())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
                          cwd=Path(__file__).parents[2], env={**os.environ, "JEA_OPS": "ref"})
    assert done.stdout.split() == ["nchw", "True"], done.stdout + done.stderr


def test_the_original_is_not_kept_alive():
    model = randomised(jea.create_model("eanet_tiny"))
    fused = fuse(model)
    watched = [weakref.ref(module) for module in model.modules()]
    del model
    gc.collect()
    assert len(watched) > 30 and not [w() for w in watched if w() is not None]
    fused(picture(1, 3, 33, 33)).sync()


def test_refuses_training_gradients_and_unknown_models():
    model = randomised(jea.create_model("eanet_tiny"))
    fused = fuse(model)
    assert fuse(fused) is fused and fused.eval() is fused
    with pytest.raises(RuntimeError, match="fused EANet is for inference only"):
        fused.train()
    x = picture(1, 3, 33, 33)
    with pytest.raises(RuntimeError, match="a fused model has no gradient"):
        jt.grad(fused(x).sum(), x)
    with pytest.raises(ValueError, match=r"EANet: got float32 \(1, 4, 33, 33\); expected float \(B, 3, H, W\)"):
        fused(picture(1, 4, 33, 33))


def test_networks_of_ones_own(layout, close):
    """Any module, and convolutions that no packed form exists of."""
    model, x = randomised(jea.create_model("eanet_tiny")), picture(1, 3, 33, 33)
    close(fuse(nn.Sequential(model.backbone, nn.ReLU()))(x).numpy(), model.backbone(x).numpy(), 1e-5)
    odd, x = ConvBNReLU(6, 8, kernel_size=3), picture(2, 6, 9, 11)
    for conv in (nn.Conv(6, 8, 3, padding=1, groups=2), nn.Conv(6, 8, (1, 3), padding=(0, 1), stride=(2, 1))):
        odd.conv = conv
        close(fuse(randomised(odd))(x).numpy(), odd(x).numpy(), 1e-5)
