"""EAMLP and T2T-ViT against upstream's outputs and gradients, and every variant against numpy."""
import argparse
import math

import numpy as np
import pytest
import recipe

import jea
from jea._jittor import jt
from jea.checkpoint import CheckpointError, save_npz
from jea.commands import convert, inspect
from jea.models.eamlp import sinusoids
from jea.nn.transformer import DropPath
from jea.ops import cross_entropy

FIXTURES = {"eamlp_7": "eamlp_t2t_vit_7", "t2t_vit_7": "t2t_t2t_vit_7"}

# trainable numbers, and with the table of positions (and the Performer's w, 2 x 2,048)
COUNTS = {
    "eamlp_7": (6_096_206, 6_146_638), "eamlp_10": (8_489_678, 8_540_110), "eamlp_12": (10_085_326, 10_135_758),
    "eamlp_14": (29_801_422, 29_877_070), "eamlp_19": (54_470_798, 54_559_054), "eamlp_24": (89_355_726, 89_456_590),
    "eamlp_t_14": (29_801_422, 29_877_070), "eamlp_t_19": (54_470_798, 54_559_054),
    "eamlp_t_24": (89_355_726, 89_456_590), "eamlp_14_se": (21_663_950, 21_739_598),
    "eamlp_dense": (23_557_846, 23_583_062), "eamlp_16_ghost": (16_113_614, 16_189_262),
    "t2t_vit_7": (4_255_694, 4_310_222), "t2t_vit_10": (5_834_702, 5_889_230), "t2t_vit_12": (6_887_374, 6_941_902),
    "t2t_vit_14": (21_465_806, 21_545_550), "t2t_vit_19": (39_085_070, 39_177_422),
    "t2t_vit_24": (64_000_974, 64_105_934), "t2t_vit_t_14": (21_465_422, 21_541_070),
    "t2t_vit_t_19": (39_084_686, 39_172_942), "t2t_vit_t_24": (64_000_590, 64_101_454),
    "eamlp_14_resnext": (29_707_510, 29_783_158), "eamlp_14_wide": (34_423_758, 34_575_054),
    "t2t_vit_14_resnext": (21_465_806, 21_545_550), "t2t_vit_14_wide": (25_000_910, 25_156_302),
}


def without_dropout(model):
    """Evaluation's mathematics with gradients: Jittor's own eval() stops those of all parameters."""
    for module in model.modules():
        module.is_train = False
    return model


@pytest.fixture(scope="module")
def upstream_npz(reference, tmp_path_factory):
    """upstream_npz("eamlp_7") -> file with the recipe's weights under upstream's names."""
    folder = tmp_path_factory.mktemp("npz")

    def write(name):
        path = folder / f"{name}.npz"
        if not path.exists():
            save_npz(path, reference(FIXTURES[name]).state())
        return path
    return write


@pytest.fixture(scope="module")
def timm_pth(fixtures, tmp_path_factory):
    """timm_pth("eamlp_7") -> file as timm's CheckpointSaver writes it; state_dict is 1 more than state_dict_ema."""
    torch = pytest.importorskip("torch")
    import write_pth
    folder = tmp_path_factory.mktemp("timm")

    def write(name):
        path = folder / f"{name}.pth.tar"
        if not path.exists():
            ema = write_pth.state_dict_from_manifest(str(fixtures / f"{FIXTURES[name]}.json"), prefix="module.")
            args = argparse.Namespace(model="T2t_vit_7", img_size=224, lr=1e-3, scale=[0.08, 1.0], crop_pct=None)
            weight = torch.nn.Parameter(torch.ones(3))
            optimizer = torch.optim.AdamW([weight])
            weight.sum().backward()
            optimizer.step()
            torch.save({"epoch": 309, "arch": "T2t_vit_7", "state_dict": {k: v + 1 for k, v in ema.items()},
                        "optimizer": optimizer.state_dict(), "version": 2, "args": args, "state_dict_ema": ema,
                        "metric": 71.658}, path)
        return path
    return write


# -- parity with upstream -------------------------------------------------------------------------------------------

def probed(model, x):
    """Logits and the outputs of the modules that the fixtures probe."""
    outputs = {}
    wanted = {"tokens_to_token.attention1", "tokens_to_token", "blocks.0", "blocks.6", "norm"}
    for name, module in model.named_modules():
        if name in wanted:
            def spy(*args, _name=name, _execute=module.execute, **kwargs):
                outputs[_name] = _execute(*args, **kwargs)
                return outputs[_name]
            module.execute = spy
    logits = model(jt.array(x)).numpy()
    assert set(outputs) == wanted
    return logits, outputs


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", FIXTURES)
def test_logits_and_probes(name, reference, upstream_npz, close):
    ref = reference(FIXTURES[name])
    model = without_dropout(jea.create_model(name))
    built = model.pos_embed.numpy()
    close(built.reshape(-1)[recipe.sample_indices("pos", built.size)], ref.arrays["pos_embed_built"], 0, "positions")
    report = jea.load_weights(model, upstream_npz(name))
    assert len(report.loaded) == len(ref.manifest["state"]) and not (report.missing or report.unexpected)
    x = ref.input("image/1x3x224x224")
    logits, outputs = probed(model, x)
    for key, output in outputs.items():
        flat = output.numpy().reshape(-1)
        got = flat[recipe.sample_indices(f"probe:{key}", flat.size, 64)]
        close(got, ref.arrays[f"probe/{key}"], 2e-5, key)
    close(logits, ref.arrays["logits"], 2e-5, "logits")
    model.pos_embed.update(jt.array(built))
    close(model(jt.array(x)).numpy(), ref.arrays["logits_sinusoid"], 2e-5, "logits_sinusoid")


@pytest.mark.usefixtures("device")
def test_gradients(reference, upstream_npz, close):
    ref = reference("eamlp_t2t_vit_7")
    model = without_dropout(jea.create_model("eamlp_7"))
    jea.load_weights(model, upstream_npz("eamlp_7"))
    loss = cross_entropy(model(jt.array(ref.input("image/1x3x224x224"))), jt.array([7])).mean()
    close(loss.item(), float(ref.arrays["loss"]), 1e-6, "loss")
    state, checked = model.state_dict(), 0
    names = [e["key"] for e in ref.manifest["state"]]
    names = [n for n in names if f"grad/{n}" in ref.arrays or f"grad/{n}.samples" in ref.arrays]
    for name, grad in zip(names, jt.grad(loss, [state[name] for name in names])):
        key, got = f"grad/{name}", grad.numpy()
        if key not in ref.arrays:
            got = got.reshape(-1)[ref.arrays[f"{key}.samples_index"]]
            key += ".samples"
        close(got, ref.arrays[key], 1e-4, name)
        checked += 1
    assert checked == 9


@pytest.mark.parametrize("name", FIXTURES)
def test_timm_file(name, reference, timm_pth, capsys):
    state = reference(FIXTURES[name]).state()
    model = jea.create_model(name)
    report = jea.load_weights(model, timm_pth(name))
    assert report.wrapper == "state_dict_ema" and len(report.loaded) == len(state)
    assert report.meta["args"]["img_size"] == 224 and report.meta["metric"] == 71.658
    key_map = model.key_maps[0]
    for key, var in model.state_dict().items():
        assert np.array_equal(var.numpy(), state[key_map.to_theirs(key)]), key
    jea.load_weights(model, timm_pth(name), ema=False)
    assert np.array_equal(model.head.bias.numpy(), state["head.bias"] + np.float32(1))
    assert inspect.main([str(timm_pth(name))]) == 0
    said = capsys.readouterr().out
    assert "'model': 'T2t_vit_7'" in said and "under 'state_dict_ema'" in said and "git blob" in said


# -- checkpoints ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tokens, renamed", [("ea_transformer", "attn.linear_2.bias"), ("performer", "mlp.2.weight")])
def test_names_go_to_upstream_and_back(tokens, renamed, tmp_path):
    model, again = (jea.create_model("eamlp_tiny", num_classes=3, tokens=tokens) for _ in range(2))
    jea.save_weights(model, tmp_path / "x.pth")
    renamed = f"tokens_to_token.attention2.{renamed}"
    assert renamed in jea.checkpoint.read(tmp_path / "x.pth").tensors and renamed not in model.state_dict()
    jea.save_weights(model, tmp_path / "x.npz")
    for file in ("x.pth", "x.npz"):
        report = jea.load_weights(again, tmp_path / file)
        assert not report.missing and not report.initialised
        for key, var in again.state_dict().items():
            assert np.array_equal(var.numpy(), model.state_dict()[key].numpy()), key


def test_head_of_other_classes_is_dropped_and_said_so(upstream_npz, reference, tmp_path, capsys):
    state = reference("eamlp_t2t_vit_7").state()
    model = jea.create_model("eamlp_7", num_classes=10)
    before = model.head.weight.numpy()
    report = jea.load_weights(model, upstream_npz("eamlp_7"))
    assert report.initialised == ["head.weight", "head.bias"] and len(report.loaded) == 148
    assert "head.weight: shape (1000, 256) in the file, (10, 256) in the model: dropped" in str(report)
    assert "left as initialised" in str(report)
    assert np.array_equal(model.head.weight.numpy(), before)
    assert np.array_equal(model.norm.weight.numpy(), state["norm.weight"])
    target = tmp_path / "y.npz"
    assert convert.main([str(upstream_npz("eamlp_7")), str(target), "--model", "eamlp_7", "--num-classes", "10"]) == 0
    assert "head.bias: shape (1000) in the file, (10) in the model: dropped" in capsys.readouterr().out
    assert "head.weight" not in jea.checkpoint.read(target).tensors
    state["head.weight"] = np.zeros((10, 8), np.float32)  # not the same head for other classes: another network
    save_npz(tmp_path / "x.npz", state)
    with pytest.raises(CheckpointError, match=r"head.weight: shape \(10, 8\) in the file, \(10, 256\) in the model"):
        jea.load_weights(model, tmp_path / "x.npz")


def test_another_img_size_says_what_to_pass(tmp_path):
    jea.save_weights(jea.create_model("eamlp_tiny", num_classes=3, img_size=384), tmp_path / "x.npz")
    with pytest.raises(CheckpointError, match=r"pos_embed: shape \(1, 577, 64\) in the file.*img_size=384"):
        jea.load_weights(jea.create_model("eamlp_tiny", num_classes=3), tmp_path / "x.npz")
    tensors = jea.checkpoint.read(tmp_path / "x.npz").tensors
    assert jea.models.infer_kwargs("eamlp_tiny", tensors) == {"num_classes": 3, "img_size": 384}
    model = jea.create_model("eamlp_tiny", **jea.models.infer_kwargs("eamlp_tiny", tensors))
    jea.load_weights(model, tmp_path / "x.npz")


# -- the rest ---------------------------------------------------------------------------------------------------------

def counted(model):
    state = model.state_dict().values()
    return sum(v.numel() for v in state if not v.is_stop_grad()), sum(v.numel() for v in state)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    assert counted(jea.create_model(name)) == COUNTS[name]


def test_every_model_is_counted():
    assert set(COUNTS) | {"eamlp_tiny"} == set(jea.list_models("eamlp_*")) | set(jea.list_models("t2t_vit_*"))


def test_counts_of_other_arguments():
    assert counted(jea.create_model("t2t_vit_7", tokens="ea")) == (4_195_790, 4_246_222)  # the paper's T2T-ViT-7 + EA
    assert counted(jea.create_model("eamlp_7", attention="self")) == (4_195_790, 4_246_222)
    assert counted(jea.create_model("eamlp_7", img_size=384)) == (6_096_206, 6_096_206 + 577 * 256)
    assert counted(jea.create_model("eamlp_7", num_classes=10))[0] == 6_096_206 - 990 * 257


def test_positions():
    table = sinusoids(577, 256)
    assert table.shape == (1, 577, 256) and table.dtype == np.float32
    assert np.array_equal(table[0, :197], sinusoids(197, 256)[0])
    assert table[0, 3, 0] == np.float32(math.sin(3)) and table[0, 3, 1] == np.float32(math.cos(3))
    assert table[0, 5, 10] == np.float32(math.sin(5 / 10000 ** (10 / 256)))


def test_initialisation():
    jt.set_global_seed(0)
    model = jea.create_model("eamlp_7")
    state = {key: var.numpy() for key, var in model.state_dict().items()}
    assert abs(state["blocks.2.attn.trans_dims.weight"].std() - 0.02) < 2e-4
    assert abs(state["cls_token"].std() - 0.02) < 4e-3
    assert not any(state[key].any() for key in state if key.endswith("bias"))
    for stage in ("attention1", "attention2"):
        memories = getattr(model.tokens_to_token, stage).attn
        assert np.array_equal(memories.linear_0.weight.numpy(), memories.linear_1.weight.numpy().T)  # equal start ...
        assert memories.linear_0.weight is not memories.linear_1.weight  # ... separate parameters
    w = jea.create_model("t2t_vit_7").tokens_to_token.attention1.w.numpy()
    assert np.allclose(w @ w.T, 32 * np.eye(32), atol=1e-4)


def test_what_trains():
    """Every parameter gets a gradient but the positions and the Performer's w."""
    jt.set_global_seed(0)
    model = jea.create_model("eamlp_tiny", num_classes=3, img_size=32, drop_rate=0.1, drop_path_rate=0.2)
    trained = {key: var for key, var in model.state_dict().items() if not var.is_stop_grad()}
    assert set(model.state_dict()) - set(trained) == {"pos_embed"}
    loss = cross_entropy(model(jt.randn(16, 3, 32, 32)), jt.array(np.arange(16) % 3)).mean()
    for (key, _), grad in zip(trained.items(), jt.grad(loss, list(trained.values()))):
        assert np.isfinite(grad.numpy()).all() and np.abs(grad.numpy()).max() > 0, key
    frozen = {key for key, var in jea.create_model("t2t_vit_7").state_dict().items() if var.is_stop_grad()}
    assert frozen == {"pos_embed", "tokens_to_token.attention1.w", "tokens_to_token.attention2.w"}


def test_stochastic_depth():
    model = jea.create_model("eamlp_7", drop_path_rate=0.3)
    assert np.allclose([block.drop_path.p for block in model.blocks], [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3])
    dense = jea.create_model("eamlp_dense", drop_path_rate=0.11)  # by stage, of 12 steps
    assert np.allclose([block.drop_path.p for block in dense.blocks if hasattr(block, "drop_path")],
                       [0] * 3 + [0.01] * 6 + [0.02] * 6 + [0.03] * 4)
    jt.set_global_seed(0)
    drop = DropPath(0.25)
    drop.train()
    y = drop(jt.ones((4000, 2, 3))).numpy()
    kept = y[:, 0, 0] > 0
    assert np.allclose(y, np.where(kept, 1 / 0.75, 0)[:, None, None]) and abs(kept.mean() - 0.75) < 0.03
    drop.eval()
    assert (drop(jt.ones((9, 2, 3))).numpy() == 1).all()


def test_features():
    model = without_dropout(jea.create_model("eamlp_tiny", num_classes=4, img_size=48))
    x = jt.randn(2, 3, 48, 48)
    tokens, features = model.forward_tokens(x), model.forward_features(x)
    assert tuple(tokens.shape) == (2, 10, 64) and tuple(features.shape) == (2, model.num_features) == (2, 64)
    assert np.array_equal(tokens[:, 0].numpy(), features.numpy())
    assert np.allclose(model.head(features).numpy(), model(x).numpy(), atol=1e-6)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"img_size is 200; expected a multiple of 16, such as 192"):
        jea.create_model("eamlp_7", img_size=200)
    with pytest.raises(ValueError, match="tokens is 'conv'; expected one of ea, ea_transformer, performer, "):
        jea.create_model("eamlp_7", tokens="conv")
    with pytest.raises(ValueError, match='attention is \'both\'; expected "external" or "self"'):
        jea.create_model("eamlp_7", attention="both")
    with pytest.raises(ValueError, match="drop_path_rate 1.5; expected 0 <= rate < 1"):
        jea.create_model("eamlp_7", drop_path_rate=1.5)
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 48\); expected \(B, 3, 48, 48\)"):
        jea.create_model("eamlp_tiny", img_size=48)(jt.randn(1, 3, 32, 48))
