"""Features of points by index, with gradient (PointNet++'s gather_operation and grouping_operation)."""
from __future__ import annotations

import math

from jea.ops import kernels
from jea.ops.common.declared import FLOAT, Support
from jea.ops.function import Function

SUPPORT = Support("gather_points", cpu=FLOAT, cuda=FLOAT)


class _Gather(Function):
    """features (B, C, N), index (B, G, K), centres (B, C, G) or None -> (B, C, G, K)."""

    def execute(self, features, index, centres):
        self.index, self.shape, self.centred = index, tuple(features.shape), centres is not None
        b, c, _ = self.shape
        return kernels.code(
            (b, c, *index.shape[1:]), "float32", [features, index, features if centres is None else centres],
            kernel="points/points", data={"centred": int(self.centred)}, source="""
            jea::gather(in0_p, in1_p, data["centred"] != 0 ? in2_p : nullptr, out0_p, in0_shape0, in0_shape1,
                        in0_shape2, in1_shape1, in1_shape2);""")

    def grad(self, dy):
        shapes = [self.shape] + ([dy.shape[:3]] if self.centred else [])
        gradients = kernels.code(
            shapes, ["float32"] * len(shapes), [dy, self.index], kernel="points/points",
            workspace=scatter_workspace(self.index, self.shape[2]), source=f"""
            jea::gather_backward(in0_p, in1_p, out0_p, {'out1_p' if self.centred else 'nullptr'}, workspace, in0_shape0,
                                 in0_shape1, out0_shape2, in1_shape1, in1_shape2);""")
        return gradients[0], None, gradients[1] if self.centred else None


def scatter_workspace(index, n: int) -> int:
    """Scratch memory for the gradient of an index (B, ...) into n points: the places of each, see points.cuh."""
    return 2 * index.shape[0] * (n + 1) + index.numel()


def gather_points_reference(features, index, centres=None):
    """gather_points composed of Jittor's own functions, for index (B, G, K)."""
    n, values = features.shape[2], index.numpy()
    bad = values[(values < 0) | (values >= n)]
    if bad.size:
        raise RuntimeError(f"gather_points: index {bad[0]} is not one of the {n} points (0 to {n - 1})")
    y = features.reindex([*features.shape[:2], *index.shape[1:]], ["i0", "i1", "@e0(i0, i2, i3)"], extras=[index])
    return y if centres is None else y + centres.unsqueeze(-1)


def gather_points(features, index, *, centres=None, impl: str = "auto"):
    """y[b, c, i, ...] = features[b, c, index[b, i, ...]] + centres?[b, c, i].

    The gradients are sums in a fixed order, so that equal calls give equal bits:

        dL/dfeatures[b, c, n] = sum over the places with index n of dL/dy
        dL/dcentres[b, c, i] = sum_j dL/dy[b, c, i, j]

    Args:
        features: float (B, C, N).
        index: int32 (B, M) or (B, M, K), 0 to N - 1.
        centres: (B, C, M), added to all of a group, or None.
        impl: "auto", "fused" or "ref".
    Returns:
        (B, C, M) or (B, C, M, K).
    Raises:
        ValueError: shapes or dtypes that do not agree, or "fused" where there is no kernel.
        RuntimeError: an index outside 0 to N - 1, when the result is computed; on CUDA the result is NaN there instead.
    """
    shape, at = tuple(features.shape), tuple(index.shape)
    if len(shape) != 3 or len(at) not in (2, 3) or shape[0] != at[0]:
        raise ValueError(f"gather_points: features are {shape} and index {at}; expected (B, C, N) and (B, M) or "
                         "(B, M, K)")
    if index.dtype != "int32":
        raise ValueError(f"gather_points: index is {index.dtype}; expected int32")
    if centres is not None and tuple(centres.shape) != (*shape[:2], at[1]):
        raise ValueError(f"gather_points: centres are {tuple(centres.shape)}; expected {(*shape[:2], at[1])}")
    y_shape, index = (*shape[:2], *at[1:]), index.reshape(at[0], at[1], math.prod(at[2:]))
    if kernels.use_fused(impl, SUPPORT, features, *(() if centres is None else (centres,))):
        return _Gather.apply(features, index, centres).reshape(y_shape)
    return gather_points_reference(features, index, centres).reshape(y_shape)
