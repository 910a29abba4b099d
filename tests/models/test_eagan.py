"""SAGAN and EA-SAGAN against StudioGAN's outputs, gradients and training forward, through StudioGAN's files."""
from collections import OrderedDict

import numpy as np
import pytest
import recipe

import jea
from jea._jittor import jt
from jea.nn.formats import plain

FIXTURES = {"sagan_cifar10": "self", "ea_sagan_cifar10": "external"}
LABELS = np.array([0, 3, 7, 9], np.int32)


def state_of(ref, network):
    entry = ref.manifest if network == "G" else ref.manifest["more_states"]["discriminator"]
    return recipe.fill_state(entry["state"], entry["recipe_prefix"])


def studio_file(path, network, state, layout="2021"):
    """A file as StudioGAN's worker writes it, or with jea's writer where there is no PyTorch."""
    try:
        import torch
    except ImportError:
        from jea.checkpoint.loading import write
        write(path, state, wrapper="state_dict")
        return path
    weights = OrderedDict((key, torch.from_numpy(np.array(value))) for key, value in state.items())
    moments = {i: {"step": 7, "exp_avg": torch.zeros(v.shape)} for i, v in enumerate(weights.values())}
    optimizer = {"state": moments, "param_groups": [{"lr": 2e-4, "betas": (0.5, 0.999), "params": list(moments)}]}
    content = {"state_dict": weights, "optimizer": optimizer}
    if layout == "2021":
        content = {"seed": 3, "run_name": "CIFAR10-SAGAN-train-2021", "step": 90000, "best_step": 88000, **content,
                   "ada_p": None}
        if network == "D":
            content.update(best_fid=np.float64(14.009), best_fid_checkpoint_path="./checkpoints/x")
    elif network == "D":
        content.update(seed=3, run_name="x", step=9, epoch=2, topk=64, aa_p=None, best_step=8, best_fid=np.float64(14),
                       best_fid_ckpt=None, lecam_emas={"D_real": 0.0})
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def pairs(reference, tmp_path_factory):
    """fixture name -> (pair with the reference's weights, reference)."""
    folder, made = tmp_path_factory.mktemp("gan"), {}

    def load(name):
        ref = reference(name)
        if name not in made:
            made[name] = jea.create_model("ea_sagan_cifar10", attention=FIXTURES[name])
        model = made[name]
        for network, module in (("G", model.generator), ("D", model.discriminator)):
            path = folder / f"{name}-{network}.pth"
            if not path.exists():
                studio_file(path, network, state_of(ref, network), "2021" if name == "sagan_cifar10" else "2022")
            report = jea.load_weights(module, path)
            assert not report.missing and report.wrapper == "state_dict"
        set_training(model, False)
        return model, ref
    return load


def set_training(network, training):
    for module in network.modules():
        module.is_train = training  # eval() would also stop the gradients


def inputs(ref):
    return jt.array(ref.input("gan/z")), jt.array(ref.input("gan/x"))


def spy_on(network, names):
    """Record the outputs of submodules by name; returns the dict and an undo function."""
    outputs, modules, undo = {}, dict(network.named_modules()), []
    for name in names:
        module = modules[name]

        def spy(*args, _name=name, _execute=module.execute, **kwargs):
            outputs[_name] = _execute(*args, **kwargs)
            return outputs[_name]
        undo.append((module, module.execute))
        module.execute = spy
    return outputs, lambda: [setattr(module, "execute", execute) for module, execute in undo]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", FIXTURES)
def test_outputs_and_probes(name, pairs, close):
    model, ref = pairs(name)
    z, x = inputs(ref)
    probes = [key[len("probe/"):] for key in ref.arrays if key.startswith("probe/")]
    assert len(probes) == (0 if name == "sagan_cifar10" else 10)
    spies = {letter: spy_on(network, [p[2:] for p in probes if p[0] == letter])
             for letter, network in (("G", model.generator), ("D", model.discriminator))}
    close(model.generator.pre_tanh(z, LABELS).numpy(), ref.arrays["G_pre_tanh"], 2e-5, "G_pre_tanh")
    score, features = model.discriminator(x, LABELS, return_features=True)
    for letter, (outputs, undo) in spies.items():
        undo()
        for probe in [p for p in probes if p[0] == letter]:
            flat = plain(outputs[probe[2:]]).numpy().reshape(-1)
            index = recipe.sample_indices(f"probe:{probe}", flat.size, 64)
            close(flat[index], ref.arrays[f"probe/{probe}"], 2e-5, probe)
    close(score.numpy(), ref.arrays["D"], 2e-5, "D")
    close(features.numpy(), ref.arrays["D_h"], 2e-5, "D_h")
    close(model.generator(z, LABELS).numpy(), ref.arrays["G"], 2e-5, "G")
    close(model(z, LABELS).numpy(), ref.arrays["D_of_G"], 2e-5, "D_of_G")


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", FIXTURES)
def test_hinge_gradients(name, pairs, close):
    from jea.tasks.generation import hinge_d, hinge_g
    model, ref = pairs(name)
    z, x = inputs(ref)
    fake = model.generator(z, LABELS)
    real_scores, fake_scores = (model.discriminator(pictures, LABELS) for pictures in (x, fake))
    losses = {"hinge_D": (model.discriminator, hinge_d(real_scores, fake_scores)),
              "hinge_G": (model.generator, hinge_g(fake_scores))}
    for kind, (network, loss) in losses.items():
        close(loss.item(), float(ref.arrays[kind]), 2e-5, kind)
        state, start = network.state_dict(), f"{kind}/grad/"
        keys = [key for key in ref.arrays if key.startswith(start) and not key.endswith(("_index", ".sum_absmean"))]
        assert len(keys) >= 5
        names = [key[len(start):].replace(".samples", "") for key in keys]
        for key, parameter, grad in zip(keys, names, jt.grad(loss, [state[n] for n in names])):
            got = grad.numpy()
            if key.endswith(".samples"):
                got = got.reshape(-1)[ref.arrays[f"{key}_index"]]
            close(got, ref.arrays[key], 2e-3 if name == "sagan_cifar10" else 1e-4, key)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", FIXTURES)
def test_training_forward(name, pairs, close):
    """One power iteration, batch statistics, and what they leave in the buffers."""
    model, ref = pairs(name)
    z, x = inputs(ref)
    set_training(model, True)
    close(model.generator(z, LABELS).numpy(), ref.arrays["G_train"], 2e-5, "G_train")
    close(model.discriminator(x, LABELS).numpy(), ref.arrays["D_train"], 2e-5, "D_train")
    compared = 0
    for letter, network in (("G", model.generator), ("D", model.discriminator)):
        for key in [key for key in ref.arrays if key.startswith(f"{letter}_train/")]:
            close(network.state_dict()[key.partition("/")[2]].numpy(), ref.arrays[key], 2e-5, key)
            compared += 1
    assert compared == 6


def trainable(network):
    return sum(var.numel() for var in network.parameters() if not var.is_stop_grad())


@pytest.mark.parametrize("name, attention, generator, discriminator", [
    ("ea_sagan_cifar10", "self", 4_386_308, 1_075_586), ("ea_sagan_cifar10", "external", 4_468_228, 1_104_258),
    ("ea_sagan_tiny_imagenet", "self", 13_387_396, 19_752_642),
    ("ea_sagan_tiny_imagenet", "external", 13_416_068, 19_763_906)])
def test_parameter_counts(name, attention, generator, discriminator, no_orthogonal_start):
    model = jea.create_model(name, attention=attention)
    assert (trainable(model.generator), trainable(model.discriminator)) == (generator, discriminator)
    published = {"ea_sagan_cifar10": (10, 32), "ea_sagan_tiny_imagenet": (200, 64)}
    assert (model.num_classes, model.img_size, model.z_dim) == published[name] + (128,)


def test_attention_stands_where_studiogan_has_it():
    for name, place in (("ea_sagan_cifar10", 2), ("ea_sagan_tiny_imagenet", 3)):
        model = jea.create_model(name, width=8)
        for network, index in ((model.generator, place), (model.discriminator, 1)):
            assert [key for key in network.state_dict() if key.endswith("sigma")] == [f"blocks.{index}.0.sigma"]


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("attention", ["self", "external"])
def test_other_sizes(size, attention):
    model = jea.create_model("ea_sagan_cifar10", img_size=size, num_classes=3, z_dim=20, width=8, attention=attention,
                             num_memories=5, discriminator_attention=[1, 2])
    z, y = jt.randn(2, 20), np.array([0, 2])
    pictures = model.generator(z, y)
    assert pictures.shape == [2, 3, size, size] and abs(pictures.numpy()).max() <= 1
    assert model.discriminator(pictures, y).shape == [2]
    assert len([key for key in model.discriminator.state_dict() if key.endswith("sigma")]) == 2


def test_networks_of_different_widths(tmp_path):
    model = jea.create_model("ea_sagan_tiny", width=8, discriminator_width=24)
    assert model.generator.conv2d5.weight_orig.shape == [3, 32, 3, 3]
    assert model.discriminator.embedding.weight_orig.shape == [6, 48]
    assert model(jt.randn(2, 32), np.array([0, 5])).shape == [2]
    jea.save_weights(model, tmp_path / "pair.npz")
    arguments = jea.models.infer_kwargs("ea_sagan_tiny", jea.checkpoint.read(tmp_path / "pair.npz").tensors)
    assert arguments == {"num_classes": 6, "z_dim": 32, "img_size": 32, "width": 8, "discriminator_width": 24,
                         "num_memories": 32}


def test_mixed_labels_lie_between():
    model = jea.create_model("ea_sagan_tiny")
    set_training(model, False)
    for key, value in model.state_dict().items():  # else all classes look alike at the start
        if key.endswith("sigma"):
            value.assign(jt.ones((1,)))
    z = jt.randn(1, 32)
    first, second = (model.generator(z, np.array([k])).numpy() for k in (0, 1))
    same = model.generator(z, jt.array(np.eye(6, dtype=np.float32)[:1])).numpy()
    mixed = model.generator(z, jt.array(np.array([[0.5, 0.5, 0, 0, 0, 0]], np.float32))).numpy()
    assert np.array_equal(same, first) and not np.allclose(first, second, atol=1e-4)
    assert not np.allclose(mixed, first, atol=1e-4) and not np.allclose(mixed, second, atol=1e-4)


def test_old_generator_files_hold_label_embeddings(reference, tmp_path):
    """StudioGAN's first versions: bn1.embed0 (num_classes, C) instead of bn1.gain (C, num_classes)."""
    state = state_of(reference("sagan_cifar10"), "G")
    old = {}
    for key, value in state.items():
        stem, _, part = key.rpartition(".")
        for ours, theirs in ((".gain", ".embed0"), (".bias", ".embed1")):
            if stem.endswith((f"bn1{ours}", f"bn2{ours}")):
                stem = stem[:-len(ours)] + theirs
                part = {"weight_u": "weight_v", "weight_v": "weight_u"}.get(part, part)
                value = value.T
        old[f"{stem}.{part}"] = np.ascontiguousarray(value)
    assert old["blocks.0.0.bn1.embed0.weight_orig"].shape == (10, 256)
    path = studio_file(tmp_path / "old.pth", "G", old)
    model = jea.create_model("ea_sagan_cifar10", attention="self")
    pair = jea.create_model("ea_sagan_cifar10", attention="self")
    assert "first versions" in jea.load_weights(model.generator, path).key_map
    assert "discriminator.linear1.bias" in jea.load_weights(pair, path).initialised
    for network in (model.generator, pair.generator):
        for key, value in network.state_dict().items():
            assert np.array_equal(value.numpy(), state[key]), key


def test_files_of_one_network_fit_the_pair(reference, tmp_path):
    ref = reference("ea_sagan_cifar10")
    model, states = jea.create_model("ea_sagan_cifar10"), {network: state_of(ref, network) for network in "GD"}
    for network in "GD":
        path = studio_file(tmp_path / f"{network}.pth", network, states[network])
        report = jea.load_weights(model, path)
        assert report.key_map == {"G": "StudioGAN, generator", "D": "StudioGAN, discriminator"}[network]
        arguments = jea.models.infer_kwargs("ea_sagan_cifar10", jea.checkpoint.read(path).tensors)
        wanted = {"num_classes": 10, "img_size": 32, "width": 64, "num_memories": 64}
        assert arguments == (dict(wanted, z_dim=128) if network == "G" else wanted)
    for network, module in (("G", model.generator), ("D", model.discriminator)):
        for key, value in module.state_dict().items():
            assert np.array_equal(value.numpy(), states[network][key]), key
    jea.save_weights(model.generator, tmp_path / "back.pth")
    back = jea.checkpoint.read(tmp_path / "back.pth").tensors
    assert set(back) == {key for key in states["G"] if "num_batches" not in key}
    jea.save_weights(model, tmp_path / "pair.npz")
    again = jea.create_model("ea_sagan_cifar10")
    jea.load_weights(again, tmp_path / "pair.npz")
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(model.parameters(), again.parameters()))
    tensors = jea.checkpoint.read(tmp_path / "pair.npz").tensors
    assert jea.models.infer_kwargs("ea_sagan_cifar10", tensors) == dict(wanted, z_dim=128)


@pytest.mark.parametrize("name", FIXTURES)
def test_folded_for_inference(name, pairs, close):
    model, ref = pairs(name)
    z, x = inputs(ref)
    fast = jea.fuse(model)
    close(fast.generator(z, LABELS).numpy(), ref.arrays["G"], 2e-5, "G")
    close(fast.discriminator(x, LABELS).numpy(), ref.arrays["D"], 2e-5, "D")
    close(fast(z, LABELS).numpy(), ref.arrays["D_of_G"], 2e-5, "D_of_G")
    names = [key for key in fast.generator.network.state_dict() if "weight" in key]
    assert "blocks.0.0.bn1.gain.weight" in names and not [n for n in names if n.endswith(("_orig", "_u", "_v"))]
    assert "linear0.weight_u" in model.generator.state_dict()  # the model stays as it was
    with pytest.raises(RuntimeError, match="no gradient"):
        jt.grad(fast.generator(z, LABELS).sum(), z).sync()


def test_orthogonal_start():
    model = jea.create_model("ea_sagan_tiny")
    for key, value in model.state_dict().items():
        if key.endswith("weight_orig"):
            w = value.numpy().reshape(value.shape[0], -1).astype(np.float64)
            gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
            assert np.abs(gram - np.eye(len(gram))).max() < 1e-5, key
        elif key.endswith(("weight_u", "weight_v")):
            assert abs(np.linalg.norm(value.numpy()) - 1) < 1e-5 and value.is_stop_grad()
        elif key.endswith(("sigma", ".bias")) and "bn" not in key:
            assert not value.numpy().any(), key


@pytest.mark.parametrize("arguments, said", [
    ({"img_size": 48}, "img_size is 48; expected one of 32, 64, 128, 256, 512"),
    ({"attention": "both"}, 'attention is \'both\'; expected "external" or "self"'),
    ({"width": 20}, "width is 20; expected a positive multiple of 8"),
    ({"z_dim": 0}, "z_dim is 0; expected at least 1"),
    ({"generator_attention": [4]}, r"generator_attention is \[4\]; expected block numbers from 1 to 3"),
])
def test_bad_arguments(arguments, said):
    with pytest.raises(ValueError, match=said):
        jea.create_model("ea_sagan_tiny", **arguments)


def test_bad_inputs():
    model = jea.create_model("ea_sagan_tiny")
    with pytest.raises(ValueError, match=r"z has shape \(2, 31\); expected \(B, 32\)"):
        model.generator(jt.randn(2, 31), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"labels are int32 \(3,\); expected integers \(2,\)"):
        model.generator(jt.randn(2, 32), np.array([0, 1, 2], np.int32))
    for labels in ([0, 6], [-1, 5]):
        with pytest.raises(ValueError, match=rf"labels go from {labels[0]} to {labels[1]}; expected 0 to 5"):
            model.generator(jt.randn(2, 32), np.array(labels))
    with pytest.raises(ValueError, match=r"got shape \(2, 3, 16, 16\); expected \(B, 3, 32, 32\)"):
        model.discriminator(jt.randn(2, 3, 16, 16), np.array([0, 1]))
