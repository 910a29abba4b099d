"""Features at new points from the three nearest known ones (PointNet++'s feature propagation)."""
from __future__ import annotations

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, Support
from jea.ops.function import Function
from jea.ops.points.checks import check_clouds
from jea.ops.points.gather_points import gather_points_reference, scatter_workspace
from jea.ops.points.knn import knn_reference
from jea.ops.shapes.transpose import transpose

SUPPORT = Support("three_interpolate", cpu=FLOAT, cuda=FLOAT)

EPS = 1e-8  # kInterpolationEps in points.h


class _Interpolate(Function):
    def execute(self, features, index, weights):
        self.index, self.weights, self.shape = index, weights, tuple(features.shape)
        return kernels.code((*self.shape[:2], index.shape[1]), "float32", [features, index, weights],
                            kernel="points/points",
                         source="""
            jea::interpolate(in0_p, in1_p, in2_p, out0_p, in0_shape0, in0_shape1, in0_shape2, in1_shape1, in1_shape2);
            """)

    def grad(self, dy):
        return kernels.code(self.shape, "float32", [dy, self.index, self.weights], kernel="points/points",
                         workspace=scatter_workspace(self.index, self.shape[2]), source="""
            jea::interpolate_backward(in0_p, in1_p, in2_p, out0_p, workspace, in0_shape0, in0_shape1, out0_shape2,
                                      in1_shape1, in1_shape2);"""), None, None


def three_interpolate_reference(known_xyz, unknown_xyz, known_features):
    """three_interpolate composed of Jittor's own functions."""
    index = knn_reference(unknown_xyz, known_xyz, min(3, known_xyz.shape[1]))
    with jt.no_grad():
        near = gather_points_reference(transpose(known_xyz, (0, 2, 1)), index)  # B 3 n k
        weights = 1 / (((near - transpose(unknown_xyz, (0, 2, 1)).unsqueeze(-1)) ** 2).sum(1) + EPS)  # B n k
        weights = weights / weights.sum(-1, keepdims=True)
    return (gather_points_reference(known_features, index) * weights.unsqueeze(1)).sum(-1)


def three_interpolate(known_xyz, unknown_xyz, known_features, *, impl: str = "auto"):
    """Inverse-distance interpolation from the three nearest known points; with fewer, from all of them.

        y[b, c, i] = sum_j w[j] f[b, c, n_j] / sum_j w[j],   w[j] = 1 / (|u_i - p_{n_j}|^2 + 1e-8)

    The gradient is that of the features; the coordinates have none.

    Args:
        known_xyz: (B, m, 3).
        unknown_xyz: (B, n, 3).
        known_features: (B, C, m).
        impl: "auto", "fused" or "ref".
    Returns:
        (B, C, n).
    Raises:
        ValueError: shapes that do not agree, or "fused" where there is no kernel.
    """
    check_clouds("three_interpolate", known_xyz=known_xyz, unknown_xyz=unknown_xyz)
    b, m, _ = known_xyz.shape
    if known_features.ndim != 3 or (known_features.shape[0], known_features.shape[2]) != (b, m):
        raise ValueError(f"three_interpolate: known_features are {tuple(known_features.shape)}; expected ({b}, C, {m})")
    if not kernels.use_fused(impl, SUPPORT, known_xyz, unknown_xyz, known_features):
        return three_interpolate_reference(known_xyz, unknown_xyz, known_features)
    shape = (b, unknown_xyz.shape[1], min(3, m))
    with jt.no_grad():
        index, weights = kernels.code(
            [shape, shape], ["int32", "float32"], [unknown_xyz, known_xyz], kernel="points/points", source="""
            jea::interpolation_weights(in0_p, in1_p, out0_p, out1_p, in0_shape0, in0_shape1, in1_shape1, out0_shape2);
            """)
    return _Interpolate.apply(known_features, index, weights)
