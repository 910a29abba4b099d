"""Channels-last convolution with packed weights, and the pooling beside it, against float64 and Jittor's own."""
import gc

import numpy as np
import pytest

from jea._jittor import jt, nn
from jea.ops import conv2d_nhwc, conv_nhwc_unavailable, kernels, max_pool_nhwc, pack_conv

needs_onednn = pytest.mark.skipif(bool(conv_nhwc_unavailable()), reason=f"conv2d_nhwc: {conv_nhwc_unavailable()}")


def expected(x, w, bias, stride, padding, dilation, residual=None, relu=False):
    """float64, x (B, H, W, I), w (O, I, kH, kW): a sum over the kernel's taps."""
    x = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    kernel_h, kernel_w = w.shape[2:]
    out_h = (x.shape[1] - dilation * (kernel_h - 1) - 1) // stride + 1
    out_w = (x.shape[2] - dilation * (kernel_w - 1) - 1) // stride + 1
    y = np.zeros((len(x), out_h, out_w, len(w))) + bias
    for r in range(kernel_h):
        for s in range(kernel_w):
            rows, columns = slice(r * dilation, None, stride), slice(s * dilation, None, stride)
            y += x[:, rows, columns][:, :out_h, :out_w] @ w[:, :, r, s].T.astype(np.float64)
    if residual is not None:
        y = y + residual
    return np.maximum(y, 0) if relu else y


def case(seed, b, h, w, i, o, k, stride, padding, dilation):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((b, h, w, i)).astype(np.float32)
    weight = (rng.standard_normal((o, i, k, k)) / np.sqrt(i * k * k)).astype(np.float32)
    return x, weight, rng.standard_normal(o).astype(np.float32), dict(stride=stride, padding=padding, dilation=dilation)


CASES = [  # b, h, w, in, out, kernel, stride, padding, dilation
    (1, 1, 1, 1, 1, 1, 1, 0, 1), (2, 9, 7, 3, 64, 3, 2, 1, 1), (1, 17, 17, 64, 64, 3, 1, 1, 1),
    (2, 13, 11, 32, 48, 3, 1, 2, 2), (1, 9, 9, 32, 16, 3, 1, 16, 16), (1, 33, 31, 64, 256, 1, 1, 0, 1),
    (2, 33, 30, 48, 96, 1, 2, 0, 1), (1, 5, 5, 21, 5, 3, 1, 1, 1), (1, 8, 9, 7, 10, 5, 3, 2, 1),
    (1, 6, 6, 512, 64, 1, 1, 0, 1),
]


@needs_onednn
@pytest.mark.parametrize("numbers", CASES, ids=str)
def test_output(numbers, close):
    x, weight, bias, geometry = case(0, *numbers)
    packed = pack_conv(jt.array(weight), jt.array(bias), size=x.shape[1:3], **geometry)
    close(conv2d_nhwc(jt.array(x), packed).numpy(), expected(x, weight, bias, **geometry), 2e-6)
    wanted = expected(x, weight, bias, relu=True, **geometry)
    close(conv2d_nhwc(jt.array(x), packed, relu=True).numpy(), wanted, 2e-6)
    residual = np.random.default_rng(1).standard_normal(wanted.shape).astype(np.float32)
    for relu in (False, True):
        wanted = expected(x, weight, bias, residual=residual, relu=relu, **geometry)
        var = jt.array(residual)
        close(conv2d_nhwc(jt.array(x), packed, relu=relu, residual=var).numpy(), wanted, 2e-6)
        assert np.array_equal(var.numpy(), residual), "the residual was overwritten"
        close(conv2d_nhwc(jt.array(x), packed, relu=relu, residual=var, reuse_residual=True).numpy(), wanted, 2e-6)


@needs_onednn
def test_residual_computed_in_the_same_graph(close):
    """The summand must be there before the convolution starts, also where its memory is taken over."""
    x, weight, bias, geometry = case(2, 1, 17, 17, 16, 16, 3, 1, 1, 1)
    packed = pack_conv(jt.array(weight), jt.array(bias), **geometry)
    for reuse in (False, True):
        var = jt.array(x)
        for _ in range(3):
            var = conv2d_nhwc(var * 2, packed, residual=var * 3 + 1, reuse_residual=reuse)
        wanted = x.astype(np.float64)
        for _ in range(3):
            wanted = expected(wanted * 2, weight, bias, residual=wanted * 3 + 1, **geometry)
        close(var.numpy(), wanted, 1e-5)


@needs_onednn
def test_scale_and_no_bias(close):
    x, weight, _, geometry = case(3, 1, 9, 9, 16, 24, 3, 1, 1, 1)
    scale = np.linspace(-1, 2, 24).astype(np.float32)
    packed = pack_conv(jt.array(weight), scale=jt.array(scale), **geometry)
    wanted = expected(x, weight * scale[:, None, None, None], 0, **geometry)
    close(conv2d_nhwc(jt.array(x), packed).numpy(), wanted, 2e-6)


@needs_onednn
def test_weights_packed_for_another_size(close):
    """oneDNN may want another layout for the size that comes (with AVX-512 it does, in the first case)."""
    for numbers, size in (((1, 129, 129, 256, 512, 1, 2, 0, 1), (65, 65)), ((2, 7, 40, 64, 96, 3, 1, 1, 1), (1, 1)),
                          ((1, 5, 4, 64, 256, 1, 1, 0, 1), (257, 257))):
        x, weight, bias, geometry = case(4, *numbers)
        packed = pack_conv(jt.array(weight), jt.array(bias), size=size, **geometry)
        close(conv2d_nhwc(jt.array(x), packed).numpy(), expected(x, weight, bias, **geometry), 2e-6)


@needs_onednn
def test_every_output_element_is_written(close):
    x, weight, bias, geometry = case(5, 2, 33, 31, 32, 21, 3, 1, 1, 1)
    packed = pack_conv(jt.array(weight), jt.array(bias), **geometry)
    wanted = expected(x, weight, bias, relu=True, **geometry)
    for _ in range(3):
        poison = [jt.full((2, 33, 31, 21), float("nan")) for _ in range(6)]
        jt.sync(poison)
        del poison
        close(conv2d_nhwc(jt.array(x), packed, relu=True).numpy(), wanted, 2e-6)


@needs_onednn
def test_inputs_that_are_views_and_nan():
    x, weight, bias, geometry = case(6, 1, 9, 8, 16, 16, 3, 1, 1, 1)
    packed = pack_conv(jt.array(weight).transpose(1, 0, 2, 3), jt.array(bias), **geometry)
    y = conv2d_nhwc(jt.array(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).transpose(0, 2, 3, 1), packed)
    assert np.abs(y.numpy() - expected(x, weight.transpose(1, 0, 2, 3), bias, **geometry)).max() < 1e-5
    x[0, 4, 4, 3] = np.nan
    y = conv2d_nhwc(jt.array(x), packed).numpy()
    assert np.isnan(y[0, 3:6, 3:6]).all() and np.isfinite(y[0, 6:]).all()


@needs_onednn
def test_packed_weights_are_freed_with_their_vars():
    weight = jt.zeros((256, 256, 3, 3))
    jt.sync_all(True)
    gc.collect()
    before = jt.liveness_info()["lived_vars"]
    packed = pack_conv(weight)
    assert jt.liveness_info()["lived_vars"] == before + 3  # weights, layout, bias
    del packed
    gc.collect()
    assert jt.liveness_info()["lived_vars"] == before


def test_unavailable_with_cuda_on(monkeypatch):
    monkeypatch.setattr(kernels, "onednn_include", lambda: None)
    assert "without oneDNN" in conv_nhwc_unavailable()
    with pytest.raises(ValueError, match="pack_conv: not possible here: Jittor runs without oneDNN"):
        pack_conv(jt.zeros((1, 1, 1, 1)))


@needs_onednn
def test_bad_arguments():
    weight = jt.zeros((8, 4, 3, 3))
    packed = pack_conv(weight)
    with pytest.raises(ValueError, match=r"float32 \(1, 5, 5, 3\); expected float32 \(B, H, W, 4\)"):
        conv2d_nhwc(jt.zeros((1, 5, 5, 3)), packed)
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 4\) is too small for a 3 x 3 kernel"):
        conv2d_nhwc(jt.zeros((1, 2, 2, 4)), packed)
    with pytest.raises(ValueError, match=r"residual is float32 \(1, 5, 5, 8\); expected float32 \(1, 3, 3, 8\)"):
        conv2d_nhwc(jt.zeros((1, 5, 5, 4)), packed, residual=jt.zeros((1, 5, 5, 8)))
    with pytest.raises(ValueError, match=r"weight is float32 \(8, 4, 3\); expected float32 \(O, I, kH, kW\)"):
        pack_conv(jt.zeros((8, 4, 3)))
    with pytest.raises(ValueError, match=r"bias has shape \(7,\); expected \(8,\)"):
        pack_conv(weight, jt.zeros((7,)))
    with pytest.raises(ValueError, match="stride 0, padding 0, dilation 1"):
        pack_conv(weight, stride=0)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 3, 5), (2, 9, 8, 7), (1, 17, 17, 64)], ids=str)
def test_max_pool(shape):
    x = np.random.default_rng(7).standard_normal(shape).astype(np.float32) - 5  # zeros of the padding would show
    padded = np.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)), constant_values=-np.inf)
    out_h, out_w = (shape[1] + 1) // 2, (shape[2] + 1) // 2
    wanted = np.max([padded[:, r:r + 2 * out_h:2, s:s + 2 * out_w:2] for r in range(3) for s in range(3)], axis=0)
    with jt.no_grad():
        y = max_pool_nhwc(jt.array(x), impl="fused").numpy()
    assert np.array_equal(y, wanted)
    if min(shape[1:3]) > 3:
        own = nn.Pool(3, stride=2, padding=1, op="maximum")(jt.array(x.transpose(0, 3, 1, 2).copy())).numpy()
        assert np.array_equal(y, own.transpose(0, 2, 3, 1))


def test_max_pool_bad_input():
    with pytest.raises(ValueError, match=r"max_pool_nhwc: got shape \(2, 3\); expected \(B, H, W, C\)"):
        max_pool_nhwc(jt.zeros((2, 3)))
