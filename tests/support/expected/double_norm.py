"""The double normalisation and its gradient in float64, and logits to try."""
import numpy as np

LAYOUTS = ("bsn", "bns")


def expected(x, layout, eps=1e-9, g=None):
    """Output and, with g = dL/dy, gradient, in float64."""
    positions, memories = (-1, -2) if layout == "bsn" else (-2, -1)
    x = x.astype(np.float64)
    e = np.exp(x - x.max(positions, keepdims=True))
    a = e / e.sum(positions, keepdims=True)
    d = eps + a.sum(memories, keepdims=True)
    y = a / d
    if g is None:
        return y
    h = (g - (g * y).sum(memories, keepdims=True)) / d
    return y, a * (h - (a * h).sum(positions, keepdims=True))


def logits(rng, layout, batch, s, n, scale=3.0):
    shape = (batch, s, n) if layout == "bsn" else (batch, n, s)
    return (rng.standard_normal(shape) * scale).astype(np.float32)
