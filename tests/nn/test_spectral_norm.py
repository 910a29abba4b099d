"""Spectral normalisation against float64 and PyTorch: value, power iteration, gradient, folding."""
import numpy as np
import pytest

from jea._jittor import jt
from jea.nn.fold import folded
from jea.nn.mode import evaluating, keeping_buffers
from jea.nn.spectral_norm import SNConv2d, SNEmbedding, SNLinear, orthogonal, spectral_norms


def filled(layer, seed=0):
    rng = np.random.default_rng(seed)
    for name, var in layer.state_dict().items():
        value = rng.standard_normal(var.shape)
        var.assign((value / np.linalg.norm(value) if name.endswith(("_u", "_v")) else value).astype(np.float32))
    return layer


def parts(layer):
    w = layer.weight_orig.numpy().astype(np.float64)
    return w.reshape(len(w), -1), layer.weight_u.numpy().astype(np.float64), layer.weight_v.numpy().astype(np.float64)


def unit(x):
    return x / np.linalg.norm(x)


def test_evaluation_takes_u_and_v_as_they_are():
    layer = filled(SNLinear(5, 3))
    w, u, v = parts(layer)
    x = np.random.default_rng(1).standard_normal((4, 5)).astype(np.float32)
    with evaluating(layer):
        y = layer(jt.array(x)).numpy()
    assert np.abs(y - (x @ (w / (u @ w @ v)).T + layer.bias.numpy())).max() < 1e-6 * np.abs(y).max()
    assert np.array_equal(layer.weight_u.numpy(), u.astype(np.float32))


def test_training_iterates_once_and_stores():
    layer = filled(SNConv2d(6, 4, 3, bias=False))
    w, u, v = parts(layer)
    v = unit(w.T @ u)
    u = unit(w @ v)
    wanted = w / (u @ w @ v)
    got = layer.normalised_weight().numpy().reshape(4, -1)
    assert np.abs(got - wanted).max() < 1e-6 * np.abs(wanted).max()
    assert np.abs(layer.weight_v.numpy() - v).max() < 1e-6 and np.abs(layer.weight_u.numpy() - u).max() < 1e-6
    assert spectral_norms(layer).item() == pytest.approx(u @ w @ v, rel=1e-6)
    for _ in range(300):
        layer.normalised_weight().sync()
    assert np.linalg.norm(layer.normalised_weight().numpy().reshape(4, -1), 2) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_gradient_equals_pytorchs(training):
    torch = pytest.importorskip("torch")
    layer = filled(SNConv2d(3, 8, 3))
    layer.is_train = training
    theirs = torch.nn.utils.spectral_norm(torch.nn.Conv2d(3, 8, 3, padding=1), eps=1e-6)
    theirs.load_state_dict({name: torch.from_numpy(var.numpy()) for name, var in layer.state_dict().items()})
    theirs.train(training)
    rng = np.random.default_rng(2)
    x, g = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 7, 5), (2, 8, 7, 5)))
    wanted = theirs(torch.from_numpy(x))
    (wanted * torch.from_numpy(g)).sum().backward()
    y = layer(jt.array(x))
    grads = jt.grad((y * jt.array(g)).sum(), [layer.weight_orig, layer.bias])
    assert np.abs(y.numpy() - wanted.detach().numpy()).max() < 2e-6 * wanted.abs().max().item()
    for got, parameter in zip(grads, (theirs.weight_orig, theirs.bias)):
        assert np.abs(got.numpy() - parameter.grad.numpy()).max() < 1e-5 * parameter.grad.abs().max().item()
    assert np.abs(layer.weight_u.numpy() - theirs.weight_u.numpy()).max() < 1e-6


def test_activations_give_the_same():
    from jea.nn import formats
    from jea.ops import can_block
    if not can_block(32):
        pytest.skip("there is no oneDNN here")
    layer, three, x = filled(SNConv2d(32, 16, 3)), filled(SNConv2d(32, 3, 3)), jt.randn(2, 32, 5, 6)
    layer.is_train = three.is_train = False
    blocked = formats.enter(x, 32).to("blocked")
    assert blocked.format.layout == layer(blocked).layout == "blocked" and three(blocked).layout == "nchw"
    for net in (layer, three):
        assert np.array_equal(formats.plain(net(blocked)).numpy(), net(x).numpy())


def test_embedding_chooses_and_mixes_rows():
    layer = filled(SNEmbedding(4, 6))
    w, u, v = parts(layer)
    w = w / (u @ w @ v)
    with evaluating(layer):
        y = layer(jt.array(np.array([[0, 0, 1, 0], [0.5, 0.5, 0, 0]], np.float32))).numpy()
    assert np.abs(y - np.stack([w[2], (w[0] + w[1]) / 2])).max() < 1e-6 * np.abs(w).max()


def test_folded_is_a_copy():
    layer = filled(SNLinear(5, 3))
    fast = folded(layer)
    assert set(fast.state_dict()) == {"weight", "bias"} and "weight_orig" in layer.state_dict()
    x = jt.randn(2, 5)
    with evaluating(layer):
        assert np.abs(fast(x).numpy() - layer(x).numpy()).max() < 1e-6


def test_buffers_are_kept_bit_for_bit():
    layer = filled(SNLinear(5, 3))
    before = {name: var.numpy() for name, var in layer.state_dict().items()}
    with keeping_buffers(layer):
        for _ in range(3):
            layer(jt.randn(2, 5)).sync()
        assert not np.array_equal(layer.weight_u.numpy(), before["weight_u"])
    assert all(np.array_equal(var.numpy(), before[name]) for name, var in layer.state_dict().items())
    with pytest.raises(KeyError), keeping_buffers(layer):
        layer(jt.randn(2, 5)).sync()
        raise KeyError
    assert np.array_equal(layer.weight_u.numpy(), before["weight_u"])


def test_nan_shows_in_the_norms():
    layer = filled(SNLinear(5, 3))
    weight = layer.weight_orig.numpy()
    weight[1, 2] = np.nan
    layer.weight_orig.assign(weight)
    layer(jt.randn(2, 5)).sync()
    assert np.isnan(spectral_norms(layer).item())


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (4, 2, 3, 3), (1, 5)])
def test_orthogonal(shape):
    jt.set_global_seed(3)
    a = orthogonal(shape).reshape(shape[0], -1).astype(np.float64)
    gram = a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a
    assert np.abs(gram - np.eye(len(gram))).max() < 1e-6
    signs = np.sign([orthogonal((4, 4))[0, 0] for _ in range(40)])  # uniform: LAPACK alone would prefer one sign
    assert 8 < (signs > 0).sum() < 32
