"""Nearest neighbours in point clouds."""
from __future__ import annotations

import numpy as np

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, Support
from jea.ops.points.checks import check_clouds

SUPPORT = Support("knn", cpu=FLOAT, cuda=FLOAT)


def knn_reference(query, points, k: int):
    """knn in numpy."""
    query, points = query.numpy(), points.numpy()
    squares = ((query[:, :, None] - points[:, None]) ** 2).sum(-1)  # B M N
    return jt.array(np.argsort(squares, axis=-1, kind="stable")[..., :k].astype(np.int32))


def knn(query, points, k: int, *, impl: str = "auto"):
    """Indices of the k points nearest to each query, ascending by squared distance; of equals the first index.

    Distances are sums of squared differences: |a|^2 + |b|^2 - 2ab, as upstream has it, loses the digits of small ones.
    A point with a NaN comes after all others. No gradient.

    Args:
        query: (B, M, 3).
        points: (B, N, 3).
        k: neighbours, 1 to N; a query that is among the points is its own first neighbour.
        impl: "auto", "fused" or "ref".
    Returns:
        (B, M, k) int32.
    Raises:
        ValueError: shapes that do not agree, k outside 1 to N, or "fused" where there is no kernel.
    """
    check_clouds("knn", query=query, points=points)
    n = points.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"knn: k is {k}; the clouds have {n} points: expected 1 to {n}")
    if not kernels.use_fused(impl, SUPPORT, query, points):
        return knn_reference(query, points, k)
    return kernels.code((*query.shape[:2], k), "int32", [query, points], kernel="points/points", source="""
        jea::nearest_points(in0_p, in1_p, out0_p, in0_shape0, in0_shape1, in1_shape1, out0_shape2);""")
