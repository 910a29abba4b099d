"""Non-maximum suppression, torchvision's rule: stable, per group, strict threshold."""
from __future__ import annotations

import numpy as np

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, Support

SUPPORT = Support("nms", cpu=FLOAT, cuda=FLOAT)

_SCRATCH = 257  # beside a number per box, in boxes.cuh


def nms_reference(boxes, scores, groups, threshold: float):
    """nms in numpy: indices (K,)."""
    order = np.argsort(-scores, kind="stable")
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    gone = np.zeros(len(boxes), bool)
    for place, i in enumerate(order):
        if gone[i]:
            continue
        kept.append(i)
        rest = order[place + 1:]
        rest = rest[(groups[rest] == groups[i]) & ~gone[rest]]
        corner = np.maximum(boxes[i, :2], boxes[rest, :2])
        side = np.maximum(np.minimum(boxes[i, 2:], boxes[rest, 2:]) - corner, 0)
        inter = side[:, 0] * side[:, 1]
        whole = area[i] + area[rest] - inter
        gone[rest[np.divide(inter, whole, out=np.zeros_like(inter), where=whole > 0) > np.float32(threshold)]] = True
    return np.array(kept, np.int32)


def nms(boxes, scores, groups=None, *, threshold: float, impl: str = "auto"):
    """Greedily keep the best boxes: one is dropped where its IoU with a better one of its group is above the threshold.

        IoU = inter / (area_a + area_b - inter),   areas (x2 - x1)(y2 - y1), all in float32

    Of equal scores the lower index is better. jt.nms is another operator: it adds a pixel to widths and heights.

    Args:
        boxes: float32 (N, 4), x1 y1 x2 y2.
        scores: float32 (N,).
        groups: int32 (N,): classes or levels that do not see each other; None: all boxes are one group.
        threshold: 0 to 1.
        impl: "auto", "fused" or "ref".
    Returns:
        numpy int32 (K,): the indices of the boxes that stay, by falling score. No gradient.
    Raises:
        ValueError: shapes that do not agree, or "fused" where there is no kernel.
    """
    boxes, scores = _var(boxes, np.float32), _var(scores, np.float32)
    n = boxes.shape[0]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or tuple(scores.shape) != (n,):
        raise ValueError(f"nms: boxes are {tuple(boxes.shape)}, scores {tuple(scores.shape)}; expected (N, 4) and (N,)")
    if groups is not None and tuple(groups.shape) != (n,):
        raise ValueError(f"nms: groups are {tuple(groups.shape)}; expected ({n},)")
    if not 0 <= threshold <= 1:
        raise ValueError(f"nms: threshold is {threshold}; expected 0 to 1")
    if n == 0:
        return np.zeros(0, np.int32)
    groups = np.zeros(n, np.int32) if groups is None else groups
    threshold = _largest_float32(threshold)
    if not kernels.use_fused(impl, SUPPORT, boxes, scores):
        return nms_reference(np.asarray(boxes.numpy()), np.asarray(scores.numpy()), _array(groups, np.int32), threshold)
    with jt.no_grad():
        kept = kernels.code((n,), "int32", [boxes, scores, _var(groups, np.int32)], kernel="detection/boxes",
                            workspace=n + _SCRATCH, data={"threshold": float(threshold)}, source="""
            jea::nms(in0_p, in1_p, in2_p, out0_p, workspace, in0_shape0, (float)data["threshold"]);""").numpy()
    return kept[kept >= 0]


def _largest_float32(value: float) -> float:
    """The largest float32 that is not above `value`: a float32 is above both or above none."""
    single = np.float32(value)
    return float(single if single <= value else np.nextafter(single, np.float32(0)))


def _array(values, dtype):
    return np.asarray(values.numpy() if isinstance(values, jt.Var) else values, dtype)


def _var(values, dtype):
    """A Var as it is; an array as a Var, for an empty one (which Jittor has not) the array."""
    if isinstance(values, jt.Var):
        return values
    array = np.ascontiguousarray(values, dtype)
    return jt.array(array) if array.size else array
