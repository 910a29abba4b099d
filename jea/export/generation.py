"""SAGAN's generator as an ONNX graph: noise (B, z_dim), label (B,) int64 -> image (B, 3, S, S) in [-1, 1]."""
from __future__ import annotations

import numpy as np

from jea.export.graph import Graph, scale_and_shift
from jea.nn.gan import EPSILON, GenBlock, SpectralExternalAttention


def inputs(model, size) -> dict:
    return {"noise": ("float32", ("batch", model.z_dim)), "label": ("int64", ("batch",))}


def build(g: Graph, model, noise: str, label: str) -> dict:
    y = g.node("OneHot", label, np.array(model.num_classes), np.array([0, 1], np.float32), axis=-1)
    h = g.reshape(_linear(g, noise, model.linear0), (-1, *model.bottom))
    for block, in model.blocks:
        h = _block(g, block, h, y) if isinstance(block, GenBlock) else _attention(g, block, h)
    scale, shift = (v.astype(np.float32).reshape(1, -1, 1, 1) for v in scale_and_shift(model.bn4))
    h = g.relu(g.add(g.mul(h, scale), shift))
    return {"image": g.node("Tanh", _conv(g, h, model.conv2d5))}


def _block(g: Graph, block, x, y):
    h = _conv(g, _upsample(g, g.relu(_conditional_norm(g, block.bn1, x, y))), block.conv2d1)
    h = _conv(g, g.relu(_conditional_norm(g, block.bn2, h, y)), block.conv2d2)
    return g.add(h, _upsample(g, _conv(g, x, block.conv2d0)))


def _conditional_norm(g: Graph, norm, x, y):
    """BatchNorm, then a gain and a bias that the class chooses: x scale(y) + shift(y)."""
    inverse = 1 / np.sqrt(norm.bn.running_var.numpy().astype(np.float64) + EPSILON)
    mean = norm.bn.running_mean.numpy()
    gain = g.add(_linear(g, y, norm.gain), np.float32(1))
    scale = g.mul(gain, inverse.astype(np.float32))
    shift = g.add(_linear(g, y, norm.bias), g.mul(scale, (-mean).astype(np.float32)))
    scale, shift = (g.reshape(value, (0, -1, 1, 1)) for value in (scale, shift))
    return g.add(g.mul(x, scale), shift)


def _upsample(g: Graph, x):
    return g.node("Resize", x, None, np.array([1, 1, 2, 2], np.float32), mode="nearest", nearest_mode="floor",
                  coordinate_transformation_mode="asymmetric")


def _attention(g: Graph, block, x):
    if isinstance(block, SpectralExternalAttention):
        logits = _conv(g, _conv(g, x, block.conv1x1_in), block.linear_0)
        attention = g.double_norm(g.reshape(logits, (0, 0, -1)), positions=2, memories=1)
        y = _conv(g, g.reshape(attention, g.shape(logits)), block.linear_1)
    else:
        theta = g.transpose(g.reshape(_conv(g, x, block.conv1x1_theta), (0, 0, -1)), (0, 2, 1))
        phi, values = (g.reshape(g.node("MaxPool", _conv(g, x, conv), kernel_shape=[2, 2], strides=[2, 2]), (0, 0, -1))
                       for conv in (block.conv1x1_phi, block.conv1x1_g))
        weights = g.transpose(g.softmax(g.node("MatMul", theta, phi), 2), (0, 2, 1))  # B N/4 N
        pixels = g.shape(x, 2, 4)
        product = g.node("MatMul", values, weights)
        y = g.reshape(product, g.concat([g.shape(product, 0, 2), pixels], 0))
    return g.add(x, g.mul(_conv(g, y, block.conv1x1_attn), block.sigma.numpy()))


def _weight(layer) -> np.ndarray:
    """The weight divided by its largest singular value, as the stored vectors of the power iteration have it."""
    weight = layer.weight_orig.numpy().astype(np.float64)
    sigma = layer.weight_u.numpy().astype(np.float64) @ weight.reshape(len(weight), -1) @ layer.weight_v.numpy()
    return (weight / sigma).astype(np.float32)


def _conv(g: Graph, x, layer):
    return g.conv(x, _weight(layer), None if layer.bias is None else layer.bias.numpy(), padding=layer.padding)


def _linear(g: Graph, x, layer):
    y = g.node("MatMul", x, np.ascontiguousarray(_weight(layer).T))
    return y if layer.bias is None else g.add(y, layer.bias.numpy())
