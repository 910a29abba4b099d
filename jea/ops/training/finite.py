"""What decides on the device whether a step counts: its losses and the norm of its gradients.

`control` is a float32 Var of two numbers that the updates of updates.py take: whether anything may change (0: nothing),
and the factor of the gradients. The references look at the numbers with numpy, and wait for them.
"""
from __future__ import annotations

import numpy as np

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import Support

SUPPORT = (Support("all_finite", cpu=("float64",), cuda=("float64",)),
           Support("clipped", cpu=("float64",), cuda=("float64",)),
           Support("gathered", cpu=("float32", "float64"), cuda=("float32", "float64")))
_AT_ONCE = 16


def gathered(values: list, extra: float = 0.0, *, impl: str = "auto"):
    """Scalar Vars of any type and one number more, as one float64 Var (len(values) + 1,)."""
    values = [value if str(value.dtype) in ("float32", "float64") else value.float64() for value in values]
    if len(values) > _AT_ONCE or not kernels.use_fused(impl, SUPPORT[2], *values):
        return jt.concat([*(value.float64().reshape(1) for value in values), _wide([extra])])
    at = ", ".join(f"in{i}_p" for i in range(len(values)))
    wide = ", ".join(str(value.dtype == "float64").lower() for value in values)
    return kernels.code((len(values) + 1,), "float64", values, kernel="training/finite", data={"extra": float(extra)},
                        source=f"""jea::gather_scalars(jea::Scalars{{{{{at}}}, {{{wide}}}, {len(values)},
                                   data["extra"]}}, out0_p);""")


def all_finite(values, control=None, *, impl: str = "auto"):
    """A control: 1 where all of `values`, float64 (K,), are finite and `control`, if there is one, said so before."""
    if not kernels.use_fused(impl, SUPPORT[0], values):
        finite = np.isfinite(values.numpy()).all() and (control is None or control.numpy()[0] != 0)
        return jt.array(np.array([finite, 1], np.float32))
    inputs = [values] + ([] if control is None else [control])
    before = "nullptr" if control is None else "in1_p"
    return kernels.code((2,), "float32", inputs, kernel="training/finite",
                        source=f"jea::judge_scalars(in0_p, in0->num, {before}, out0_p);")


def clipped(squares, control, largest: float, *, impl: str = "auto"):
    """(control, norm): of gradients whose sums of squares are `squares`, float64 (K,), the norm, float64 (1,), NaN
    where one is not finite; and a control with the factor that makes the norm `largest` at most, as torch's
    clip_grad_norm_: min(1, largest / (norm + 1e-6))."""
    if not kernels.use_fused(impl, SUPPORT[1], squares):
        total = squares.numpy().sum()
        finite = np.isfinite(total)
        norm = np.sqrt(total) if finite else np.nan
        factor = min(1.0, largest / (norm + 1e-6)) if finite else 1.0
        return jt.array(np.array([finite and control.numpy()[0] != 0, factor], np.float32)), _wide([norm])
    return kernels.code([(2,), (1,)], ["float32", "float64"], [squares, control], kernel="training/finite",
                        data={"largest": largest},
                        source='jea::limit_norm(in0_p, in0->num, data["largest"], in1_p, out0_p, out1_p);')


def _wide(values: list):
    with jt.flag_scope(auto_convert_64_to_32=0):
        return jt.array(np.array(values, np.float64))
