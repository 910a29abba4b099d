"""EANet against upstream's outputs and gradients, through genuine checkpoint files."""
import numpy as np
import pytest
import recipe

import jea
from jea._jittor import jt
from jea.nn.formats import plain
from jea.nn.mode import freeze_batch_norm
from jea.tasks.segmentation import pixel_cross_entropy

# upstream's module -> ours, for the probes
MODULES = {"extractor.4": "backbone.layer1", "extractor.5": "backbone.layer2", "extractor.6": "backbone.layer3",
           "extractor.7": "backbone.layer4", "fc0": "fc0", "linu": "linu", "fc1": "fc1"}


def run_with_outputs(model, x):
    """Logits and the outputs of the modules in MODULES."""
    outputs, modules = {}, dict(model.named_modules())
    originals = {}
    for theirs, ours in MODULES.items():
        module = modules[ours]
        originals[module] = module.execute

        def spy(*args, _name=theirs, _execute=module.execute, **kwargs):
            outputs[_name] = _execute(*args, **kwargs)
            return outputs[_name]
        module.execute = spy
    try:
        logits = model(jt.array(x)).numpy()
    finally:
        for module, execute in originals.items():
            module.execute = execute
    return logits, outputs


@pytest.mark.usefixtures("device")
def test_logits_and_probes(reference, write_pth, close):
    ref = reference("eanet50_s16")
    model = jea.create_model("eanet_resnet50", output_stride=16)
    report = jea.load_weights(model, write_pth("eanet50_s16", wrap="net", prefix="module."))
    assert len(report.loaded) == 296 and not report.missing and not report.unexpected
    model.eval()
    probed = 0
    for name in ref.manifest["inputs"]:
        size = name.split("/")[1]
        logits, outputs = run_with_outputs(model, ref.input(name))
        for theirs in MODULES:
            key = f"probe/{theirs}/{size}"
            if key in ref.arrays:
                flat = plain(outputs[theirs]).numpy().reshape(-1)
                close(flat[recipe.sample_indices(f"probe:{theirs}/{size}", flat.size, 64)], ref.arrays[key], 2e-5, key)
                probed += 1
        close(logits, ref.arrays[f"logits/{size}"], 2e-5, name)
    assert probed >= 8


def test_legacy_container_gives_the_same_weights(write_pth):
    import importlib.util
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch to write the legacy container")
    zipped = jea.checkpoint.read(write_pth("eanet50_s16", wrap="net", prefix="module."))
    legacy = jea.checkpoint.read(write_pth("eanet50_s16", legacy=True))
    assert zipped.format == "torch-zip" and legacy.format == "torch-legacy"
    assert all(np.array_equal(zipped.tensors[k], legacy.tensors[k]) for k in legacy.tensors)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("output_stride", [8, 16])
def test_backbone_file(reference, write_pth, close, output_stride):
    ref = reference("resnet50_deepstem")
    model = jea.create_model("eanet_resnet50", output_stride=output_stride)
    head = model.fc2.weight.numpy()
    report = jea.load_weights(model, write_pth("resnet50_deepstem"))
    assert len(report.loaded) == 275 and "fc.weight" in report.dropped
    assert "fc2.weight" in report.initialised and "left as initialised" in str(report)
    assert np.array_equal(model.fc2.weight.numpy(), head)
    model.eval()
    y = model.backbone(jt.array(ref.input("image/1x3x65x65")))
    close(y.numpy(), ref.arrays[f"layer4/s{output_stride}"], 2e-5)


def test_parameter_counts():
    counts = {"eanet_resnet50": 34_846_933, "eanet_resnet101": 53_839_061, "eanet_resnet152": 69_482_709}
    for name, count in counts.items():
        model = jea.create_model(name, num_classes=21)
        state = model.state_dict()
        assert sum(v.numel() for k, v in state.items() if "running_" not in k) == count
        assert sum(v.numel() for v in model.parameters() if not v.is_stop_grad()) == count
    assert jea.list_models("eanet_resnet*") == list(counts)


@pytest.mark.usefixtures("device")
def test_loss_and_frozen_gradients(reference, write_pth, close):
    ref = reference("eanet50_s16_train")
    model = jea.create_model("eanet_resnet50", output_stride=16, dropout=0.0)
    jea.load_weights(model, write_pth("eanet50_s16", wrap="net", prefix="module."))
    x = jt.array(ref.input("train/image/2x3x65x65"))
    labels = jt.array(recipe.label_map("train/label/2x65x65", (2, 65, 65), n_classes=21).astype(np.int32))
    loss = pixel_cross_entropy(model(x), labels)
    assert abs(loss.item() - float(ref.arrays["loss"])) <= 1e-5 * float(ref.arrays["loss"])
    key_map, state = type(model).key_maps[0], model.state_dict()
    tracked = [key for key in ref.arrays if key.startswith("bn/")]
    assert len(tracked) == 6
    for key in tracked:  # running statistics after one training forward; 49 layers of batch statistics amplify rounding
        close(state[key_map.to_ours(key[3:])].numpy(), ref.arrays[key], 1e-3, key)
    jea.load_weights(model, write_pth("eanet50_s16", wrap="net", prefix="module."))  # undo the running statistics
    freeze_batch_norm(model)
    loss = pixel_cross_entropy(model(x), labels)
    close(loss.item(), float(ref.arrays["frozen/loss"]), 1e-6, "frozen loss")
    state = model.state_dict()
    names = [e["key"] for e in ref.manifest["state"]]
    names = [n for n in names if f"frozen/grad/{n}" in ref.arrays or f"frozen/grad/{n}.samples" in ref.arrays]
    assert len(names) == 5
    grads = jt.grad(loss, [state[key_map.to_ours(name)] for name in names])
    for name, grad in zip(names, grads):
        key, got = f"frozen/grad/{name}", grad.numpy()
        if key not in ref.arrays:
            got = got.reshape(-1)[ref.arrays[f"{key}.samples_index"]]
            key += ".samples"
        wanted = ref.arrays[key]
        close(got, wanted, 5e-3 if name == "extractor.0.0.weight" else 1e-4, name)


def test_attention_map_and_bad_input():
    model = jea.create_model("eanet_tiny", num_classes=3)
    model.eval()
    a = model.attention_map(jt.randn(2, 3, 33, 41)).numpy()
    assert a.shape == (2, 32, 5, 6)
    assert np.allclose(a.sum(1), 1, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(1, 1, 33, 33\); expected float \(B, 3, H, W\)"):
        model(jt.randn(1, 1, 33, 33))
    with pytest.raises(ValueError, match="got int32"):
        model(jt.zeros((1, 3, 33, 33)).int32())
    with pytest.raises(ValueError, match="expected a jt.Var"):
        model(np.zeros((1, 3, 33, 33), np.float32))


def test_initialisation_statistics():
    jt.set_global_seed(0)
    model = jea.create_model("eanet_resnet50")
    a, b = model.linu.linear_0.weight.numpy(), model.linu.linear_1.weight.numpy()
    assert np.array_equal(a, b.transpose(1, 0, 2))  # equal start ...
    assert model.linu.linear_0.weight is not model.linu.linear_1.weight  # ... separate parameters
    assert abs(a.std() - np.sqrt(2 / 512)) < 1e-3
    w = model.backbone.layer3[0].conv2.weight.numpy()
    assert abs(w.std() - np.sqrt(2 / (9 * 256))) < 3e-4
    head = model.fc0.conv.weight.numpy()  # the host framework's default, uniform in +-1/sqrt(fan_in)
    assert abs(np.abs(head).max() - 1 / np.sqrt(2048 * 9)) < 1e-4


def test_unknown_names_say_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean eanet_resnet50\?"):
        jea.create_model("eanet_resnet5")
    with pytest.raises(ValueError, match=r"num_clases.*did you mean num_classes\?"):
        jea.create_model("eanet_tiny", num_clases=3)
    with pytest.raises(ValueError, match="output_stride is 32; expected 8 or 16"):
        jea.create_model("eanet_tiny", output_stride=32)


@pytest.mark.parametrize("name, arguments, said", [
    ("eanet_tiny", {"num_classes": "21"}, "num_classes is '21'; expected an integer"),
    ("eanet_tiny", {"num_classes": 2.0}, "num_classes is 2.0; expected an integer"),
    ("eanet_tiny", {"num_classes": True}, "num_classes is True; expected an integer"),
    ("eanet_tiny", {"dropout": "0"}, "dropout is '0'; expected a number"),
    ("eanet_tiny", {"auxiliary": 1}, "auxiliary is 1; expected True or False"),
    ("eamlp_tiny", {"img_size": "96"}, "img_size is '96'; expected an integer"),
    ("eamlp_tiny", {"tokens": 1}, "tokens is 1; expected text"),
    ("ea_sagan_tiny", {"img_size": None}, "img_size is None; expected an integer"),
])
def test_values_of_a_wrong_kind(name, arguments, said):
    with pytest.raises(ValueError, match=f"{name}: {said}"):
        jea.create_model(name, **arguments)


def test_values_of_numpy_are_as_good():
    assert jea.create_model("ea_pct_tiny_cls", num_classes=np.int64(3), dropout=0).num_classes == 3


def test_registry_matches_the_families():
    from jea import models
    for family in set(models.MODELS.values()):
        entries = __import__(f"jea.models.{family}", fromlist=["x"]).ENTRY_POINTS
        assert set(entries) == {name for name, f in models.MODELS.items() if f == family}
