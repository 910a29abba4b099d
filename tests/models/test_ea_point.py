"""EA-PCT and PCT against the references, through genuine checkpoint files, and what holds for sets of points."""
import numpy as np
import pytest
import recipe

import jea
from jea._jittor import jt
from jea.checkpoint import CheckpointError
from jea.tasks.point_clouds import smoothed_cross_entropy

FIXTURES = {"ea_pct_cls2": ("ea_pct_cls", "external", 86), "ea_pct_partseg": ("ea_pct_partseg", "external", 66),
            "pct_jittor_cls2": ("ea_pct_cls", "self", 90), "pct_jittor_partseg": ("ea_pct_partseg", "self", 70)}


def inputs_of(ref):
    """Points and, for the segmenter, its categories."""
    name = next(key for key in ref.manifest["inputs"] if key.startswith("points/"))
    category = [np.eye(16, dtype=np.float32)[[3, 11]]] if "label/onehot" in ref.manifest["inputs"] else []
    return [jt.array(value) for value in [ref.input(name), *category]]


def as_upstream(value):
    """Our (C, B N) as upstream's (B, C, N)."""
    return value.reshape(value.shape[0], 2, -1).transpose(1, 0, 2)


def outputs_of(model, names, inputs):
    """The model's output and those of its submodules, as numpy."""
    outputs, modules = {}, dict(model.named_modules())
    for name in names:
        def spy(*args, _name=name, _execute=modules[name].execute, **kwargs):
            outputs[_name] = _execute(*args, **kwargs)
            return outputs[_name]
        modules[name].execute = spy
    y = model(*inputs).numpy()
    for name in names:
        del modules[name].execute
    return y, {name: value.numpy() for name, value in outputs.items()}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", FIXTURES)
def test_outputs_and_probes(name, reference, write_pth, close):
    ref, (model_name, attention, tensors) = reference(name), FIXTURES[name]
    model = jea.create_model(model_name, attention=attention)
    report = jea.load_weights(model, write_pth(name, prefix="module.", legacy=True))
    assert len(report.loaded) == tensors and not report.missing and not report.unexpected
    model.eval()
    probes = {key[6:]: key for key in ref.arrays if key.startswith("probe/")}
    plain = [module for module in probes if module not in ("conv_fuse", "bns2")]  # these two end in something else
    y, outputs = outputs_of(model, plain, inputs_of(ref))
    for module in plain:
        flat = as_upstream(outputs[module]).reshape(-1)
        close(flat[recipe.sample_indices(f"probe:{module}", flat.size, 64)], ref.arrays[probes[module]], 2e-5, module)
    assert attention == "self" or len(plain) >= 4
    close(y, ref.arrays["y"], 2e-5, name)


@pytest.mark.usefixtures("device")
def test_loss_and_gradients(reference, write_pth, close):
    ref = reference("ea_pct_partseg")
    model = jea.create_model("ea_pct_partseg")
    jea.load_weights(model, write_pth("ea_pct_partseg"))
    for module in model.modules():
        module.is_train = False  # evaluation, with gradients
    labels = recipe.label_map("partseg/label/2x512", (2, 512), n_classes=50, ignore_share=0.0)
    loss = smoothed_cross_entropy(model(*inputs_of(ref)), jt.array(labels.astype(np.int32)), 0.0)
    close(loss.item(), float(ref.arrays["loss"]), 1e-6)
    names = [key[5:] for key in ref.arrays if key.startswith("grad/")]
    assert len(names) == 6
    state = model.state_dict()
    for name, gradient in zip(names, jt.grad(loss, [state[name] for name in names])):
        close(gradient.numpy(), ref.arrays[f"grad/{name}"], 1e-5 if name == "convs3.weight" else 2e-3, name)


COUNTS = {("ea_pct_cls", "external"): 2_613_224, ("ea_pct_cls", "self"): 2_810_856,
          ("ea_pct_partseg", "external"): 2_429_234, ("ea_pct_partseg", "self"): 2_446_130,
          ("ea_pct_cls_simple", "external"): 1_343_656, ("ea_pct_cls_simple", "self"): 1_360_552}


def test_parameter_counts():
    for (name, attention), count in COUNTS.items():
        model = jea.create_model(name, attention=attention)
        assert sum(v.numel() for v in model.parameters() if not v.is_stop_grad()) == count, name
        assert f"{count:,} {attention}" in type(model).__doc__
    assert jea.list_models("ea_pct_*") == ["ea_pct_cls", "ea_pct_partseg", "ea_pct_tiny_cls", "ea_pct_cls_simple",
                                           "ea_pct_tiny_partseg"]


# -- sets of points ----------------------------------------------------------------------------------------------------

def randomised(name, **arguments):
    """A model in evaluation mode whose BatchNorms are not the identity."""
    jt.set_global_seed(1)
    model, rng = jea.create_model(name, **arguments), np.random.default_rng(1)
    for key, value in model.state_dict().items():
        if key.endswith(("running_var", "running_mean")) or ".bn" in key or "_norm." in key:
            low = 0.5 if key.endswith(("var", "weight")) else -0.3
            value.update(jt.array((rng.random(value.shape) + low).astype(np.float32)))
    model.eval()
    return model


def points(batch=2, n=300, seed=0):
    """Clouds of different sizes."""
    scale = np.arange(1, batch + 1)[:, None, None]
    return (np.random.default_rng(seed).standard_normal((batch, 3, n)) * scale).astype(np.float32)


@pytest.mark.parametrize("attention", ["external", "self"])
@pytest.mark.parametrize("name", ["ea_pct_tiny_cls", "ea_pct_cls_simple"])
def test_a_classifier_does_not_see_the_order(name, attention, close):
    model, x = randomised(name, attention=attention, num_classes=7), points()
    # Sampling starts at the first point: it stays where it is.
    order = np.concatenate([[0], 1 + np.random.default_rng(2).permutation(299)])
    y = model(jt.array(x)).numpy()
    close(model(jt.array(x[:, :, order])).numpy(), y, 1e-5)
    assert np.abs(y[0] - y[1]).max() > 1e-3
    close(model(jt.array(x[::-1].copy())).numpy(), y[::-1], 1e-6)  # nor a cloud its neighbours in the batch
    close(model(jt.array(x[:1])).numpy(), y[:1], 1e-5)
    if name == "ea_pct_cls_simple":
        order = np.random.default_rng(3).permutation(300)
        close(model(jt.array(x[:, :, order])).numpy(), y, 1e-5)


@pytest.mark.parametrize("attention", ["external", "self"])
def test_the_segmenter_follows_the_order(attention, close):
    model, x = randomised("ea_pct_tiny_partseg", attention=attention, num_classes=9, num_categories=4), points()
    category = jt.array(np.eye(4, dtype=np.float32)[[1, 3]])
    order = np.random.default_rng(2).permutation(300)
    y = model(jt.array(x), category).numpy()
    assert y.shape == (2, 9, 300)
    close(model(jt.array(x[:, :, order]), category).numpy(), y[:, :, order], 1e-5)
    other = model(jt.array(x), jt.array(np.eye(4, dtype=np.float32)[[1, 0]])).numpy()
    close(other[0], y[0], 1e-6)
    assert np.abs(other[1] - y[1]).max() > 1e-3


@pytest.mark.parametrize("position", ["linear", "affine", "none"])
def test_other_sizes(position):
    model = jea.create_model("ea_pct_cls", num_classes=5, position=position, samples=(40, 20, 10), neighbours=8,
                             width=8, layers=2, num_memories=16)
    assert tuple(model.conv_fuse[0].weight.shape) == (256, 192, 1)
    y = model(jt.array(points(3, 50)))
    assert tuple(y.shape) == (3, 5)
    state = {key: v for key, v in model.state_dict().items() if "running" not in key}
    gradients = jt.grad((y * jt.randn(3, 5)).sum(), list(state.values()))
    for key, gradient in zip(state, gradients):
        # A bias before BatchNorm in training has none.
        assert gradient.numpy().any() or key.endswith(("trans_conv.bias", "linear2.bias")), key


def test_dropout_only_while_training():
    category = np.eye(16, dtype=np.float32)[:2]
    for name, inputs in (("ea_pct_tiny_cls", [points()]), ("ea_pct_tiny_partseg", [points(), category])):
        inputs, model = [jt.array(value) for value in inputs], jea.create_model(name)
        a, b = model(*inputs).numpy(), model(*inputs).numpy()
        assert np.abs(a - b).max() > 1e-3
        model.eval()
        a, b = model(*inputs).numpy(), model(*inputs).numpy()
        assert np.array_equal(a, b)


def test_bad_arguments():
    create = jea.create_model
    for call, said in (
            (lambda: create("ea_pct_cls")(jt.zeros((2, 1024, 3))), r"shape \(2, 1024, 3\); expected .* \(B, 3, N\)"),
            (lambda: create("ea_pct_cls")(jt.zeros((2, 3, 100))), "num_samples is 512; the clouds have 100 points"),
            (lambda: create("ea_pct_partseg")(jt.zeros((2, 3, 9)), jt.zeros((2, 15))), r"\(2, 15\); .* rows \(2, 16\)"),
            (lambda: create("ea_pct_cls", attention="both"), "attention is 'both'; expected external or self"),
            (lambda: create("ea_pct_cls", position="xyz"), "position is 'xyz'; expected one of linear, affine, none"),
            (lambda: create("ea_pct_cls", samples=(64, 128)), r"samples is \(64, 128\); expected positive descending"),
            (lambda: create("ea_pct_cls", samples=(16, 8)), r"at least neighbours \(32\)"),
            (lambda: create("ea_pct_cls", num_classes=0), "num_classes is 0; expected at least 1"),
            (lambda: create("ea_pct_cls_simple", dropout=1), "dropout is 1.0; expected 0 <= dropout < 1"),
            (lambda: create("ea_pct_partseg", width=30), "width is 30; expected a multiple of 4"),
            (lambda: create("ea_pct_tiny_cls")(jt.zeros((1, 3, 200))), "one value per channel")):
        with pytest.raises(ValueError, match=said):
            call()


# -- against PyTorch ---------------------------------------------------------------------------------------------------

def torch_twin(**arguments):
    """PyTorch's network with statistics of its own, in evaluation mode."""
    torch = pytest.importorskip("torch")
    import torch_pct
    torch.manual_seed(0)
    network = (torch_pct.SimpleClassifier if arguments.pop("simple", False) else torch_pct.Classifier)(**arguments)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            for value in (module.weight.data, module.running_var):
                value.uniform_(0.5, 1.5)
            for value in (module.bias.data, module.running_mean):
                value.uniform_(-0.3, 0.3)
    return torch, network.eval()


@pytest.mark.parametrize("position, theirs", [("affine", "pos_xyz"), ("none", None)])
def test_files_of_pct_pytorch(position, theirs, tmp_path, close):
    """Both of its model versions, saved as its main.py does: DataParallel's names, model.t7 before PyTorch 1.6."""
    torch, network = torch_twin(attention="self", position=theirs, head_slope=0.2, num_classes=11)
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save(state, tmp_path / "model.t7", _use_new_zipfile_serialization=False)
    inferred = jea.models.infer_kwargs("ea_pct_cls", jea.checkpoint.read(tmp_path / "model.t7").tensors)
    assert inferred == {"num_classes": 11, "attention": "self", "position": position, "head_slope": 0.2}
    model = jea.create_model("ea_pct_cls", **inferred)
    report = jea.load_weights(model, tmp_path / "model.t7")
    assert "PCT_Pytorch" in report.key_map and len(report.loaded) == len(model.state_dict())
    model.eval()
    x = points(2, 600)
    with torch.no_grad():
        wanted = network(torch.from_numpy(x)).numpy()
    close(model(jt.array(x)).numpy(), wanted, 2e-5)

    jea.save_weights(model, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    counters = {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    network.load_state_dict({**counters, **back}, strict=True)
    with torch.no_grad():
        assert np.array_equal(network(torch.from_numpy(x)).numpy(), wanted)


def test_every_gradient_of_a_classifier(close):
    for simple in (False, True):
        torch, network = torch_twin(num_classes=4, simple=simple)
        model = jea.create_model("ea_pct_cls_simple" if simple else "ea_pct_cls", num_classes=4)
        state = model.state_dict()
        for key, value in network.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                state[key].update(jt.array(value.numpy()))
        for module in model.modules():
            module.is_train = False
        x, g = points(2, 600), np.random.default_rng(5).standard_normal((2, 4)).astype(np.float32)
        (network(torch.from_numpy(x)) * torch.from_numpy(g)).sum().backward()
        wanted = {key: value.grad.numpy() for key, value in network.named_parameters()}
        gradients = jt.grad((model(jt.array(x)) * jt.array(g)).sum(), [state[key] for key in wanted])
        for (key, value), gradient in zip(wanted.items(), gradients):
            close(gradient.numpy(), value, 1e-4, key)


# -- checkpoints -------------------------------------------------------------------------------------------------------

def test_old_jittor_files_with_one_name_or_two(tmp_path):
    source = jea.create_model("ea_pct_tiny_cls", attention="self")
    ours = {key: value.numpy() for key, value in source.state_dict().items()}
    convs = {key for key, value in ours.items() if value.ndim == 3}

    def old(names):
        """Their tensors; names: those of queries and keys."""
        theirs = {}
        for key, value in ours.items():
            conv = key in convs or key.replace(".bias", ".weight") in convs
            stem, _, last = key.rpartition(".")
            for name in names if "k_conv" in key else ("k_conv",):
                theirs[f"{stem}{'.conv' if conv else ''}.{last}".replace("k_conv", name)] = (
                    value[..., None] if key in convs else value)
        return theirs

    for names in (("q_conv",), ("k_conv",), ("q_conv", "k_conv")):
        path = tmp_path / f"{'_'.join(names)}.pkl"
        jea.checkpoint.loading.write(path, old(names))
        model = jea.create_model("ea_pct_tiny_cls", attention="self")
        report = jea.load_weights(model, path)
        assert "Jittor before March 2021" in report.key_map and not report.missing
        assert all(np.array_equal(value.numpy(), ours[key]) for key, value in model.state_dict().items())

    torn = old(("q_conv", "k_conv"))
    torn["pt_last.sa3.q_conv.conv.weight"] = torn["pt_last.sa3.q_conv.conv.weight"] + 1
    jea.checkpoint.loading.write(tmp_path / "torn.pkl", torn)
    with pytest.raises(CheckpointError, match="sa3.[qk]_conv.conv.weight and .*sa3.[qk]_conv.* differ in the file"):
        jea.load_weights(model, tmp_path / "torn.pkl")
    wide = old(("k_conv",))
    wide["conv1.conv.weight"] = np.repeat(wide["conv1.conv.weight"], 2, -1)
    jea.checkpoint.loading.write(tmp_path / "wide.pkl", wide)
    with pytest.raises(CheckpointError, match=r"conv1.weight: shape \(16, 3, 1, 2\) in the file, \(16, 3, 1\)"):
        jea.load_weights(model, tmp_path / "wide.pkl")


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".pkl", ".safetensors"])
def test_our_own_files(suffix, tmp_path):
    for arguments in ({}, {"attention": "self"}, {"position": "affine"}, {"attention": "self", "position": "none"}):
        model, other = (jea.create_model("ea_pct_tiny_cls", **arguments) for _ in range(2))
        jea.save_weights(model, tmp_path / f"own{suffix}")
        jea.load_weights(other, tmp_path / f"own{suffix}")
        mine, theirs = model.state_dict(), other.state_dict()
        assert all(np.array_equal(mine[key].numpy(), theirs[key].numpy()) for key in mine)


def test_arguments_from_files(write_pth):
    def infer(model, file):
        return (jea.models.infer_kwargs(model, jea.checkpoint.read(write_pth(file)).tensors))
    assert infer("ea_pct_cls", "ea_pct_cls2") == {"num_classes": 40, "attention": "external", "num_memories": 64,
                                                  "position": "linear"}
    assert infer("ea_pct_cls", "pct_jittor_cls2") == {"num_classes": 40, "attention": "self", "position": "linear"}
    assert infer("ea_pct_partseg", "pct_jittor_partseg") == {"num_classes": 50, "num_categories": 16,
                                                             "attention": "self"}
    assert infer("ea_pct_partseg", "ea_pct_cls2") == {"num_classes": 40, "attention": "external", "num_memories": 64}
