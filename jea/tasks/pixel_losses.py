"""Pixel losses of the recipes for Cityscapes: class weights and online hard example mining (JSeg, mmsegmentation)."""
from __future__ import annotations

from typing import Sequence

import numpy as np

from jea._jittor import jt
from jea.ops import cross_entropy


def weighted_pixel_cross_entropy(logits, labels, *, class_weights: Sequence[float] | None = None,
                                 ohem_threshold: float | None = None, ohem_min_kept: int = 100_000,
                                 ignore_index: int = 255):
    """sum over kept pixels of w[label] * -log softmax(logits)[label], divided by the number of *all* pixels.

    Args:
        logits: (B, C, H, W) float. labels: (B, H, W) int32 in [0, C) or ignore_index.
        class_weights: w, one per class; default 1.
        ohem_threshold, ohem_min_kept: keep only hard pixels, see `hard_pixels`; None keeps all.
    Returns:
        Scalar float32, summed in float64.
    """
    loss = cross_entropy(logits, labels, ignore_index=ignore_index)  # B H W
    kept = None
    if ohem_threshold is not None:
        kept = jt.array(hard_pixels(loss.numpy(), labels.numpy(), threshold=ohem_threshold, min_kept=ohem_min_kept,
                                    ignore_index=ignore_index))
    if class_weights is not None:
        table = np.zeros(ignore_index + 1, np.float32)
        table[:len(class_weights)] = class_weights
        loss = loss * jt.array(table[labels.numpy()])
    if kept is not None:
        loss = loss * kept
    return (loss.float64().sum() / loss.numel()).float32()


def hard_pixels(loss: np.ndarray, labels: np.ndarray, *, threshold: float, min_kept: int, ignore_index: int = 255):
    """1 where the label's probability is low, else 0: (B, H, W) float32.

    loss: (B, H, W), the unweighted cross-entropy, so that the label's probability p is exp(-loss). Kept are the pixels
    with p < max(threshold, t), t being the (B min_kept)-th smallest p, counted from 0, of the pixels that are not
    ignored (the largest where there are fewer).
    """
    valid = labels != ignore_index
    p = np.exp(-loss[valid])
    kept = np.zeros(labels.shape, np.float32)
    if p.size:
        place = min(min_kept * len(labels), p.size - 1)
        kept[valid] = p < max(threshold, np.partition(p, place)[place])
    return kept
