"""ONNX files of every family, run by ONNX Runtime and compared with the model."""
import numpy as np
import pytest

import jea
from jea._jittor import jt
from jea.errors import ConfigError

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

MODELS = [
    ("eanet_tiny", {"num_classes": 5}, (65, 97)),
    ("eanet_jseg_resnet50", {"num_classes": 3, "width": 8, "head_channels": 16}, (33, 49)),
    ("eamlp_tiny", {"img_size": 48, "num_classes": 4}, None),
    ("eamlp_7", {"img_size": 32, "num_classes": 4}, None),
    ("t2t_vit_7", {"img_size": 32, "num_classes": 4}, None),
    ("t2t_vit_t_14", {"img_size": 32, "num_classes": 4}, None),
    ("eamlp_14_se", {"img_size": 32, "num_classes": 4}, None),
    ("eamlp_16_ghost", {"img_size": 32, "num_classes": 4}, None),
    ("eamlp_dense", {"img_size": 32, "num_classes": 4}, None),
    ("ea_pct_tiny_cls", {"num_classes": 4}, (256,)),
    ("ea_pct_tiny_cls", {"num_classes": 4, "attention": "self", "position": "none", "head_slope": 0.2}, (256,)),
    ("ea_pct_cls_simple", {"num_classes": 4}, (100,)),
    ("ea_pct_tiny_partseg", {"num_classes": 6, "num_categories": 3}, (64,)),
    ("ea_sagan_tiny", {}, None),
    ("ea_sagan_tiny", {"attention": "self"}, None),
]


def trained(name, options):
    """A model whose norms and memories are no longer what they start from."""
    jt.set_global_seed(3)
    model = jea.create_model(name, **options)
    model = getattr(model, "generator", model)
    rng = np.random.default_rng(0)
    for key, var in model.state_dict().items():
        if key.endswith("running_var"):
            var.assign(rng.uniform(0.5, 1.5, var.shape).astype(np.float32))
        elif key.endswith(("running_mean", "bias", "sigma")):
            var.assign(rng.normal(0, 0.2, var.shape).astype(np.float32))
    model.eval()
    return model


def spread(model):
    """Random weights with spectral normalisation, and the vectors that a trained network has."""
    rng = np.random.default_rng(1)
    for layer in model.modules():
        if "weight_orig" in vars(layer):
            weight = rng.standard_normal(layer.weight_orig.shape, np.float32)
            u, _, v = np.linalg.svd(weight.reshape(len(weight), -1), full_matrices=False)
            for var, value in ((layer.weight_orig, weight), (layer.weight_u, u[:, 0]), (layer.weight_v, v[0])):
                var.assign(np.ascontiguousarray(value))


def run(path, feeds):
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)[0]


@pytest.mark.usefixtures("no_orthogonal_start")
@pytest.mark.parametrize("name, options, size", MODELS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(MODELS)])
def test_the_file_computes_what_the_model_does(name, options, size, tmp_path):
    model = trained(name, options)
    if name.startswith("ea_sagan"):
        for layer in model.modules():
            if "weight_orig" in vars(layer):
                layer.weight_orig.assign(np.random.default_rng(1).normal(0, 1,
                                                                         layer.weight_orig.shape).astype(np.float32))
    done = jea.export.export_onnx(model, tmp_path / "m.onnx", size=size)
    assert done.error <= 2e-5, done
    model_file = onnx.load(tmp_path / "m.onnx")
    assert {node.domain for node in model_file.graph.node} == {""}
    assert not any(node.op_type == "BatchNormalization" for node in model_file.graph.node)
    assert [value.name for value in model_file.graph.input] == list(done.inputs)


def test_free_sizes(tmp_path):
    model = trained("eanet_tiny", {"num_classes": 5})
    jea.export.export_onnx(model, tmp_path / "m.onnx", size=(33, 33), dynamic=True)
    image = np.random.default_rng(0).standard_normal((3, 3, 57, 41)).astype(np.float32)
    wanted = model(jt.array(image)).numpy()
    got = run(tmp_path / "m.onnx", {"image": image})
    assert np.abs(got - wanted).max() <= 2e-5 * np.abs(wanted).max()
    assert np.array_equal(got.argmax(1), wanted.argmax(1))


def test_the_l1_step_keeps_its_epsilon(tmp_path):
    """Positions without mass divide 0 by 0 otherwise."""
    model = trained("eanet_tiny", {"num_classes": 5})
    model.linu.linear_0.weight.assign(model.linu.linear_0.weight.numpy() * 300)
    assert jea.export.export_onnx(model, tmp_path / "m.onnx", size=(65, 65)).error <= 2e-5


def test_what_cannot_be_exported(tmp_path):
    model = jea.create_model("eamlp_tiny", img_size=48)
    with pytest.raises(ConfigError, match="has a size of its own"):
        jea.export.export_onnx(model, tmp_path / "m.onnx", size=(48, 48))
    with pytest.raises(ConfigError, match="no ONNX form of Linear"):
        jea.export.export_onnx(jt.nn.Linear(2, 2), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
