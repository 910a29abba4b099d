"""The losses of detectors, with numbers that do not depend on how a batch is cut among processes."""
from __future__ import annotations

import numpy as np

from jea import ranks
from jea._jittor import jt


def shared_count(count: float) -> float:
    """A process's share of a count over all processes, at least 1 in all: the mean of losses divided by it is
    global."""
    return max(float(ranks.total([count])[0]), 1.0) / ranks.size()


def total(values):
    """The sum of all entries, in float64 (Jittor adds up float32 one by one)."""
    return values.float64().sum().float32()


def cross_entropy_rows(logits, labels) -> object:
    """-log softmax(logits)[label] of each row; logits (N, K), labels numpy (N,)."""
    one = jt.array((labels[:, None] == np.arange(logits.shape[1])).astype(np.float32))
    shifted = logits - logits.max(1, keepdims=True).stop_grad()
    return jt.log(jt.exp(shifted).sum(1)) - (shifted * one).sum(1)


def binary_cross_entropy(logits, targets):
    """-(t log p + (1 - t) log(1 - p)) of each entry, p = sigmoid(logit)."""
    return jt.maximum(logits, jt.zeros_like(logits)) - logits * targets + jt.log(1 + jt.exp(-jt.abs(logits)))


def smooth_l1(difference, beta: float):
    """0.5 d^2 / beta below beta, d - 0.5 beta from there on, d = |difference|; |difference| where beta is 0."""
    sign = (difference > 0).float32() - (difference < 0).float32()
    size = difference * sign  # jt.abs has a slope at 0
    if beta <= 0:
        return size
    below = (size < beta).float32()
    return below * (size * size * (0.5 / beta)) + (1 - below) * (size - 0.5 * beta)
