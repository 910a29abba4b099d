"""jea.attention_maps: every family's maps against float64 numpy from the layers' own weights; nothing stays behind."""
import re
from pathlib import Path

import numpy as np
import pytest

import jea
from jea._jittor import jt, nn
from jea.errors import ConfigError
from jea.models.attention_maps import external_attentions
from jea.models.detection.detectors import MaskRCNN
from jea.models.ea_point import PCTClassifier
from jea.models.eamlp import EAMLP, T2TViT
from jea.models.eanet_jseg import JSegEANet
from jea.nn.formats import Activation, plain
from jea.nn.points import OffsetAttention
from jea.nn.spectral_norm import SpectralNorm

TINY = {"layers": (1, 1, 1, 1), "width": 8}


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def images(*shape):
    return (random(*shape),)


def trained(network):
    """Weights whose spectral normalisation has found its vectors, as it has in training."""
    for layer in network.modules():
        if isinstance(layer, SpectralNorm):
            weight = random(*layer.weight_orig.shape, seed=1)
            u, _, v = np.linalg.svd(weight.reshape(len(weight), -1), full_matrices=False)
            for var, value in ((layer.weight_orig, weight), (layer.weight_u, u[:, 0]), (layer.weight_v, v[0])):
                var.assign(jt.array(np.ascontiguousarray(value)))
    return network


# family -> (model, its inputs, {layer: (heads, memories, positions, grid)})
FAMILIES = {
    "eanet": (lambda: jea.create_model("eanet_tiny", num_classes=3), lambda: images(2, 3, 33, 41),
              {"linu": (1, 32, 30, (5, 6))}),
    "eanet_jseg": (lambda: JSegEANet(num_classes=3, head_channels=16, num_memories=8, **TINY),
                   lambda: images(2, 3, 33, 41), {"decode_head.ea": (1, 8, 30, (5, 6))}),
    "eamlp": (lambda: EAMLP(num_classes=3, img_size=32, embed_dim=32, depth=2, num_heads=1),
              lambda: images(2, 3, 32, 32), {"tokens_to_token.attention1.attn": (1, 128, 64, (8, 8)),
                                             "tokens_to_token.attention2.attn": (1, 128, 16, (4, 4)),
                                             **{f"blocks.{k}.attn": (4, 64, 5, (2, 2)) for k in range(2)}}),
    "t2t with external tokens": (
        lambda: T2TViT(tokens="ea_transformer", num_classes=3, img_size=32, embed_dim=32, depth=1, num_heads=1),
        lambda: images(1, 3, 32, 32), {"tokens_to_token.attention1.attn": (1, 128, 64, (8, 8)),
                                       "tokens_to_token.attention2.attn": (1, 128, 16, (4, 4))}),
    "points": (lambda: PCTClassifier(num_classes=3, samples=(48, 32), neighbours=16, width=16, layers=2),
               lambda: images(2, 3, 64), {f"pt_last.sa{k}": (1, 64, 32, None) for k in (1, 2)}),
    "points, unsampled": (lambda: jea.create_model("ea_pct_cls_simple", num_classes=3, width=16, layers=2),
                          lambda: images(2, 3, 50), {f"sa{k}": (1, 64, 50, None) for k in (1, 2)}),
    "parts": (lambda: jea.create_model("ea_pct_tiny_partseg", num_classes=3, num_categories=2, layers=2),
              lambda: (random(2, 3, 50), np.eye(2, dtype=np.float32)), {f"sa{k}": (1, 64, 50, None) for k in (1, 2)}),
    "generator": (lambda: trained(jea.create_model("ea_sagan_tiny").generator),
                  lambda: (random(2, 32), np.array([0, 3], np.int32)), {"blocks.2.0": (1, 32, 256, (16, 16))}),
    "discriminator": (lambda: trained(jea.create_model("ea_sagan_tiny").discriminator),
                      lambda: (random(2, 3, 32, 32), np.array([0, 3], np.int32)),
                      {"blocks.1.0": (1, 32, 256, (16, 16))}),
    "detector": (lambda: MaskRCNN(num_classes=2, channels=16, hidden=16, **TINY).backbone,
                 lambda: images(1, 3, 64, 96), {"body.attention": (1, 64, 6, (2, 3))}),
}


def matrix(layer):
    """The weights of a linear map or a 1x1 convolution, float64 (out, in), and its bias."""
    if isinstance(layer, SpectralNorm):
        weight, u, v = (np.float64(var.numpy()) for var in (layer.weight_orig, layer.weight_u, layer.weight_v))
        weight = weight.reshape(len(weight), -1)
        return weight / (u @ weight @ v), 0.0
    layer = getattr(layer, "conv", layer)
    weight, bias = np.float64(layer.weight.numpy()), getattr(layer, "bias", None)
    return weight.reshape(len(weight), -1), 0.0 if bias is None else np.float64(bias.numpy())


def by_numpy(layer, x, batch):
    """The map (B, heads, S, N) of what entered a layer, float64."""
    kind = type(layer).__name__
    if isinstance(layer, OffsetAttention):  # C, B N
        x = x.reshape(len(x), batch, -1).transpose(1, 2, 0)
    elif x.ndim == 4:
        x = x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)
    x = x.astype(np.float64)  # B N C
    first = {"ExternalAttention": "conv1", "JSegExternalAttention": "conv1", "SpectralExternalAttention": "conv1x1_in",
             "_ExternalTokenAttention": "q_linear", "MultiHeadExternalAttention": "trans_dims"}.get(kind)
    for name in filter(None, (first, "linear_0")):
        weight, bias = matrix(getattr(layer, name))
        if name == "linear_0":  # of each head
            x = x.reshape(*x.shape[:2], -1, weight.shape[1])
        x = x @ weight.T + bias
        x = np.maximum(x, 0) if kind.startswith("JSeg") else x
    logits = x.transpose(0, 2, 3, 1)
    softmax = np.exp(logits - logits.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    return softmax / (1e-9 + softmax.sum(2, keepdims=True))


def what_enters(layers, seen):
    """Note what enters the layers."""
    for name, layer in layers.items():
        def execute(x, *args, _run=layer.execute, _name=name, **options):
            seen[_name] = plain(x).numpy() if isinstance(x, Activation) else x.numpy()
            return _run(x, *args, **options)
        layer.execute = execute


@pytest.mark.usefixtures("no_orthogonal_start")
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_of_every_family(family, close):
    make, make_inputs, wanted = FAMILIES[family]
    model, inputs = make(), make_inputs()
    seen, layers = {}, external_attentions(model)
    what_enters(layers, seen)
    maps = jea.attention_maps(model, *inputs)
    assert list(maps) == list(wanted)
    for name, (heads, memories, positions, grid) in wanted.items():
        found = maps[name]
        assert found.values.shape == (len(inputs[0]), heads, memories, positions) and found.grid == grid
        close(found.values, by_numpy(layers[name], seen[name], len(inputs[0])), 2e-5, name)
        assert np.abs(found.values.sum(2) - 1).max() < 1e-5
        if grid:
            assert np.array_equal(found.pictures.reshape(*found.values.shape[:3], -1),
                                  found.values[..., positions - grid[0] * grid[1]:])
        else:
            with pytest.raises(ValueError, match="no grid"):
                found.pictures
    points = found.points
    if inputs[0].ndim == 3:  # clouds: each position is one of the input's points, and a different one
        own = inputs[0].transpose(0, 2, 1)
        places = [[int(np.flatnonzero((cloud == p).all(1))[0]) for p in positions]
                  for cloud, positions in zip(own, points)]
        assert all(len(set(some)) == positions.shape[0] for some, positions in zip(places, points))
        assert positions < own.shape[1] or places[0] == list(range(positions))
    else:
        assert points is None


@pytest.mark.parametrize("family", ["eanet", "eanet_jseg", "eamlp", "points", "parts", "generator", "detector"])
@pytest.mark.usefixtures("no_orthogonal_start")
def test_a_fused_model_has_the_same_maps(family, close):
    make, make_inputs, _ = FAMILIES[family]
    model, inputs = make(), make_inputs()
    wanted, found = jea.attention_maps(model, *inputs), jea.attention_maps(jea.fuse(model), *inputs)
    assert list(found) == list(wanted)
    for name, one in wanted.items():
        close(found[name].values, one.values, 1e-5, name)
        assert found[name].grid == one.grid
        assert one.points is None or np.array_equal(found[name].points, one.points)


class Own(nn.Module):
    """A user's network: a block that runs twice, with its map and without."""

    def __init__(self, fails=False):
        self.block, self.drop, self.fails = jea.ExternalAttention(8, 4), nn.Dropout(0.5), fails

    def execute(self, x):
        x, attention = self.block(self.drop(x), True)
        x = self.block(x)
        if self.fails:
            raise RuntimeError("in the middle")
        return x, attention


def test_nothing_is_left_behind():
    model, x = Own(), random(2, 8, 3, 5)
    modes = [module.is_training() for module in model.modules()]
    before = {name: var.numpy().copy() for name, var in model.state_dict().items()}
    attributes = [dict(vars(module)) for module in model.modules()]
    maps = jea.attention_maps(model, x)
    assert {name: found.values.shape for name, found in maps.items()} == {
        "block": (2, 1, 4, 15), "block (2)": (2, 1, 4, 15)} and maps["block"].grid == (3, 5)
    model.fails = True
    with pytest.raises(RuntimeError, match="in the middle"):
        jea.attention_maps(model, x)
    model.fails = False
    assert [module.is_training() for module in model.modules()] == modes and any(modes)
    assert [dict(vars(module)) for module in model.modules()] == attributes
    assert all(np.array_equal(var.numpy(), before[name]) for name, var in model.state_dict().items())
    model.eval()
    attention = model(jt.array(x))[1].numpy()
    assert np.abs(attention - maps["block"].values[:, 0]).max() < 1e-6
    model.train()
    gradient = jt.grad(model(jt.array(x))[0].sum(), model.block.linear_0.weight).numpy()  # it still trains
    assert np.abs(gradient).max() > 0


def test_the_example_of_the_page(capsys):
    page = (Path(__file__).parents[2] / "configs" / "README.md").read_text()
    code, = [block for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "attention_maps" in block]
    scope = {"jea": jea, "model": jea.create_model("eanet_tiny"), "images": random(1, 3, 33, 33)}
    exec(code, scope)
    assert "linu (1, 1, 32, 25) (5, 5)" in capsys.readouterr().out and scope["heat"].shape == (5, 5)


@pytest.mark.parametrize("make", [lambda: jea.create_model("ea_pct_cls_simple", attention="self", width=8),
                                  lambda: nn.Linear(3, 3)])
def test_a_model_without_external_attention(make):
    with pytest.raises(ConfigError, match="has no external attention to show"):
        jea.attention_maps(make(), random(1, 3, 40))
