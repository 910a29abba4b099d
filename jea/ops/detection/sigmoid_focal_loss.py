"""Sigmoid focal loss (Lin et al., RetinaNet), from labels: no one-hot targets."""
from __future__ import annotations

import numpy as np

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, Support
from jea.ops.detection.nms import _array, _var
from jea.ops.function import Function

SUPPORT = Support("sigmoid_focal_loss", cpu=FLOAT, cuda=FLOAT)

_SIZES = 'const jea::Focal sizes{in0_shape0, in0_shape1, (float)data["alpha"], (float)data["gamma"]};'


class _FocalLoss(Function):
    def execute(self, logits, labels, alpha, gamma):
        self.logits, self.labels, self.numbers = logits, labels, {"alpha": float(alpha), "gamma": float(gamma)}
        return kernels.code((logits.shape[0],), "float32", [logits, labels], kernel="detection/focal",
                            data=self.numbers, source=_SIZES + "jea::focal_loss(sizes, in0_p, in1_p, out0_p);")

    def grad(self, dloss):
        return kernels.code(self.logits.shape, "float32", [self.logits, self.labels, dloss], kernel="detection/focal",
                            data=self.numbers, source=_SIZES + """
            jea::focal_loss_backward(sizes, in0_p, in1_p, in2_p, out0_p);"""), None, None, None


def sigmoid_focal_loss_reference(logits, labels, *, alpha: float = 0.25, gamma: float = 2.0):
    """sigmoid_focal_loss composed of Jittor's own functions."""
    labels = _array(labels, np.int64)
    targets = jt.array((labels[:, None] == np.arange(logits.shape[1])).astype(np.float32))
    s = logits * (2 * targets - 1)
    entropy = jt.log(1 + jt.exp(-jt.abs(s))) + jt.maximum(-s, jt.zeros_like(s))
    terms = (alpha * targets + (1 - alpha) * (1 - targets)) * (1 - jt.sigmoid(s)) ** gamma * entropy
    return terms.sum(1) * jt.array((labels > -2).astype(np.float32))


def sigmoid_focal_loss(logits, labels, *, alpha: float = 0.25, gamma: float = 2.0, impl: str = "auto"):
    """Focal loss of each row, summed over its classes, of which each is a yes-or-no question:

        loss = sum_k a_t (1 - p_t)^gamma (-log p_t),   p_t = p for the label's class, else 1 - p;   a_t = alpha or 1 -
        alpha

    Args:
        logits: float32 (N, K).
        labels: int32 (N,): the class 0 to K - 1, -1 for none of them, -2 for a row without a loss.
        alpha: weight of the label's class; gamma: how much sure answers are left out.
        impl: "auto", "fused" or "ref".
    Returns:
        float32 (N,), with gradient.
    Raises:
        ValueError: shapes that do not agree, or "fused" where there is no kernel.
    """
    if logits.ndim != 2 or tuple(labels.shape) != (logits.shape[0],) or min(logits.shape) < 1:
        raise ValueError(f"sigmoid_focal_loss: logits are {tuple(logits.shape)}, labels {tuple(labels.shape)}; "
                         "expected (N, K) and (N,), not empty")
    if not kernels.use_fused(impl, SUPPORT, logits):
        return sigmoid_focal_loss_reference(logits, labels, alpha=alpha, gamma=gamma)
    return _FocalLoss.apply(logits, _var(labels, np.int32), alpha, gamma)
