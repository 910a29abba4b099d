"""The attention modules against upstream's outputs, and their layouts."""
import numpy as np
import pytest

import jea
from jea._jittor import jt


@pytest.mark.usefixtures("device")
def test_upstream_block(reference, write_pth, close):
    ref = reference("external_attention_512")
    block = jea.ExternalAttention(512)
    jea.load_weights(block, write_pth("external_attention_512", wrap="net"))
    block.eval()
    x = ref.input("ea/2x512x17x13")
    y, attention = block(jt.array(x), return_attention=True)
    close(y.numpy(), ref.arrays["y"], 2e-5)
    assert attention.shape == [2, 64, 17 * 13]
    flat = x.reshape(2, 512, -1)
    close(block(jt.array(flat)).numpy(), ref.arrays["y"].reshape(flat.shape), 2e-5)
    last = np.ascontiguousarray(flat.transpose(0, 2, 1))
    close(block(jt.array(last)).numpy(), ref.arrays["y"].reshape(flat.shape).transpose(0, 2, 1), 2e-5)


@pytest.mark.usefixtures("device")
def test_multi_head(reference, write_pth, close):
    ref = reference("mha_ea_384_6")
    module = jea.MultiHeadExternalAttention(384, num_heads=6)
    jea.load_weights(module, write_pth("mha_ea_384_6"))
    assert sum(p.numel() for p in module.parameters()) == 1_189_888
    module.eval()
    y, attention = module(jt.array(ref.input("mha/2x50x384")), return_attention=True)
    close(y.numpy(), ref.arrays["y"], 2e-5)
    assert attention.shape == [2, 24, 50, 64]


@pytest.mark.usefixtures("device")
def test_xmu_variant_from_a_genuine_file(reference, fixtures, close):
    ref = reference("xmu_external_attention_512_8")
    module = jea.ExternalAttention(512, 8, projections=False, eps=0.0)
    jea.load_weights(module, fixtures / "xmu_external_attention_512_8.pth")
    close(module(jt.array(ref.input("xmu/2x49x512"))).numpy(), ref.arrays["y"], 2e-5)


@pytest.mark.parametrize("name", ["external_attention_32_8_net.pth", "external_attention_32_8_legacy.pth"])
def test_genuine_file_with_strides(fixtures, close, name):
    """A file that PyTorch wrote, with upstream's transposed strides, against the formula in float64."""
    block = jea.ExternalAttention(32, 8)
    jea.load_weights(block, fixtures / name)
    block.eval()
    w = {k: v.numpy().astype(np.float64) for k, v in block.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((2, 32, 5, 3))
    f = x.reshape(2, 32, -1)
    h = np.einsum("oc,bcn->bon", w["conv1.weight"][..., 0, 0], f) + w["conv1.bias"][:, None]
    a = np.einsum("sc,bcn->bsn", w["linear_0.weight"][..., 0], h)
    a = np.exp(a - a.max(-1, keepdims=True))
    a /= a.sum(-1, keepdims=True)
    a /= 1e-9 + a.sum(1, keepdims=True)
    y = np.einsum("os,bsn->bon", w["linear_1.weight"][..., 0], a)
    y = np.einsum("oc,bcn->bon", w["conv2.0.weight"][..., 0, 0], y)
    scale = w["conv2.1.weight"] / np.sqrt(w["conv2.1.running_var"] + 1e-5)
    y = (y - w["conv2.1.running_mean"][:, None]) * scale[:, None] + w["conv2.1.bias"][:, None]
    wanted = np.maximum(y + f, 0).reshape(x.shape)
    close(block(jt.array(x.astype(np.float32))).numpy(), wanted, 2e-5)


def test_ambiguous_and_wrong_shapes():
    block = jea.ExternalAttention(8, 4)
    with pytest.raises(ValueError, match=r"\(2, 8, 8\) can be \(B, C, N\) or \(B, N, C\); say layout"):
        block(jt.randn(2, 8, 8))
    assert jea.ExternalAttention(8, 4, layout="bnc")(jt.randn(2, 8, 8)).shape == [2, 8, 8]
    with pytest.raises(ValueError, match="got shape"):
        block(jt.randn(2, 7, 5))
    for shape in ((0, 8, 3, 3), (2, 8, 0, 3), (2, 8, 0)):
        with pytest.raises(ValueError, match="at least 1 along each axis"):
            block(jt.zeros(shape))
    with pytest.raises(ValueError, match="layout"):
        jea.ExternalAttention(8, layout="nchw")
    with pytest.raises(ValueError, match="not a positive multiple"):
        jea.MultiHeadExternalAttention(10, 3)


def test_gradients_reach_both_memories():
    block = jea.ExternalAttention(8, 4)
    x = jt.randn(2, 8, 6)
    loss = (block(x) * jt.randn(2, 8, 6)).sum()
    for grad in jt.grad(loss, [x, block.linear_0.weight, block.linear_1.weight, block.conv1.weight]):
        assert np.abs(grad.numpy()).max() > 0


def test_memories_start_equal_but_are_not_linked():
    """Values are copied: a lazy link would add linear_0's gradient to linear_1's in the first step."""
    jt.set_global_seed(0)
    attention = jea.ExternalAttention(8, 4, projections=False)
    key, value = attention.linear_0.weight, attention.linear_1.weight
    assert np.array_equal(key.numpy(), value.numpy().T)
    fresh = jea.ExternalAttention(8, 4, projections=False)
    x, g = jt.randn(2, 8, 9), jt.randn(2, 8, 9)
    first = jt.grad((fresh(x) * g).sum(), fresh.linear_1.weight).numpy()
    attention.linear_0.weight.assign(fresh.linear_0.weight.numpy())
    attention.linear_1.weight.assign(fresh.linear_1.weight.numpy())
    wanted = jt.grad((attention(x) * g).sum(), attention.linear_1.weight).numpy()
    assert np.abs(first - wanted).max() <= 1e-6 * np.abs(wanted).max()
