"""EANet and JSeg's EANet as ONNX graphs: image (B, 3, H, W), normalised RGB -> logits (B, num_classes, H, W)."""
from __future__ import annotations

import numpy as np

from jea.export.graph import Graph, folded
from jea.models.eanet_jseg import JSegEANet


def inputs(model, size) -> dict:
    return {"image": ("float32", ("batch", 3, *(size or (513, 513))))}


def build(g: Graph, model, image: str) -> dict:
    feature = _backbone(g, model.backbone, image)
    if isinstance(model, JSegEANet):
        head = model.decode_head
        x = _conv(g, _jseg_attention(g, head.ea, feature), head.conv_seg)
    else:
        x = _conv_norm_relu(g, feature, model.fc0.conv, model.fc0.bn)
        x = _attention(g, model.linu, x)
        x = _conv_norm_relu(g, x, model.fc1[0].conv, model.fc1[0].bn)
        x = _conv(g, x, model.fc2)
    sizes = g.concat([g.shape(x, 0, 2), g.shape(image, 2, 4)], 0)
    return {"logits": g.node("Resize", x, None, None, sizes, mode="linear",
                             coordinate_transformation_mode="align_corners")}


def _backbone(g: Graph, net, x):
    stem = net.conv1
    for conv, norm in ((stem[0], stem[1]), (stem[3], stem[4]), (stem[6], net.bn1)):
        x = _conv_norm_relu(g, x, conv, norm)
    x = g.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in layer:
            y = _conv_norm_relu(g, x, block.conv1, block.bn1)
            y = _conv_norm_relu(g, y, block.conv2, block.bn2)
            y = _conv(g, y, block.conv3, block.bn3)
            shortcut = x if block.downsample is None else _conv(g, x, block.downsample[0], block.downsample[1])
            x = g.relu(g.add(y, shortcut))
    return x


def _conv(g: Graph, x, conv, norm=None):
    if norm is not None:
        weight, bias = folded(conv.weight, conv.bias, norm)
    else:
        weight, bias = conv.weight.numpy(), None if conv.bias is None else conv.bias.numpy()
    return g.conv(x, weight, bias, stride=conv.stride[0], padding=conv.padding[0], dilation=conv.dilation[0])


def _conv_norm_relu(g: Graph, x, conv, norm):
    return g.relu(_conv(g, x, conv, norm))


def _map(g: Graph, logits, eps: float = 1e-9):
    """double_norm of (B, S, H, W) over the positions, in that shape."""
    attention = g.double_norm(g.reshape(logits, (0, 0, -1)), positions=2, memories=1, eps=eps)
    return g.reshape(attention, g.shape(logits))


def _attention(g: Graph, block, x):
    """ExternalAttention; conv1 and linear_0 have nothing between them, nor have linear_1, conv2 and BatchNorm."""
    key = block.linear_0.weight.numpy().reshape(block.num_memories, -1).astype(np.float64)
    value = block.linear_1.weight.numpy().reshape(-1, block.num_memories).astype(np.float64)
    first = key @ block.conv1.weight.numpy()[:, :, 0, 0]
    attention = _map(g, g.conv(x, _pixelwise(first), (key @ block.conv1.bias.numpy()).astype(np.float32)), block.eps)
    weight, bias = folded(block.conv2[0].weight, None, block.conv2[1])
    return g.relu(g.add(g.conv(attention, _pixelwise(weight[:, :, 0, 0] @ value), bias), x))


def _jseg_attention(g: Graph, block, x):
    def step(layer, x):
        return g.relu(_conv(g, x, layer.conv))
    h = step(block.conv1, x)
    attention = _map(g, step(block.linear_0, h))
    return step(block.conv2, g.add(step(block.linear_1, attention), h))


def _pixelwise(matrix: np.ndarray) -> np.ndarray:
    return matrix[:, :, None, None].astype(np.float32)
