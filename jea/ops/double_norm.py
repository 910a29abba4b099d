"""Double normalisation of external attention (paper, section 3.2; upstream model_torch.py)."""
from __future__ import annotations

from jea._jittor import jt

EPSILON = 1e-9  # upstream adds it to the denominator of the L1 step only


def double_norm(logits, *, layout: str = "bsn", eps: float = EPSILON):
    """Softmax over the positions, then L1 normalisation over the memories.

        a[s, n] = exp(x[s, n]) / sum_n' exp(x[s, n'])        for each memory s
        y[s, n] = a[s, n] / (eps + sum_s' a[s', n])          for each position n

    Args:
        logits: attention logits, float, of rank 2 or more.
        layout: "bsn": (..., S, N), positions last (the Conv1d layout of the segmentation block);
                "bns": (..., N, S), memories last (the Linear layout of the multi-head block).
        eps: added to the denominator of the second step; 1e-9 upstream, 0 in xmu-xiaoma666's variant.

    Returns:
        The attention map, of the shape of `logits`. Its sum over the memories is 1 at each position.

    Raises:
        ValueError: unknown layout, or a rank below 2.
    """
    if layout not in ("bsn", "bns"):
        raise ValueError(f'double_norm: layout is {layout!r}; expected "bsn" (..., S, N) or "bns" (..., N, S)')
    if logits.ndim < 2:
        raise ValueError(f"double_norm: logits have shape {tuple(logits.shape)}; expected at least two axes")
    positions, memories = (-1, -2) if layout == "bsn" else (-2, -1)
    positions, memories = positions % logits.ndim, memories % logits.ndim
    exponentials = (logits - logits.max(positions, keepdims=True).stop_grad()).exp()
    softmax = exponentials / exponentials.sum(positions, keepdims=True)
    return softmax / (eps + softmax.sum(memories, keepdims=True))
