"""JSeg's EANet against its own outputs, through its kind of checkpoint."""
import numpy as np
import pytest
import recipe

import jea
from jea._jittor import jt
from jea.checkpoint.loading import write
from jea.models.eanet_jseg import JSegEANet
from jea.nn.formats import plain
from jea.ops import kernels

# upstream's probes -> our modules
MODULES = {"conv1": "decode_head.ea.conv1", "linear_0": "decode_head.ea.linear_0",
           "linear_1": "decode_head.ea.linear_1", "ea": "decode_head.ea", "aux": "auxiliary_head",
           **{f"layer{i}": f"backbone.layer{i}" for i in (1, 2, 3, 4)}}


def outputs_of(model, x):
    """Both logits, and the outputs of MODULES."""
    outputs, modules = {}, dict(model.named_modules())
    for theirs, ours in MODULES.items():
        def spy(*args, _name=theirs, _execute=modules[ours].execute, **kwargs):
            outputs[_name] = _execute(*args, **kwargs)
            return outputs[_name]
        modules[ours].execute = spy
    return model.with_auxiliary(x), outputs


@pytest.fixture(scope="module")
def jseg_pkl(reference, tmp_path_factory):
    """A file as JSeg's runner writes it with jt.save: the weights under "model", beside settings and more state."""
    folder = tmp_path_factory.mktemp("jseg")
    write(folder / "plain.pkl", reference("jseg_eanet_r50").state())  # a bare state dict, as on Jittor Hub
    weights = {key: jt.array(value) for key, value in reference("jseg_eanet_r50").state().items()}
    momenta = [jt.zeros_like(value) for value in weights.values()]
    jt.save({"meta": {"jseg_version": "0.1", "iter": 40000, "config": "model: ..."}, "model": weights,
             "scheduler": {"base_lr": 0.01, "base_lr_pg": [0.01]},
             "optimizer": {"defaults": {"lr": 0.01, "param_groups": [{"values": momenta}]}}},
             str(folder / "wrapped.pkl"))
    return folder


@pytest.fixture(scope="module")
def model(jseg_pkl):
    model = jea.create_model("eanet_jseg_resnet50")
    report = jea.load_weights(model, jseg_pkl / "wrapped.pkl")
    assert len(report.loaded) == 292 and report.wrapper == "model" and "JSeg" in report.key_map
    model.eval()
    return model


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "own.npz"
    jea.save_weights(model, path)
    return path


@pytest.mark.usefixtures("device")
def test_logits_and_probes(reference, model, saved, close):
    ref = reference("jseg_eanet_r50")
    x = jt.array(ref.input("image/1x3x65x65"))
    close(model(x).numpy(), ref.arrays["logits/1x3x65x65"], 2e-5, "logits")
    close(model.low_logits(x).numpy(), ref.arrays["low"], 2e-5, "low")
    fresh = jea.create_model("eanet_jseg_resnet50")
    jea.load_weights(fresh, saved)
    fresh.eval()
    (logits, auxiliary), outputs = outputs_of(fresh, x)
    close(logits.numpy(), ref.arrays["logits/1x3x65x65"], 2e-5, "logits of with_auxiliary")
    assert tuple(auxiliary.shape) == (1, 19, 65, 65)
    probes = [key for key in ref.arrays if key.startswith("probe/")]
    assert len(probes) == len(MODULES) == 9
    for key in probes:
        name = key[len("probe/"):]
        flat = plain(outputs[name]).numpy().reshape(-1)
        close(flat[recipe.sample_indices(f"probe:{name}", flat.size, 64)], ref.arrays[key], 2e-5, key)


def test_bare_state_dict_and_the_way_back(reference, model, jseg_pkl, tmp_path):
    checkpoint = jea.checkpoint.read(jseg_pkl / "plain.pkl")
    assert checkpoint.format == "jittor-pkl" and len(checkpoint.tensors) == 292
    jea.save_weights(model, tmp_path / "back.pth")  # JSeg's names again
    back, wanted = jea.checkpoint.read(tmp_path / "back.pth").tensors, reference("jseg_eanet_r50").state()
    assert set(back) == set(wanted) and all(np.array_equal(back[key], wanted[key]) for key in wanted)


def test_fused_form(model, reference, close, monkeypatch):
    x = jt.array(np.random.default_rng(0).standard_normal((2, 3, 49, 78)).astype(np.float32))
    wanted, low, attention = model(x).numpy(), model.low_logits(x).numpy(), model.attention_map(x).numpy()
    for ops in ("", "ref"):
        monkeypatch.setattr(kernels, "REFERENCES_ONLY", ops == "ref")
        fused = jea.fuse(model)
        close(fused(x).numpy(), wanted, 1e-5, ops)
        close(fused.low_logits(x).numpy(), low, 1e-5, ops)
        close(fused.attention_map(x).numpy(), attention, 1e-5, ops)
        with pytest.raises(ValueError, match=r"\(1, 1, 33, 33\); expected float \(B, 3, H, W\)"):
            fused(jt.randn(1, 1, 33, 33))
    assert attention.shape == (2, 256, 7, 10) and np.allclose(attention.sum(1), 1, atol=1e-5)


def test_without_auxiliary_head(model, saved, jseg_pkl, close):
    lean = jea.create_model("eanet_jseg_resnet50", auxiliary=False)
    for path in (jseg_pkl / "plain.pkl", saved):
        report = jea.load_weights(lean, path)
        assert len(report.loaded) == 285 and len(report.dropped) == 7
    lean.eval()
    x = jt.randn(1, 3, 33, 33)
    close(lean(x).numpy(), model(x).numpy(), 1e-6)


def test_backbone_file(reference, tmp_path):
    """resnet50_v1c of mmsegmentation and Jittor Hub: the keys without "backbone.", and a classifier."""
    state = reference("jseg_eanet_r50").state()
    backbone = {key[len("backbone."):]: value for key, value in state.items() if key.startswith("backbone.")}
    write(tmp_path / "v1c.pkl", dict(backbone, **{"fc.weight": np.zeros((10, 2048), np.float32),
                                                  "fc.bias": np.zeros(10, np.float32)}))
    model = jea.create_model("eanet_jseg_resnet50", num_classes=3)
    report = jea.load_weights(model, tmp_path / "v1c.pkl")
    assert len(report.loaded) == 275 and report.dropped == ["fc.weight", "fc.bias"]
    assert "decode_head.conv_seg.weight" in report.initialised
    assert np.array_equal(model.backbone.bn1.weight.numpy(), state["backbone.stem.7.weight"])
    assert np.array_equal(model.backbone.conv1[0].weight.numpy(), state["backbone.stem.0.weight"])


def test_parameter_counts_and_inferred_arguments(reference):
    from jea.models import infer_kwargs
    manifest = reference("jseg_eanet_r50").manifest
    model = jea.create_model("eanet_jseg_resnet50")
    count = sum(v.numel() for k, v in model.state_dict().items() if "running_" not in k)
    assert count == manifest["n_params"]["all_parameters"] == 27_476_358
    assert sum(v.numel() for k, v in model.state_dict().items()
               if k.startswith("auxiliary_head.") and "running_" not in k) == 2_364_691
    assert jea.list_models("eanet_jseg*") == ["eanet_jseg_resnet50", "eanet_jseg_resnet101"]
    state = {key: np.zeros(var.shape) for key, var in model.state_dict().items()}
    assert infer_kwargs("eanet_jseg_resnet50", state) == {"num_classes": 19, "auxiliary": True, "num_memories": 256}
    del state["auxiliary_head.conv_seg.weight"]
    assert infer_kwargs("eanet_jseg_resnet50", state)["auxiliary"] is False


@pytest.mark.parametrize("output_stride, dilations", [(8, [1, 2, 2, 4, 4]), (16, [1, 1, 1, 2, 2])])
def test_dilations_and_stem(output_stride, dilations):
    model = JSegEANet(layers=(1, 1, 2, 3), width=8, head_channels=16, num_memories=8, output_stride=output_stride)
    blocks = [*model.backbone.layer3, *model.backbone.layer4]
    assert [block.conv2.dilation[0] for block in blocks] == dilations
    stem = model.backbone.conv1
    assert [stem[i].weight.shape[0] for i in (0, 3, 6)] == [4, 4, 8]
    model.eval()
    assert tuple(model.low_logits(jt.randn(1, 3, 65, 65)).shape[2:]) == (64 // output_stride + 1,) * 2


def test_auxiliary_head_of_the_papers_eanet(write_pth, tmp_path, close):
    plain = jea.create_model("eanet_tiny", num_classes=5)
    model = jea.create_model("eanet_tiny", num_classes=5, auxiliary=True)
    jea.save_weights(plain, tmp_path / "plain.pth")  # upstream's names
    report = jea.load_weights(model, tmp_path / "plain.pth")
    assert report.initialised and all(key.startswith("auxiliary_head.") for key in report.initialised)
    plain.eval(), model.eval()
    x = jt.randn(2, 3, 33, 41)
    logits, auxiliary = model.with_auxiliary(x)
    close(logits.numpy(), plain(x).numpy(), 1e-6)
    assert tuple(auxiliary.shape) == (2, 5, 33, 41)
    close(jea.fuse(model)(x).numpy(), plain(x).numpy(), 1e-5)
    close(jea.fuse(model).low_logits(x).numpy(), plain.low_logits(x).numpy(), 1e-5)
