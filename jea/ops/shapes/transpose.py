"""Axes in another order. Jittor's own transpose runs on the host where CUDA is on and the last axis moves."""
from __future__ import annotations

import math

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOATS, Support
from jea.ops.function import Function

OTHER_AXES = 4  # that the kernel can walk over, beside the two of its tiles
SUPPORT = Support("transpose", cuda=FLOATS + ("int32", "float64", "int64"))

_SIZES = """
    const auto number = [&](const char* name) { return (long)data[name]; };
    const jea::Transpose sizes{number("rows"), number("columns"), number("row_step"), number("column_step"), {
        {number("length0"), number("in0"), number("out0")}, {number("length1"), number("in1"), number("out1")},
        {number("length2"), number("in2"), number("out2")}, {number("length3"), number("in3"), number("out3")}}};
"""


class _Transpose(Function):
    """x has the elements of `shape`, the result is flat."""

    def execute(self, x, shape, axes):
        self.shape = x.shape
        self.arguments = tuple(shape[axis] for axis in axes), tuple(axes.index(i) for i in range(len(axes)))
        return kernels.cuda_code((math.prod(shape),), x.dtype, [x], kernel="shapes/transpose.cuh",
                                 data=geometry(shape, axes), source=_SIZES + "jea::transpose(sizes, in0_p, out0_p);")

    def grad(self, dy):
        return _Transpose.apply(dy, *self.arguments).reshape(self.shape), None, None


def merged(shape, axes) -> tuple:
    """The same permutation with as few axes as it can be said with: of length 1 none, neighbours that stay so as
    one."""
    axes = [axis for axis in axes if shape[axis] != 1]
    groups = []
    for axis in axes:
        if groups and all(shape[i] == 1 for i in range(groups[-1][-1] + 1, axis)) and axis > groups[-1][-1]:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    order = sorted(groups)
    return tuple(math.prod(shape[i] for i in group) for group in order), tuple(order.index(group) for group in groups)


def geometry(shape, axes) -> dict:
    """The numbers of the kernel's `Transpose`, for axes of which the last moves."""
    def steps(lengths):
        return [math.prod(lengths[i + 1:]) for i in range(len(lengths))]
    into = steps(shape)
    out = dict(zip(axes, steps([shape[axis] for axis in axes])))
    row, column = axes[-1], len(shape) - 1
    numbers = {"rows": shape[row], "columns": shape[column], "row_step": into[row], "column_step": out[column]}
    others = [axis for axis in range(len(shape)) if axis not in (row, column)]
    for i in range(OTHER_AXES):
        given = i < len(others)
        numbers.update({f"length{i}": shape[others[i]] if given else 1, f"in{i}": into[others[i]] if given else 0,
                        f"out{i}": out[others[i]] if given else 0})
    return numbers


def transpose(x, axes, *, impl: str = "auto"):
    """Put the axes of x in another order: y.shape[i] = x.shape[axes[i]]. The gradient is the order reversed.

    On the CPU, and where the last axis stays the last, this is Jittor's own. On CUDA Jittor has no kernel for the rest
    and copies to the host and back, so that a tile in shared memory does it here.

    Args:
        x: a Var of any type and rank.
        axes: all of 0 ... x.ndim - 1 in the wanted order, negative ones counted from the end.
        impl: "auto", "fused" or "ref".
    Raises:
        ValueError: axes that are no permutation, or "fused" where there is no kernel.
    """
    shape = tuple(x.shape)
    order = tuple(axis + len(shape) if axis < 0 else axis for axis in axes)
    if sorted(order) != list(range(len(shape))):
        raise ValueError(f"transpose: axes are {tuple(axes)}; expected each of the {len(shape)} axes of {shape} once")
    lengths, short = merged(shape, order)
    wanted = tuple(shape[axis] for axis in order)
    if short == tuple(range(len(short))):
        return x.reshape(wanted)
    moves_last = short[-1] != len(short) - 1
    unless = ("the last axis stays, and Jittor's own is on the GPU too" if not moves_last
              else f"it takes up to {OTHER_AXES + 2} axes that move" if len(short) > OTHER_AXES + 2 else "")
    if kernels.use_fused(impl, SUPPORT, x, unless=unless):
        return _Transpose.apply(x, lengths, short).reshape(wanted)
    if jt.flags.use_cuda and not moves_last:
        return jt.transpose(x.reshape(lengths), short).reshape(wanted)  # axes of length 1 hide that the last one stays
    return jt.transpose(x, order)
