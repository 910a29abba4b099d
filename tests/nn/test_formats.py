"""Activation formats: every layout gives the same numbers, and what has no kernel is converted where it stands."""
import numpy as np
import pytest

import jea
from jea._jittor import jt, nn
from jea.nn import formats, precision
from jea.nn.formats import Activation, Format
from jea.ops import can_block, kernels

LAYOUTS = ["nhwc", pytest.param("blocked", marks=pytest.mark.skipif(not can_block(16), reason="no oneDNN"))]
NETWORKS = {
    "eanet": ("eanet_tiny", {"num_classes": 5, "dropout": 0.0, "auxiliary": True}),
    "jseg": ("eanet_jseg_resnet50", {"num_classes": 5, "dropout": 0.0, "layers": (1, 1, 1, 1), "width": 16,
                                     "head_channels": 32, "num_memories": 16}),
    "generator": ("ea_sagan_tiny", {}), "discriminator": ("ea_sagan_tiny", {}),
    "generator, self-attention": ("ea_sagan_tiny", {"attention": "self"}),
}


def normal(*shape, seed=1):
    return jt.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def network_of(kind):
    jt.set_global_seed(5)
    name, options = NETWORKS[kind]
    if kind == "jseg":
        from jea.models.eanet_jseg import JSegEANet
        return JSegEANet(**options)
    model = jea.create_model(name, **options)
    for part in kind.split(",")[:1]:
        model = getattr(model, part, model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for var in model.parameters():
        if var.shape == [1]:  # SAGAN's sigma, whose attention would not be seen
            var.assign(jt.array(np.float32([0.7])))
    return model


def outputs(kind, model):
    if kind.startswith("generator"):
        return model(normal(4, model.z_dim), np.int32([0, 1, 2, 3]))
    if kind == "discriminator":
        return model(normal(4, 3, model.img_size, model.img_size), np.int32([0, 1, 2, 3]))
    logits, auxiliary = model.with_auxiliary(normal(2, 3, 33, 41))
    return logits + 0.4 * auxiliary


def step(kind, model, state):
    """Outputs, all gradients, and the statistics after a training step."""
    for name, var in model.state_dict().items():
        var.assign(jt.array(state[name]))
    parameters = {name: var for name, var in model.named_parameters() if not var.is_stop_grad()}
    y = outputs(kind, model)
    gradients = jt.grad((y * normal(*y.shape, seed=2)).sum(), list(parameters.values()))
    buffers = [var for name, var in model.state_dict().items() if name not in parameters]
    return [value.numpy() for value in (y, *gradients, *buffers)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_training_is_the_same_in_every_layout(kind, layout, close):
    model = network_of(kind)
    state = {name: var.numpy().copy() for name, var in model.state_dict().items()}
    with formats.using("nchw"):
        wanted = step(kind, model, state)
    with formats.using(layout):
        got = step(kind, model, state)
    assert len(got) == len(wanted) > 20
    close(got[0], wanted[0], 1e-5)
    # Biases before a norm have no gradient but rounding; a ReLU that flips at 0 moves single values.
    largest = max(np.abs(value).max() for value in wanted[1:])
    for number, (ours, theirs) in enumerate(zip(got, wanted)):
        assert ours.shape == theirs.shape
        size = np.sqrt(np.mean(theirs.astype(np.float64) ** 2))
        error = np.sqrt(np.mean((ours - theirs).astype(np.float64) ** 2))
    assert error <= 5e-3 * max(size, 1e-2 * largest), (number, size, largest)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["eanet", "generator"])
def test_networks_really_run_in_the_layout(kind, layout):
    model = network_of(kind)
    inputs = (normal(1, 3, 33, 33),) if kind == "eanet" else (normal(1, model.z_dim), np.int32([0]))
    with formats.using(layout):
        steps = formats.way(model, *inputs)
    assert [kind for _, kind, what, _ in steps].count("enter") == 1
    convolutions = [(layer, what) for layer, kind, what, _ in steps if kind == "convolution"]
    # few output channels leave the blocks
    assert len(convolutions) > 5 and {what for _, what in convolutions[:-1]} == {f"{layout} float32"}
    norms = [what for _, kind, what, _ in steps if kind in ("batch_norm", "norm_by_sample")]
    assert norms and set(norms) == {f"{layout} float32"}
    assert all(layer for layer, kind, *_ in steps if kind == "convolution")
    assert "execute" not in vars(model)


def test_an_activation_knows_its_shape():
    x = Activation(normal(2, 16, 5, 7), "nchw", Format("nhwc", "float32"))
    for layout in ("nhwc", "blocked", "nchw") if can_block(16) else ("nhwc", "nchw"):
        y = x.to(layout)
        assert (y.shape, y.channels, y.size, y.dtype, y.layout) == ((2, 16, 5, 7), 16, (5, 7), "float32", layout)
        assert np.array_equal(formats.plain(y).numpy(), x.var.numpy())
    assert x.to("nchw") is x


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operations(layout, close):
    """Each operation in a layout against the same in nchw."""
    plain = Activation(normal(2, 32, 6, 8), "nchw", Format(layout, "float32"))
    x, factors, weight = plain.to(layout), normal(2, 32, seed=3), normal(2, 32, seed=4)
    statistics = (normal(32, seed=5), normal(32, seed=6) ** 2 + 0.5)
    for name, run in {
            "max_pool": formats.max_pool, "relu": formats.relu, "upsample": formats.upsample,
            "mean": lambda x: formats.pairs(x, "mean"), "max": lambda x: formats.pairs(x, "max"),
            "scale": lambda x: formats.scale_channels(x, factors), "double_norm": formats.double_norm,
            "resize": lambda x: formats.resize(x, (11, 5)),
            "concatenation": lambda x: formats.concatenation(x, plain),
            "sum": lambda x: x + plain, "times": lambda x: x * 3,
            "norm": lambda x: formats.batch_norm(x, statistics[0], statistics[1], residual=plain, relu=True,
                                                 eps=1e-5)[0],
            "norm_by_sample": lambda x: formats.norm_by_sample(x, factors, weight, statistics, relu=True,
                                                               eps=1e-5)}.items():
        got, wanted = run(x), run(plain)
        close(formats.plain(got).numpy(), formats.plain(wanted).numpy(), 1e-6, name)
        assert got.shape == wanted.shape, name
    close(formats.channel_sums(x).numpy(), formats.channel_sums(plain).numpy(), 1e-6)
    m_k, m_v = normal(16, 32, seed=7), normal(32, 16, seed=8)
    (y, attention), (wanted, wanted_attention) = (formats.between_memories(v, m_k, m_v, eps=1e-9, return_attention=True)
                                                  for v in (x, plain))
    close(formats.plain(y).numpy(), formats.plain(wanted).numpy(), 1e-5)
    close(attention.numpy(), wanted_attention.numpy(), 1e-5)


def test_dropout_drops_whole_channels_in_every_layout():
    layer = jea.nn.Dropout2d(0.5)
    ones = jt.ones((4, 32, 3, 5))
    for layout in ("nchw", "nhwc") + (("blocked",) if can_block(32) else ()):
        x = Activation(ones, "nchw", Format(layout, "float32")).to(layout)
        y = formats.plain(layer(x)).numpy()
        assert np.array_equal(y, np.broadcast_to(y[:, :, :1, :1], y.shape)), layout
        assert set(np.unique(y)) == {0.0, 2.0}, layout


def test_the_choice(monkeypatch):
    if not can_block(16):
        pytest.skip("Jittor runs without oneDNN")
    assert formats.chosen(16, 32).layout == "blocked" and formats.chosen(16, 33).layout == "nchw"
    assert "33" in formats.chosen(16, 33).reason
    with formats.inference("float32"):
        assert formats.chosen(33).layout == "nhwc"
    with precision.autocast("float16"):
        assert formats.chosen().dtype == "float16"
    with formats.using("nhwc"):
        assert formats.chosen(33)[:2] == ("nhwc", "float32")
    monkeypatch.setattr(kernels, "REFERENCES_ONLY", True)
    assert formats.chosen(16)[::2] == ("nchw", "JEA_OPS=ref")


def test_a_layer_takes_and_gives_vars():
    conv, x = jea.nn.ConvBNReLU(3, 16, kernel_size=3), normal(1, 3, 8, 8)
    assert isinstance(conv(x), jt.Var)
    entered = conv(formats.enter(x, 16))
    assert isinstance(entered, Activation) and isinstance(nn.Sequential(conv)(x), jt.Var)


def test_the_way_of_a_config(capsys):
    from jea.commands import info
    assert info.main(["--formats", "segmentation_eanet_tiny_shapes"]) == 0
    said = capsys.readouterr().out
    training, inference, half = said.split("inference")
    assert training.startswith("training:") and "1 max_pool" in training and half.startswith(", bfloat16:")
    if can_block(16):
        assert "enters blocked float32: oneDNN, with gradients" in training and "converts blocked -> nchw" in training
        assert "enters nhwc float32: oneDNN with packed weights" in inference and "nhwc float32" in inference
    assert info.main(["--formats", "point_classification_ea_pct_tiny_solids"]) == 0
    assert "in one layout" in capsys.readouterr().out
