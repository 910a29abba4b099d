"""Cross entropy per position, without copies of the logits."""
from __future__ import annotations

import math

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, FLOATS, Support
from jea.ops.function import Function

SUPPORT = Support("cross_entropy", cpu=FLOAT, cuda=FLOATS)

_SIZES = """
    const jea::CrossEntropy sizes{in0_shape0, in0_shape1, in0_shape2, (long)data["ignored"], (float)data["smoothing"]};
"""


class _CrossEntropy(Function):
    def execute(self, logits, labels, numbers):
        self.numbers, self.logits, self.labels = numbers, logits, labels
        losses, self.maxima, self.inverses = kernels.code(
            [labels.shape] * 3, ["float32"] * 3, [logits, labels], kernel="training/cross_entropy", data=numbers,
            source=_SIZES + "jea::cross_entropy_forward(sizes, in0_p, in1_p, out0_p, out1_p, out2_p);")
        return losses

    def grad(self, g):
        return kernels.code(
            self.logits.shape, self.logits.dtype, [self.logits, self.labels, self.maxima, self.inverses, g],
            kernel="training/cross_entropy", data=self.numbers,
            source=_SIZES + "jea::cross_entropy_backward(sizes, in0_p, in1_p, in2_p, in3_p, in4_p, out0_p);"
        ), None, None


def cross_entropy_reference(logits, labels, *, ignore_index=255, label_smoothing=0.0):
    """cross_entropy composed of Jittor's own functions."""
    classes = logits.shape[1]
    shifted = logits - logits.max(1, keepdims=True).stop_grad()
    log_sum = shifted.exp().sum(1).log()
    index = labels.unsqueeze(1)
    at_label = jt.ternary(jt.index(logits.shape, 1) == index.broadcast(logits.shape), shifted,
                          jt.zeros_like(shifted)).sum(1)
    losses = log_sum - (1 - label_smoothing) * at_label
    if label_smoothing:
        losses = losses - label_smoothing / classes * shifted.sum(1)
    losses = jt.ternary((labels < 0).logical_or(labels >= classes), jt.full_like(losses, math.nan), losses)
    return jt.ternary(labels == ignore_index, jt.zeros_like(losses), losses)


def cross_entropy(logits, labels, *, ignore_index: int = 255, label_smoothing: float = 0.0, impl: str = "auto"):
    """-sum_c q[c] log softmax(logits)[c] at each position, with q = (1 - e) onehot(label) + e / C.

    The gradient of a position's loss is softmax(logits) - q. The positions' losses are not averaged: who averages says
    over what, and should sum in float64 (`.float64()`), since Jittor's float32 sums lose digits.

    Args:
        logits: float (B, C, ...), with any number of further axes. The kernels take float32 and, on CUDA, float16 and
            bfloat16; their sums and losses are float32.
        labels: int32 (B, ...) in [0, C), or ignore_index: loss 0 and no gradient there. Others give NaN, as logits do
            that have no softmax.
        label_smoothing: e, 0 <= e < 1.
        impl: "auto", "fused" or "ref".
    Returns:
        float32 (B, ...).
    Raises:
        ValueError: shapes or dtypes that do not agree, or "fused" where there is no kernel.
    """
    shape = tuple(logits.shape)
    if len(shape) < 2 or tuple(labels.shape) != shape[:1] + shape[2:]:
        raise ValueError(f"cross_entropy: logits are {shape} and labels {tuple(labels.shape)}; "
                         "expected (B, C, ...) and (B, ...)")
    if labels.dtype != "int32":
        raise ValueError(f"cross_entropy: labels are {labels.dtype}; expected int32 class indices")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}; expected 0 <= label_smoothing < 1")
    if not kernels.use_fused(impl, SUPPORT, logits):
        return cross_entropy_reference(logits, labels, ignore_index=ignore_index, label_smoothing=label_smoothing)
    numbers = {"ignored": ignore_index, "smoothing": label_smoothing}
    losses = _CrossEntropy.apply(logits.reshape(shape[0], shape[1], -1), labels.reshape(shape[0], -1), numbers)
    return losses.reshape(shape[:1] + shape[2:])
