"""Matching of anchors or proposals with ground truth by IoU, by torchvision's and mmdetection's rules."""
from __future__ import annotations

import numpy as np

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, Support
from jea.ops.detection.nms import _array, _var

SUPPORT = Support("match_boxes", cpu=FLOAT, cuda=FLOAT)

BACKGROUND, BETWEEN = -1, -2
_RULES = {None: 0, "restore": 1, "overwrite": 2}


def iou_matrix(truths, boxes):
    """IoU (G, N) of boxes x1 y1 x2 y2, in their own type; 0 where both areas are 0. Numpy."""
    corner = np.maximum(truths[:, None, :2], boxes[None, :, :2])
    side = np.maximum(np.minimum(truths[:, None, 2:], boxes[None, :, 2:]) - corner, 0)
    inter = side[..., 0] * side[..., 1]
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (truths, boxes)]
    whole = areas[0][:, None] + areas[1][None] - inter
    return np.divide(inter, whole, out=np.zeros_like(inter), where=whole > 0)


def match_reference(quality, high: float, low: float, low_quality=None, least: float = 0.0):
    """match_boxes in numpy, from the whole matrix (G, N): (matches, largest quality)."""
    high, low, least = np.float32(high), np.float32(low), np.float32(least)
    best, first = quality.max(0), quality.argmax(0).astype(np.int32)
    matches = np.where(best >= high, first, np.where(best < low, BACKGROUND, BETWEEN)).astype(np.int32)
    most = quality.max(1)
    if low_quality == "restore":
        given = (quality == most[:, None]).any(0)
        matches[given] = first[given]
    elif low_quality == "overwrite":
        for truth in np.flatnonzero(most >= least):
            matches[quality[truth] == most[truth]] = truth
    return matches, best


def match_boxes(boxes, truths, *, high: float, low: float, low_quality=None, least: float = 0.0, quality=None,
                impl: str = "auto"):
    """Give each box the ground truth that it overlaps most, of equals the first, or none.

    A box whose largest IoU is at least `high` belongs to that truth; below `low` it is background, and else neither.
    `low_quality` then sees to it that truths without such a box get their best ones, all of equal IoU:

        "restore"    (torchvision) those boxes get the truth that they themselves overlap most
        "overwrite"  (mmdetection) they get the truth in question, where its best IoU is at least `least`; where several
                     truths claim a box, the last one

    The IoUs are made in chunks of boxes: the whole matrix never exists.

    Args:
        boxes: float32 (N, 4), x1 y1 x2 y2.
        truths: float32 (G, 4).
        quality: float32 (G, N) in place of the IoU, or None; boxes and truths then only tell N and G.
        impl: "auto", "fused" or "ref".
    Returns:
        numpy (matches int32 (N,), best float32 (N,)): the row of `truths`, -1 for background, -2 for neither; the
        largest IoU, 0 without truths. No gradient.
    Raises:
        ValueError: shapes that do not agree, an unknown rule, or "fused" where there is no kernel.
    """
    if low_quality not in _RULES:
        raise ValueError(f'match_boxes: low_quality is {low_quality!r}; expected None, "restore" or "overwrite"')
    boxes, truths = _var(boxes, np.float32), _var(truths, np.float32)
    if any(b.ndim != 2 or b.shape[1] != 4 for b in (boxes, truths)):
        raise ValueError(f"match_boxes: boxes are {tuple(boxes.shape)}, truths {tuple(truths.shape)}; expected (N, 4) "
                         "and (G, 4)")
    n, count = boxes.shape[0], truths.shape[0]
    if quality is not None and tuple(quality.shape) != (count, n):
        raise ValueError(f"match_boxes: quality is {tuple(quality.shape)}; expected ({count}, {n})")
    if n == 0 or count == 0:
        return np.full(n, BACKGROUND, np.int32), np.zeros(n, np.float32)
    if not kernels.use_fused(impl, SUPPORT, boxes, truths):
        matrix = iou_matrix(truths.numpy(), boxes.numpy()) if quality is None else _array(quality, np.float32)
        return match_reference(matrix, high, low, low_quality, least)
    numbers = {"high": high, "low": low, "rule": _RULES[low_quality], "least": least, "given": int(quality is not None)}
    with jt.no_grad():
        matches, best = kernels.code(
            [(n,), (n,)], ["int32", "float32"],
            [boxes, truths, boxes if quality is None else _var(quality, np.float32)],
            kernel="detection/boxes", workspace=count, data=numbers, source="""
            jea::match_boxes(in0_p, in1_p, data["given"] != 0 ? in2_p : nullptr, out0_p, out1_p, workspace, in0_shape0,
                             in1_shape0, {(float)data["high"], (float)data["low"], (int)data["rule"],
                                          (float)data["least"]});""")
        jt.sync([matches, best])
        return matches.numpy(), best.numpy()
