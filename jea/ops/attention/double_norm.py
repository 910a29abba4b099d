"""Double normalisation of external attention (paper, section 3.2; upstream model_torch.py)."""
from __future__ import annotations

import math

import numpy as np

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, FLOATS, Support
from jea.ops.function import Function

SUPPORT = Support("double_norm", cpu=FLOAT, cuda=FLOATS)
EPSILON = 1e-9  # upstream adds it to the denominator of the L1 step only

# (batch, S, N), or (batch, N, S) with S the memories of all heads
_SIZES = """
    const bool positions_last = data["positions_last"] != 0;
    const jea::DoubleNorm sizes{in0_shape0, positions_last ? in0_shape1 : in0_shape2,
                                positions_last ? in0_shape2 : in0_shape1, positions_last, (long)data["heads"]};
"""


class _DoubleNorm(Function):
    def execute(self, x, layout, eps, heads):
        self.numbers = {"positions_last": int(layout == "bsn"), "eps": eps, "heads": heads}
        positions = x.shape[2 if layout == "bsn" else 1]
        self.y, self.denominators = kernels.cpu_code(
            [x.shape, (x.shape[0], positions * heads)], ["float32", "float32"], [x], kernel="attention/double_norm.h",
            data=self.numbers,
            source=_SIZES + 'jea::double_norm_forward(sizes, data["eps"], in0_p, out0_p, out1_p);')
        return self.y

    def grad(self, dy):
        return kernels.cpu_code(
            self.y.shape, "float32", [self.y, self.denominators, dy], kernel="attention/double_norm.h",
            data=self.numbers,
            source=_SIZES + "jea::double_norm_backward(sizes, in0_p, in1_p, in2_p, out0_p);"), None, None, None


# Whether positions come last, and the memories that its blocks hold in registers, stand in the call: a kernel each.
_CUDA_SIZES = """
    const auto number = [&](const char* name) { return (int)data[name]; };
    const jea::DoubleNorm sizes{number("batch"), number("memories"), number("positions"), number("heads"),
                                number("splits"), number("each")};
"""


def cuda_splits(layout: str, batch: int, memories: int, positions: int, *, backward: bool) -> tuple:
    """Into how many parts CUDA cuts the positions to sum over them, and the positions of a part.

    Forward with positions last a warp works on a part of one memory's, else a block on a part of all memories': enough
    of them for a large GPU, and whole tiles of the kernels.
    """
    if layout == "bsn" and not backward:
        each = next((length for length in (4096, 2048, 1024)
                     if batch * memories * -(-positions // length) >= 8192), 512)
        return -(-(positions + 7) // each), each  # rows begin up to 7 elements behind a part
    each = -(-positions // max(1, min(64, 1056 // batch)))
    each = -(-each // 128) * 128
    return -(-positions // each), each


def cuda_held(memories: int) -> int:
    """The memories that a block of the kernels is compiled for: a power of two from 8 to 512, which takes more in
    turns."""
    return next((held for held in (8, 16, 32, 64, 128, 256) if memories <= held), 512)


class _DoubleNormCuda(Function):
    def execute(self, x, layout, eps, heads):
        memories, positions = x.shape[1:] if layout == "bsn" else (x.shape[2] // heads, x.shape[1])
        batch = x.shape[0] * heads
        self.layout = layout
        self.numbers = {"batch": batch, "memories": memories, "positions": positions, "eps": eps, "heads": heads}
        self.y, self.denominators = self.run(
            [x.shape, (batch, positions)], [x.dtype, "float32"], [x], "double_norm_forward",
            '(sizes, (float)data["eps"], in0_p, out0_p, out1_p, workspace);', backward=False)
        return self.y

    def grad(self, dy):
        dx, = self.run([self.y.shape], [self.y.dtype], [self.y, self.denominators, dy], "double_norm_backward",
                       "(sizes, in0_p, in1_p, in2_p, out0_p, workspace);", backward=True)
        return dx, None, None, None

    def run(self, shapes, dtypes, inputs, function, arguments, *, backward):
        n = self.numbers
        splits, each = cuda_splits(self.layout, n["batch"], n["memories"], n["positions"], backward=backward)
        rows = n["batch"] * n["memories"] * (splits + 1)
        template = f"<{'true' if self.layout == 'bsn' else 'false'}, {cuda_held(n['memories'])}>"
        return kernels.cuda_code(
            shapes, dtypes, inputs, kernel="attention/double_norm.cuh", data=dict(n, splits=splits, each=each),
            workspace=rows + n["batch"] * n["positions"] if backward else 2 * rows,
            source=f"{_CUDA_SIZES}jea::{function}{template}{arguments}")


_AXES = {"bsn": 2, "bns": 2, "bnhs": 3}  # of one map


def double_norm_reference(logits, *, layout: str = "bsn", eps: float = EPSILON):
    """double_norm composed of Jittor's own functions."""
    positions, memories = {"bsn": (-1, -2), "bns": (-2, -1), "bnhs": (-3, -1)}[layout]
    positions, memories = positions % logits.ndim, memories % logits.ndim
    exponentials = (logits - logits.max(positions, keepdims=True).stop_grad()).exp()
    softmax = exponentials / exponentials.sum(positions, keepdims=True)
    return softmax / (eps + softmax.sum(memories, keepdims=True))


def _refuse_without_softmax(logits, layout: str) -> None:
    values = np.asarray(logits.float32().numpy())
    positions = values.ndim - layout[::-1].index("n") - 1
    most = values.max(positions)  # NaN where there is one
    bad = np.argwhere(~np.isfinite(most))
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        raise ValueError(f"double_norm: memory {place} of logits {values.shape} (all axes but the positions) has no "
                         f"softmax: its largest logit is {most[place]}. {len(bad)} of {most.size} are like that; mask "
                         "with -inf at most all positions but one, and look for NaN or overflow before the attention")


def double_norm(logits, *, layout: str = "bsn", eps: float = EPSILON, impl: str = "auto", check: bool = False):
    """Softmax over the positions, then L1 normalisation over the memories.

        a[s, n] = exp(x[s, n]) / sum_n' exp(x[s, n'])        for each memory s
        y[s, n] = a[s, n] / (eps + sum_s' a[s', n])          for each position n

    The gradient, with g = dL/dy and d[n] = eps + sum_s a[s, n]:

        u[s, n] = y[s, n] (g[s, n] - sum_s' g[s', n] y[s', n])
        dL/dx[s, n] = u[s, n] - y[s, n] d[n] sum_n' u[s, n']

    -inf masks a position of a memory. A NaN, a +inf, or a memory whose logits are all -inf has no softmax: the whole
    matrix of the map is NaN, or, with `check`, the call is refused.

    Args:
        logits: attention logits, float, of rank 2 or more.
        layout: "bsn": (..., S, N), positions last (the Conv1d layout of the segmentation block);
                "bns": (..., N, S), memories last (the Linear layout of the multi-head block);
                "bnhs": (..., N, H, S), a map for each of H heads, as it stands before the heads are moved apart.
        eps: added to the denominator of the second step; 1e-9 upstream, 0 in xmu-xiaoma666's variant.
        impl: "auto", "fused" or "ref".
        check: raise where a memory has no softmax. It computes the logits at once, which costs speed: for debugging.

    Returns:
        The attention map, of the shape of `logits`. Its sum over the memories is 1 at each position.

    Raises:
        ValueError: unknown layout, a rank below 2, an empty axis, "fused" where there is no kernel, or what `check`
        found.
    """
    axes = _AXES.get(layout)
    if axes is None:
        raise ValueError(f'double_norm: layout is {layout!r}; expected "bsn" (..., S, N), "bnhs" (..., N, H, S) '
                         'or "bns" (..., N, S)')
    shape = tuple(logits.shape)
    if len(shape) < axes:
        raise ValueError(f"double_norm: logits have shape {shape}; expected at least "
                         f"{'three' if layout == 'bnhs' else 'two'} axes")
    if min(shape) < 1:
        raise ValueError(f"double_norm: logits have shape {shape}; expected at least 1 along each axis")
    if check:
        _refuse_without_softmax(logits, layout)
    unless = "" if math.prod(shape[-axes:]) < 2 ** 31 else "a map has 2^31 elements or more"
    if not kernels.use_fused(impl, SUPPORT, logits, unless=unless):
        return double_norm_reference(logits, layout=layout, eps=eps)
    kernel = _DoubleNormCuda if jt.flags.use_cuda else _DoubleNorm
    if len(shape) == 3 and axes == 2:
        return kernel.apply(logits, layout, float(eps), 1)
    heads = shape[-2] if layout == "bnhs" else 1
    flat = logits.reshape((math.prod(shape[:-axes]), shape[-axes], math.prod(shape[1 - axes:])))
    return kernel.apply(flat, layout, float(eps), heads).reshape(shape)
