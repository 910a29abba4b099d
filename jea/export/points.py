"""PCT and EA-PCT as ONNX graphs: points (B, 3, N) -> logits (B, num_classes), or (B, num_classes, N) with category (B,
16)."""
from __future__ import annotations

import numpy as np

from jea.export.graph import Graph, folded
from jea.models.ea_point import PCTClassifier, PCTPartSegmenter
from jea.ops.points.farthest_point import NEAR_ZERO


def inputs(model, size) -> dict:
    points = {"points": ("float32", ("batch", 3, size[0] if size else 1024))}
    if isinstance(model, PCTPartSegmenter):
        points["category"] = ("float32", ("batch", model.num_categories))
    return points


def build(g: Graph, model, points: str, category: str | None = None) -> dict:
    x = points
    for conv, norm in ((model.conv1, model.bn1), (model.conv2, model.bn2)):
        x = g.relu(_conv(g, x, conv, norm))
    if isinstance(model, PCTPartSegmenter):
        return {"logits": _parts(g, model, _attend(g, model, x), category)}
    if isinstance(model, PCTClassifier):
        xyz = g.transpose(points, (0, 2, 1))  # B N 3
        for stage, samples in enumerate(model.samples):
            chosen = farthest_points(g, xyz, samples)
            sampled = _gathered(g, xyz, chosen)
            near = _nearest(g, sampled, xyz, model.neighbours)
            x = _aggregate(g, getattr(model, f"gather_local_{stage}"), x, chosen, near)
            xyz = sampled
        last = model.pt_last
        y, position = g.relu(_conv(g, x, last.conv1, last.bn1)), None
        if last.position == "none":
            y = g.relu(_conv(g, y, last.conv2, last.bn2))
        else:
            position = _conv(g, g.transpose(xyz, (0, 2, 1)), last.conv_pos)
        x = g.concat([_attend(g, last, y, position), x], 1)
    else:
        x = _attend(g, model, x)
    x = g.node("ReduceMax", _leaky(g, _conv(g, x, *model.conv_fuse), 0.2), axes=[2], keepdims=0)
    for layer, norm in ((model.linear1, model.bn6), (model.linear2, model.bn7)):
        weight, bias = folded(layer.weight, layer.bias, norm)
        x = _leaky(g, g.add(g.node("MatMul", x, np.ascontiguousarray(weight.T)), bias), model.head_slope)
    return {"logits": g.linear(x, model.linear3)}


def _parts(g: Graph, model, x, category):
    x = _leaky(g, _conv(g, x, *model.conv_fuse), 0.2)  # B C N
    label = g.node("Unsqueeze", category, np.array([2]))
    label = _leaky(g, _conv(g, label, *model.label_conv), 0.2)
    whole = g.concat([g.node("ReduceMax", x, axes=[2], keepdims=1), g.node("ReduceMean", x, axes=[2], keepdims=1),
                      label], 1)
    weight, bias = folded(model.convs1.weight, model.convs1.bias, model.bns1)
    channels = model.conv_fuse[1].weight.shape[0]
    x = g.relu(g.add(g.conv(x, weight[:, :channels]), g.conv(whole, weight[:, channels:], bias)))
    return _conv(g, g.relu(_conv(g, x, model.convs2, model.bns2)), model.convs3)


def _attend(g: Graph, model, x, position=None):
    outputs = []
    for number in range(1, model.layers + 1):
        x = _offset_attention(g, getattr(model, f"sa{number}"), x if position is None else g.add(x, position))
        outputs.append(x)
    return g.concat(outputs, 1)


def _offset_attention(g: Graph, layer, x):
    if layer.attention == "external":
        attention = g.double_norm(_conv(g, x, layer.linear_0), positions=2, memories=1)
        r = _conv(g, attention, layer.linear_1)
    else:
        keys, values = _conv(g, x, layer.k_conv), _conv(g, x, layer.v_conv)
        energy = g.node("MatMul", g.transpose(keys, (0, 2, 1)), keys)
        r = g.node("MatMul", values, g.double_norm(energy, positions=2, memories=1))
    return g.add(x, g.relu(_conv(g, g.node("Sub", x, r), layer.trans_conv, layer.after_norm)))


def _aggregate(g: Graph, layer, features, chosen, near):
    """(B, C, N), (B, M), (B, M, K) -> (B, C', M): W [f - c, c] = W_1 f + (W_2 - W_1) c, then the maximum of each
    group."""
    weight, bias = folded(layer.conv1.weight, None, layer.bn1)
    half = weight.shape[1] // 2
    features = g.transpose(features, (0, 2, 1))  # B N C
    own, difference = weight[:, half:, 0] - weight[:, :half, 0], weight[:, :half, 0]
    centres = g.add(g.node("MatMul", _gathered(g, features, chosen), np.ascontiguousarray(own.T)), bias)
    x = _gathered(g, g.node("MatMul", features, np.ascontiguousarray(difference.T)), near)  # B M K C
    x = g.relu(g.add(x, g.node("Unsqueeze", centres, np.array([2]))))
    weight, bias = folded(layer.conv2.weight, None, layer.bn2)
    x = g.relu(g.add(g.node("MatMul", x, np.ascontiguousarray(weight[:, :, 0].T)), bias))
    return g.transpose(g.node("ReduceMax", x, axes=[2], keepdims=0), (0, 2, 1))


def _conv(g: Graph, x, conv, norm=None):
    if norm is not None:
        return g.conv(x, *folded(conv.weight, conv.bias, norm))
    return g.conv(x, conv.weight.numpy(), None if conv.bias is None else conv.bias.numpy())


def _leaky(g: Graph, x, slope: float):
    return g.node("LeakyRelu", x, alpha=float(slope)) if slope else g.relu(x)


def _gathered(g: Graph, x, index):
    """Rows of each cloud: (B, N, C), (B, ...) -> (B, ..., C)."""
    return g.node("GatherND", x, g.node("Unsqueeze", index, np.array([-1])), batch_dims=1)


def _squares(g: Graph, difference):
    """x^2 + y^2 + z^2 over the last axis, in this order."""
    squares = g.mul(difference, difference)
    x, y, z = (g.node("Gather", squares, np.array(k), axis=-1) for k in range(3))
    return g.add(g.add(x, y), z)


def _nearest(g: Graph, query, points, count: int):
    """The nearest points of each query, ascending; of equals the first: (B, M, 3), (B, N, 3) -> (B, M, K)."""
    difference = g.node("Sub", g.node("Unsqueeze", query, np.array([2])), g.node("Unsqueeze", points, np.array([1])))
    return g.node("TopK", _squares(g, difference), np.array([count]), outputs=2, axis=-1, largest=0, sorted=1)[1]


def farthest_points(g: Graph, points, count: int):
    """jea.ops.farthest_point_sample as a Loop: (B, N, 3) -> (B, count)."""
    from onnx import TensorProto, helper
    far = np.float32(3.4e38)
    squares = _squares(g, points)
    nearest = g.node("Where", g.node("LessOrEqual", squares, NEAR_ZERO), np.float32(-1), far)
    first = g.node("ConstantOfShape", g.shape(points, 0, 1),
                   value=helper.make_tensor("zero", TensorProto.INT64, [1], [0]))
    body = Graph(outer=g)
    scope = f"farthest_{len(g.nodes)}"
    names = [f"{scope}_{name}" for name in ("step", "go", "nearest", "last")]
    last = body.node("Unsqueeze", _gathered(body, points, names[3]), np.array([1]))  # B 1 3
    now = body.node("Min", names[2], _squares(body, body.node("Sub", points, last)))
    chosen = body.node("ArgMax", now, axis=1, keepdims=0)
    go, again = body.node("Identity", names[1]), body.node("Identity", chosen)
    kinds = (TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT, TensorProto.INT64)
    shapes = ([], [], [None, None], [None])
    graph = helper.make_graph(
        body.nodes, scope,
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in zip(names, kinds, shapes)],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in zip(
            (go, now, chosen, again), (*kinds[1:], TensorProto.INT64), ([], [None, None], [None], [None]))])
    _, _, others = g.node("Loop", np.array(count - 1), None, nearest, first, outputs=3, body=graph)  # count - 1, B
    return g.concat([g.node("Unsqueeze", first, np.array([1])), g.transpose(others, (1, 0))], 1)
