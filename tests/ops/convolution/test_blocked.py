"""Blocked activations: convolution, BatchNorm and maximum against float64, output and every gradient."""
import itertools

import numpy as np
import pytest

import jea
from jea._jittor import jt, nn
from jea.nn import BatchNorm2d, Dropout2d, ExternalAttention, formats
from jea.nn.blocks import Conv
from jea.ops import (
    batch_norm,
    batch_norm_blocked,
    can_block,
    conv2d_blocked,
    from_blocked,
    kernels,
    max_pool_blocked,
    to_blocked,
)
from jea.ops.convolution.blocked import block_size, conv2d_from_blocked

pytestmark = pytest.mark.skipif(not can_block(16), reason="needs the CPU, oneDNN and JEA_OPS not ref")


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv64(x, w, bias, g, stride, padding, dilation):
    """y and, with g = dL/dy, the gradients of x, w and bias, in float64: sums over the kernel's taps."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    w = w.astype(np.float64)
    out_h, out_w = ((padded.shape[a] - dilation * (w.shape[a] - 1) - 1) // stride + 1 for a in (2, 3))
    y, dpadded, dw = np.zeros((len(x), len(w), out_h, out_w)), np.zeros_like(padded), np.zeros_like(w)
    g = np.zeros_like(y) if g is None else g.astype(np.float64)
    for r, s in itertools.product(range(w.shape[2]), range(w.shape[3])):
        taps = (slice(None), slice(None), slice(r * dilation, r * dilation + (out_h - 1) * stride + 1, stride),
                slice(s * dilation, s * dilation + (out_w - 1) * stride + 1, stride))
        y += np.einsum("bihw,oi->bohw", padded[taps], w[:, :, r, s])
        dpadded[taps] += np.einsum("bohw,oi->bihw", g, w[:, :, r, s])
        dw[:, :, r, s] = np.einsum("bohw,bihw->oi", g, padded[taps])
    dx = dpadded[:, :, padding:padding + x.shape[2], padding:padding + x.shape[3]]
    return y + (0 if bias is None else bias[:, None, None]), dx, dw, g.sum((0, 2, 3))


def test_layout_and_back():
    x = normal(0, 2, 48, 9, 31)
    blocked = to_blocked(jt.array(x))
    n = block_size()
    assert blocked.shape == [2, 48 // n, 9, 31, n]
    assert np.array_equal(blocked.numpy(), x.reshape(2, 48 // n, n, 9, 31).transpose(0, 1, 3, 4, 2))
    assert np.array_equal(from_blocked(blocked).numpy(), x)
    var, g = jt.array(x), normal(1, 2, 48, 9, 31)
    assert np.array_equal(jt.grad((from_blocked(to_blocked(var)) * jt.array(g)).sum(), var).numpy(), g)


@pytest.mark.parametrize("numbers", [  # batch, size, in, out, kernel, stride, padding, dilation, bias
    (1, (1, 1), 16, 16, 1, 1, 0, 1, True), (2, (19, 23), 32, 48, 3, 1, 1, 1, True),
    (2, (19, 23), 32, 48, 3, 2, 2, 2, False), (2, (18, 21), 3, 16, 3, 2, 1, 1, False),
    (1, (9, 9), 16, 16, 3, 1, 16, 16, False), (1, (33, 30), 48, 96, 1, 2, 0, 1, False),
    (1, (8, 9), 5, 32, 5, 3, 2, 1, True),
    # Shapes that oneDNN has fast kernels of in another layout only: forward, then the gradient of the weights.
    (2, (33, 35), 64, 32, 3, 1, 16, 16, True), (2, (17, 17), 64, 32, 3, 1, 16, 16, True),
    # Output channels that are not whole blocks
    (2, (11, 9), 32, 3, 3, 1, 1, 1, True), (2, (11, 9), 32, 21, 1, 1, 0, 1, False),
], ids=str)
def test_convolution_and_gradients(numbers, close):
    batch, size, i, o, kernel, stride, padding, dilation, with_bias = numbers
    x, w = normal(0, batch, i, *size), normal(1, o, i, kernel, kernel)
    bias = normal(2, o) if with_bias else None
    geometry = dict(stride=stride, padding=padding, dilation=dilation)
    inputs = [jt.array(v) for v in ((x, w, bias) if with_bias else (x, w))]
    source = inputs[0] if i < 16 else to_blocked(inputs[0])
    if can_block(o):
        y = from_blocked(conv2d_blocked(source, *inputs[1:], **geometry))
    else:
        y = conv2d_from_blocked(source, *inputs[1:], **geometry)
    g = normal(3, *y.shape)
    gradients = jt.grad((y * jt.array(g)).sum(), inputs)
    y64, *gradients64 = conv64(x, w, bias, g, stride, padding, dilation)
    close(y.numpy(), y64, 2e-6)
    terms = g[:, 0].size  # of size 1 and either sign: the sums' rounding errors are of the terms' scale
    for name, got, wanted in zip(("x", "weight", "bias"), gradients, gradients64):
        scale = max(np.abs(wanted).max(), 1 if name == "x" else terms ** 0.5)
        assert np.abs(got.numpy() - wanted).max() <= 2e-6 * scale, name


@pytest.mark.parametrize("size, i, o, kernel, stride, dilation", [((20, 24), 32, 48, 3, 1, 1), ((20, 28), 3, 32, 3, 2, 1),
                                                                  ((34, 36), 64, 32, 3, 1, 16)], ids=str)
@pytest.mark.parametrize("with_bias, of_residual, relu, scaled", [
    (True, "whole", True, True), (False, "whole", True, False), (True, "", True, True), (True, "half", False, False),
    (False, "half", True, True)])
def test_what_follows_a_convolution(size, i, o, kernel, stride, dilation, with_bias, of_residual, relu, scaled, close):
    """relu?(scale conv(x) + bias + residual?) in one call is what its parts give; also in another layout of oneDNN."""
    geometry = dict(stride=stride, padding=dilation * (kernel // 2), dilation=dilation)
    x, w, bias = (jt.array(v) for v in (normal(0, 2, i, *size), normal(1, o, i, kernel, kernel), normal(2, o)))
    scale = jt.array(normal(5, o))
    source = x if i < 16 else to_blocked(x)
    given = [source, w] + [bias] * with_bias
    b, groups, height, width, block = conv2d_blocked(*given, **geometry).shape
    shape = (height, width) if of_residual != "half" else (height // 2, width // 2)
    residual = jt.array(normal(4, b, groups, *shape, block))
    y = conv2d_blocked(*given, residual=residual if of_residual else None, relu=relu, scale=scale if scaled else None,
                       **geometry)
    wanted = conv2d_blocked(source, w * scale.reshape(-1, 1, 1, 1) if scaled else w, *given[2:], **geometry)
    if of_residual == "half":
        wanted = wanted + residual.reindex([b, groups, height, width, block], ["i0", "i1", "i2/2", "i3/2", "i4"])
    elif of_residual:
        wanted = wanted + residual
    wanted = nn.relu(wanted) if relu else wanted
    g = jt.array(normal(3, *y.shape))
    inputs = [x, w] + [bias] * with_bias + [residual] * bool(of_residual)
    results = [[v.numpy(), *(d.numpy() for d in jt.grad((v * g).sum(), inputs))] for v in (y, wanted)]
    for got, expected in zip(*results):
        close(got, expected, 3e-6)


@pytest.mark.parametrize("training, with_residual, relu", list(itertools.product((True, False), repeat=3)))
def test_batch_norm_equals_the_plain_one(training, with_residual, relu):
    """Which is checked against float64; also far from zero, and with a group in several pieces."""
    for shape, offset in (((2, 32, 9, 11), 100.0), ((1, 16, 1, 2), 0.0), ((3, 64, 65, 65), 0.0)):
        x, residual, g = normal(0, *shape) + np.float32(offset), normal(1, *shape), normal(2, *shape)
        w, b, mean, variance = (normal(seed, shape[1]) for seed in (3, 4, 5, 6))
        statistics = None if training else (jt.array(mean), jt.array(variance * variance + np.float32(0.1)))
        results = []
        for plain in (True, False):
            inputs = [jt.array(v) for v in ((x, w, b, residual) if with_residual else (x, w, b))]
            wrap = (lambda v: v) if plain else to_blocked
            y, *moments = (batch_norm if plain else batch_norm_blocked)(
                wrap(inputs[0]), *inputs[1:3], statistics=statistics, relu=relu,
                residual=wrap(inputs[3]) if with_residual else None)
            y = y if plain else from_blocked(y)
            results.append([y, *moments, *jt.grad((y * jt.array(g)).sum(), inputs)])
        for number, (wanted, got) in enumerate(zip(*results)):
            # Means of values of size 1 and `offset` may be near 0: the error's scale is the values'.
            scale = max(np.abs(wanted.numpy()).max(), 1)
            assert np.abs(got.numpy() - wanted.numpy()).max() <= 2e-6 * scale, f"{shape}, result {number}"


def test_batch_norm_hands_nan_on():
    x = np.ones((1, 16, 2, 2), np.float32)
    x[0, 3, 0, 1] = np.nan
    ones, zeros = jt.ones((16,)), jt.zeros((16,))
    y = batch_norm_blocked(to_blocked(jt.array(x)), ones, zeros, statistics=(zeros, ones), relu=True)[0]
    assert np.isnan(from_blocked(y).numpy()).sum() == 1


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (10, 11), (65, 64)])
def test_max_pool_and_gradient(size):
    """With ties: the gradient goes to the first of them."""
    x = np.round(normal(0, 2, 32, *size))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 2), (1, 2)), constant_values=-np.inf)
    out_h, out_w = (size[0] + 1) // 2, (size[1] + 1) // 2
    windows = np.stack([padded[:, :, r:r + 2 * out_h:2, s:s + 2 * out_w:2] for r in range(3) for s in range(3)], -1)
    g = normal(1, 2, 32, out_h, out_w)
    wanted = np.zeros_like(padded, dtype=np.float64)
    for place in np.ndindex(2, 32, out_h, out_w):
        r, s = divmod(int(windows[place].argmax()), 3)
        wanted[place[0], place[1], 2 * place[2] + r, 2 * place[3] + s] += g[place]
    var = jt.array(x)
    y = from_blocked(max_pool_blocked(to_blocked(var)))
    assert np.array_equal(y.numpy(), windows.max(-1))
    dx = jt.grad((y * jt.array(g)).sum(), var).numpy()
    assert np.abs(dx - wanted[:, :, 1:size[0] + 1, 1:size[1] + 1]).max() < 1e-6


def test_layers_give_the_same_in_either_layout(close):
    """Also where a count of channels forces the plain layout, and in the map and the gradients of attention."""
    jt.set_global_seed(0)
    x, g = jt.array(normal(0, 2, 32, 9, 7)), jt.array(normal(1, 2, 32, 9, 7))

    def blocked():
        activation = formats.enter(x, 32)
        assert activation.layout == "blocked"
        return activation
    conv = Conv(32, 21, 1)
    close(formats.plain(conv(blocked())).numpy(), conv(x).numpy(), 2e-6)
    for memories in (16, 20):
        attention = ExternalAttention(32, memories)
        parameters = [v for v in attention.parameters() if not v.is_stop_grad()]
        with formats.using("nchw"):
            plain, plain_map = attention(x, return_attention=True)
        wanted = jt.grad((plain * g).sum(), [x, *parameters])
        y, found_map = attention(blocked(), return_attention=True)
        assert y.layout == "blocked"
        y = formats.plain(y)
        close(y.numpy(), plain.numpy(), 5e-6)
        close(found_map.numpy(), plain_map.numpy(), 5e-6)
        for got, expected in zip(jt.grad((y * g).sum(), [x, *parameters]), wanted):
            # conv1.bias has no gradient but rounding: the softmax cancels it.
            assert np.abs(got.numpy() - expected.numpy()).max() < 1e-5 * max(np.abs(expected.numpy()).max(), 1)
    drop = Dropout2d(0.5)
    jt.set_global_seed(1)
    kept = drop(x).numpy()
    jt.set_global_seed(1)
    assert np.array_equal(formats.plain(drop(blocked())).numpy(), kept) and (kept == 0).mean() > 0.3


def test_the_network_runs_blocked_and_the_reference_does_not(monkeypatch):
    ran = []
    original = kernels.cpu_code
    monkeypatch.setattr(kernels, "cpu_code", lambda *a, **k: ran.append(k["kernel"]) or original(*a, **k))
    model = jea.create_model("eanet_tiny", num_classes=7)
    x = jt.array(normal(0, 1, 3, 33, 33))
    y = model(x)
    # stem, a block with its shortcut per stage, head
    assert ran.count("convolution/conv_blocked.h") == 3 + 4 * (3 + 1) + 7
    monkeypatch.setattr(kernels, "REFERENCES_ONLY", True)
    ran.clear()
    reference = model(x)
    assert ran == [] and y.shape == reference.shape == [1, 7, 33, 33]


@pytest.mark.parametrize("call", [
    lambda: conv2d_blocked(jt.zeros((1, 3, 4, 4, block_size())), jt.zeros((16, 16, 1, 1))),
    lambda: conv2d_blocked(jt.zeros((1, 3, 4, 4)), jt.zeros((5, 3, 1, 1))),
    lambda: conv2d_blocked(jt.zeros((1, 3, 4, 4)), jt.zeros((16, 3, 1, 1)), residual=jt.zeros((1, 16, 4, 4))),
    lambda: conv2d_blocked(jt.zeros((1, 3, 4, 4)), jt.zeros((16, 3, 5, 5))),
    lambda: to_blocked(jt.zeros((1, 5, 2, 2))),
    lambda: from_blocked(jt.zeros((1, 1, 2, 2, 5))),
    lambda: max_pool_blocked(jt.zeros((1, 16, 2, 2))),
    lambda: batch_norm_blocked(jt.zeros((1, 1, 2, 2, block_size())), jt.zeros((3,)), jt.zeros((3,))),
    lambda: BatchNorm2d(32)(jt.zeros((1, 1, 2, 2, block_size()))),
])
def test_refused(call):
    with pytest.raises(ValueError, match="expected|too small"):
        call()
