"""Farthest point sampling of point clouds (PCT, PointNet++)."""
from __future__ import annotations

import numpy as np

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, Support
from jea.ops.points.checks import check_clouds

SUPPORT = Support("farthest_point_sample", cpu=FLOAT, cuda=FLOAT)

NEAR_ZERO = np.float32(1e-3)  # kNearZero in points.h


def farthest_point_sample_reference(points, num_samples: int, *, skip_near_zero: bool = True):
    """farthest_point_sample in numpy."""
    points = points.numpy()
    rows = np.arange(len(points))
    nearest = np.full(points.shape[:2], np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = (points * points).sum(-1)
        if skip_near_zero:
            nearest[squares <= NEAR_ZERO] = -1
    nearest[~np.isfinite(squares)] = -1
    points = np.where(np.isfinite(squares)[..., None], points, 0)
    chosen = np.zeros((len(points), num_samples), np.int32)
    for j in range(1, num_samples):
        last = points[rows, chosen[:, j - 1]]
        nearest = np.minimum(nearest, ((points - last[:, None]) ** 2).sum(-1))
        chosen[:, j] = nearest.argmax(-1)
    return jt.array(chosen)


def farthest_point_sample(points, num_samples: int, *, skip_near_zero: bool = True, impl: str = "auto"):
    """Indices of points that are far from one another: the first is 0, each further one the point whose distance to the
    nearest of those chosen is greatest; of equals the first.

        i[0] = 0,   i[j] = argmax_n min_{l < j} |p[n] - p[i[l]]|^2

    Once every point is as near as a chosen one (duplicates), indices repeat. A point with NaN or infinity is never
    chosen, except for index 0. No gradient.

    Args:
        points: (B, N, 3).
        num_samples: m, 1 to N.
        skip_near_zero: never choose points with |p|^2 <= 1e-3, except for index 0: upstream's mark of empty points.
        impl: "auto", "fused" or "ref".
    Returns:
        (B, m) int32.
    Raises:
        ValueError: another shape, m outside 1 to N, or "fused" where there is no kernel.
    """
    check_clouds("farthest_point_sample", points=points)
    b, n, _ = points.shape
    if not 1 <= num_samples <= n:
        raise ValueError(f"farthest_point_sample: num_samples is {num_samples}; the clouds have {n} points: "
                         f"expected 1 to {n}")
    if not kernels.use_fused(impl, SUPPORT, points):
        return farthest_point_sample_reference(points, num_samples, skip_near_zero=skip_near_zero)
    return kernels.code((b, num_samples), "int32", [points], kernel="points/points", workspace=b * n,
                     data={"skip_near_zero": int(skip_near_zero)}, source="""
        jea::farthest_points(in0_p, out0_p, workspace, in0_shape0, in0_shape1, out0_shape1,
                             data["skip_near_zero"] != 0);""")
