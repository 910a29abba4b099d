"""EAMLP and T2T-ViT as ONNX graphs: image (B, 3, S, S), normalised RGB -> logits (B, num_classes)."""
from __future__ import annotations

import numpy as np

from jea.export.graph import Graph
from jea.nn.external_attention import MultiHeadExternalAttention
from jea.nn.tokens import _SPLITS, ExternalTokens, PerformerTokens
from jea.nn.transformer import DenseBlock, GhostMlp, Transition


def inputs(model, size) -> dict:
    side = model.img_size
    return {"image": ("float32", ("batch", 3, side, side))}


def build(g: Graph, model, image: str) -> dict:
    x = _tokens(g, model.tokens_to_token, image, model.img_size)
    width = model.cls_token.shape[2]
    shape = g.concat([g.shape(x, 0, 1), np.array([1, width])], 0)
    x = g.concat([g.node("Expand", model.cls_token.numpy(), shape), x], 1)
    x = g.add(x, model.pos_embed.numpy())
    for block in model.blocks:
        x = _block(g, block, x)
    x = g.node("Gather", g.layer_norm(x, model.norm), np.array(0), axis=1)
    return {"logits": g.linear(x, model.head)}


# -- tokens -----------------------------------------------------------------------------------------------------------

def _tokens(g: Graph, module, x, side: int):
    channels = 3
    for stage, split in zip((module.attention1, module.attention2, None), _SPLITS):
        x = _soft_split(g, x, channels, **split)
        side = (side + 2 * split["padding"] - split["kernel_size"]) // split["stride"] + 1
        if stage is None:
            return g.linear(x, module.project)
        x = _token_transformer(g, stage, x)
        channels = stage.norm2.weight.shape[0]
        x = g.reshape(g.transpose(x, (0, 2, 1)), (0, 0, side, side))


def _soft_split(g: Graph, x, channels: int, *, kernel_size: int, stride: int, padding: int):
    """(B, C, H, W) -> (B, N, C k k): what a window holds, as a convolution that copies (one input channel a group)."""
    window = kernel_size ** 2
    weight = np.tile(np.eye(window, dtype=np.float32).reshape(window, 1, kernel_size, kernel_size), (channels, 1, 1, 1))
    y = g.conv(x, weight, stride=stride, padding=padding, groups=channels)
    return g.transpose(g.reshape(y, (0, 0, -1)), (0, 2, 1))


def _token_transformer(g: Graph, stage, x):
    x = g.layer_norm(x, stage.norm1)
    if isinstance(stage, PerformerTokens):
        x = _performer(g, stage, x)
    elif isinstance(stage, ExternalTokens):
        attn = stage.attn
        q = g.linear(x, attn.q_linear)
        attention = g.double_norm(g.linear(q, attn.linear_0), positions=1, memories=2)
        x = g.add(g.linear(g.linear(attention, attn.linear_1), attn.proj), q)
    else:
        attn = stage.attn
        q, k, v = _parts(g, g.linear(x, attn.qkv), 3)
        x = g.add(g.linear(_self_attention(g, q, k, v, 1, attn.scale), attn.proj), v)
    return g.add(_mlp(g, stage.mlp, g.layer_norm(x, stage.norm2)), x)


def _performer(g: Graph, stage, x):
    k, q, v = _parts(g, g.linear(x, stage.kqv), 3)

    def features(value):
        squares = g.node("ReduceSum", g.mul(value, value), np.array([2]), keepdims=1)
        product = g.node("MatMul", value, np.ascontiguousarray(stage.w.numpy().T))
        return g.mul(g.node("Exp", g.node("Sub", product, g.mul(squares, np.float32(0.5)))),
                     np.float32(stage.m ** -0.5))
    k, q = features(k), features(q)
    keys = g.transpose(k, (0, 2, 1))
    total = g.node("ReduceSum", k, np.array([1]), keepdims=1)
    denominator = g.node("ReduceSum", g.mul(q, total), np.array([2]), keepdims=1)
    y = g.node("MatMul", q, g.node("MatMul", keys, v))
    y = g.node("Div", y, g.add(denominator, np.float32(stage.epsilon)))
    return g.add(g.linear(y, stage.proj), v)


def _parts(g: Graph, x, count: int) -> tuple:
    return g.node("Split", x, outputs=count, axis=2)


# -- blocks -----------------------------------------------------------------------------------------------------------

def _block(g: Graph, block, x):
    if isinstance(block, Transition):
        return g.gelu(g.linear(x, block.linear))
    y = g.layer_norm(x, block.norm1)
    attend = _external if isinstance(block.attn, MultiHeadExternalAttention) else _self
    y = g.add(attend(g, block.attn, y), x)
    y = g.add(_mlp(g, block.mlp, g.layer_norm(y, block.norm2)), y)
    return g.concat([x, g.linear(y, block.dense_linear)], 2) if isinstance(block, DenseBlock) else y


def _external(g: Graph, attn, x):
    h = g.reshape(g.linear(x, attn.trans_dims), (0, 0, attn.num_heads, -1))
    attention = g.double_norm(g.linear(h, attn.linear_0), positions=1, memories=3)
    return g.linear(g.reshape(g.linear(attention, attn.linear_1), (0, 0, -1)), attn.proj)


def _self(g: Graph, attn, x):
    if attn.ghost:
        halves = [(g.linear(x, getattr(attn, name)), getattr(attn, f"cheap_operation_{name}")) for name in "qkv"]
        q, k, v = (g.concat([half, _scaled(g, cheap, half)], 2) for half, cheap in halves)
    else:
        q, k, v = _parts(g, g.linear(x, attn.qkv), 3)
    y = g.linear(_self_attention(g, q, k, v, attn.num_heads, attn.scale), attn.proj)
    if attn.se_layer is not None:
        mean = g.node("ReduceMean", y, axes=[1], keepdims=1)
        layers = attn.se_layer.fc
        y = g.mul(y, g.node("Sigmoid", g.linear(g.relu(g.linear(mean, layers[0])), layers[2])))
    return y


def _self_attention(g: Graph, q, k, v, heads: int, scale: float):
    q, k, v = (g.transpose(g.reshape(part, (0, 0, heads, -1)), (0, 2, 1, 3)) for part in (q, k, v))
    weights = g.softmax(g.mul(g.node("MatMul", q, g.transpose(k, (0, 1, 3, 2))), np.float32(scale)), 3)
    return g.reshape(g.transpose(g.node("MatMul", weights, v), (0, 2, 1, 3)), (0, 0, -1))


def _scaled(g: Graph, cheap, x):
    return g.mul(x, cheap.weight.numpy().reshape(1, 1, -1))


def _mlp(g: Graph, mlp, x):
    h = g.gelu(g.linear(x, mlp.fc1))
    if isinstance(mlp, GhostMlp):
        copies = [g.gelu(_scaled(g, cheap, h)) for cheap in (mlp.cheap_operation2, mlp.cheap_operation3)]
        h = g.concat([h, *copies], 2)
    return g.linear(h, mlp.fc2)
