"""Double normalisation of external attention (paper, section 3.2; upstream model_torch.py)."""
from __future__ import annotations

import math

from jea._jittor import jt
from jea.ops import _jit

EPSILON = 1e-9  # upstream adds it to the denominator of the L1 step only

# (batch, S, N) or (batch, N, S)
_SIZES = """
    const bool positions_last = data["positions_last"] != 0;
    const jea::DoubleNorm sizes{in0_shape0, positions_last ? in0_shape1 : in0_shape2,
                                positions_last ? in0_shape2 : in0_shape1, positions_last};
"""


class _DoubleNorm(jt.Function):
    def execute(self, x, layout, eps):
        self.numbers = {"positions_last": int(layout == "bsn"), "eps": eps}
        positions = x.shape[2 if layout == "bsn" else 1]
        self.y, self.denominators = _jit.cpu_code(
            [x.shape, (x.shape[0], positions)], ["float32", "float32"], [x], kernel="double_norm.h", data=self.numbers,
            source=_SIZES + 'jea::double_norm_forward(sizes, data["eps"], in0_p, out0_p, out1_p);')
        return self.y

    def grad(self, dy):
        return _jit.cpu_code(
            self.y.shape, "float32", [self.y, self.denominators, dy], kernel="double_norm.h", data=self.numbers,
            source=_SIZES + "jea::double_norm_backward(sizes, in0_p, in1_p, in2_p, out0_p);")


def double_norm_reference(logits, *, layout: str = "bsn", eps: float = EPSILON):
    """double_norm composed of Jittor's own functions."""
    positions, memories = (-1, -2) if layout == "bsn" else (-2, -1)
    positions, memories = positions % logits.ndim, memories % logits.ndim
    exponentials = (logits - logits.max(positions, keepdims=True).stop_grad()).exp()
    softmax = exponentials / exponentials.sum(positions, keepdims=True)
    return softmax / (eps + softmax.sum(memories, keepdims=True))


def double_norm(logits, *, layout: str = "bsn", eps: float = EPSILON, impl: str = "auto"):
    """Softmax over the positions, then L1 normalisation over the memories.

        a[s, n] = exp(x[s, n]) / sum_n' exp(x[s, n'])        for each memory s
        y[s, n] = a[s, n] / (eps + sum_s' a[s', n])          for each position n

    The gradient, with g = dL/dy and d[n] = eps + sum_s a[s, n]:

        u[s, n] = y[s, n] (g[s, n] - sum_s' g[s', n] y[s', n])
        dL/dx[s, n] = u[s, n] - y[s, n] d[n] sum_n' u[s, n']

    -inf masks a position of a memory. A NaN, a +inf, or a memory whose logits are all -inf has no softmax: the whole
    matrix of the map is NaN.

    Args:
        logits: attention logits, float, of rank 2 or more.
        layout: "bsn": (..., S, N), positions last (the Conv1d layout of the segmentation block);
                "bns": (..., N, S), memories last (the Linear layout of the multi-head block).
        eps: added to the denominator of the second step; 1e-9 upstream, 0 in xmu-xiaoma666's variant.
        impl: "auto", "fused" or "ref".

    Returns:
        The attention map, of the shape of `logits`. Its sum over the memories is 1 at each position.

    Raises:
        ValueError: unknown layout, a rank below 2, or "fused" where there is no kernel.
    """
    if layout not in ("bsn", "bns"):
        raise ValueError(f'double_norm: layout is {layout!r}; expected "bsn" (..., S, N) or "bns" (..., N, S)')
    shape = tuple(logits.shape)
    if len(shape) < 2:
        raise ValueError(f"double_norm: logits have shape {shape}; expected at least two axes")
    possible = not jt.flags.use_cuda and logits.dtype == "float32"
    if _jit.use_fused(impl, name="double_norm", possible=possible, reason="it takes float32 on the CPU"):
        flat = logits.reshape((math.prod(shape[:-2]),) + shape[-2:])
        return _DoubleNorm.apply(flat, layout, float(eps)).reshape(shape)
    return double_norm_reference(logits, layout=layout, eps=eps)
