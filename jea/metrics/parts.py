"""Part segmentation scores, as DGCNN's and PointCloudLib's code count them."""
from __future__ import annotations

from typing import Dict, List, Sequence, Union

import numpy as np

Score = Union[float, np.ndarray]


class PartScores:
    """Intersection over union of parts, shape by shape.

    A shape's IoU is the mean over the parts of its category; a part that is neither in the label nor in the
    prediction counts 1. A prediction may be any part: one of another category is simply wrong.
    """

    def __init__(self, parts: Sequence[Sequence[int]]):
        """parts: the part indices of each category."""
        if not parts or any(not len(own) for own in parts):
            raise ValueError(f"parts are {parts}; expected at least one part of each of one or more categories")
        self.parts = tuple(np.asarray(own, np.int64) for own in parts)
        self._ious: List[List[float]] = [[] for _ in parts]
        self._right = self._points = 0

    def update(self, prediction: np.ndarray, label: np.ndarray, category: int) -> float:
        """Count one shape and return its IoU: two integer arrays (N,), N >= 1, and the shape's category.

        Raises ValueError for other types or shapes, an unknown category, and a label that is no part of it.
        """
        prediction, label = np.asarray(prediction), np.asarray(label)
        if prediction.shape != label.shape or label.ndim != 1 or not label.size:
            raise ValueError(f"prediction is {prediction.shape}, label is {label.shape}; expected (N,) for both")
        if prediction.dtype.kind not in "iu" or label.dtype.kind not in "iu":
            raise ValueError(f"prediction is {prediction.dtype}, label is {label.dtype}; expected integers")
        if not 0 <= category < len(self.parts):
            raise ValueError(f"category is {category}; expected 0 to {len(self.parts) - 1}")
        own = self.parts[category][:, None]
        predicted, labelled = prediction == own, label == own
        if not labelled.any(0).all():
            wrong = label[~labelled.any(0)][0]
            raise ValueError(f"label {wrong} is no part of category {category}, which has {own[:, 0].tolist()}")
        union = (predicted | labelled).sum(1)
        iou = float(np.where(union, (predicted & labelled).sum(1) / np.maximum(union, 1), 1.0).mean())
        self._ious[category].append(iou)
        self._right += int((prediction == label).sum())
        self._points += label.size
        return iou

    def scores(self) -> Dict[str, Score]:
        """The scores, all in [0, 1]; a score without any shape to judge is nan.

        instance_mIoU  mean over the shapes
        category_mIoU  mean over the categories that have shapes, of their shapes' mean
        accuracy       share of right points
        mIoU           (categories,): mean over the shapes of each category
        """
        means = np.array([np.mean(ious) if ious else np.nan for ious in self._ious])
        ious = np.concatenate([np.asarray(ious, np.float64) for ious in self._ious])
        return {
            "instance_mIoU": float(ious.mean()) if ious.size else float("nan"),
            "category_mIoU": float(means[~np.isnan(means)].mean()) if ious.size else float("nan"),
            "accuracy": self._right / self._points if self._points else float("nan"),
            "mIoU": means,
        }
