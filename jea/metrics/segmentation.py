"""Segmentation scores from one confusion matrix over all pictures, as VOC and upstream count them."""
from __future__ import annotations

from typing import Dict, Union

import numpy as np

Score = Union[float, np.ndarray]


class ConfusionMatrix:
    """Counts of (label, prediction) pairs over any number of pictures.

    `counts[i, j]` (int64) is the number of pixels of class i that were predicted as j. Pixels whose label is
    not in [0, num_classes) do not count.
    """

    def __init__(self, num_classes: int):
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; expected at least 1")
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction: np.ndarray, label: np.ndarray) -> None:
        """Count one picture or batch: two integer arrays of one shape.

        Raises ValueError for other types or shapes, and for a prediction outside of [0, num_classes) where
        the label counts.
        """
        prediction, label = np.asarray(prediction), np.asarray(label)
        if prediction.shape != label.shape:
            raise ValueError(f"prediction is {prediction.shape}, label is {label.shape}; expected one shape")
        if prediction.dtype.kind not in "iu" or label.dtype.kind not in "iu":
            raise ValueError(f"prediction is {prediction.dtype}, label is {label.dtype}; expected integers")
        counted = (label >= 0) & (label < self.num_classes)
        label, prediction = label[counted].astype(np.int64), prediction[counted].astype(np.int64)
        if prediction.size and not 0 <= prediction.min() <= prediction.max() < self.num_classes:
            raise ValueError(f"predictions from {prediction.min()} to {prediction.max()}; "
                             f"expected 0 to {self.num_classes - 1}")
        pairs = np.bincount(label * self.num_classes + prediction, minlength=self.num_classes ** 2)
        self.counts += pairs.reshape(self.counts.shape)

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of another matrix."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot merge {other.num_classes} classes into {self.num_classes}")
        self.counts += other.counts

    def shares(self) -> np.ndarray:
        """(num_classes, num_classes): how the pixels of each class were predicted; a row sums to 1, or is nan."""
        return _ratio(self.counts, np.repeat(self.counts.sum(1, keepdims=True), self.num_classes, 1))

    def scores(self) -> Dict[str, Score]:
        """The scores, all in [0, 1]; a score without any pixel to judge is nan.

        IoU   (num_classes,): c_ii / (row_i + column_i - c_ii); nan for a class in neither labels nor
        predictions mIoU  mean of IoU over the classes that have one pAcc  share of right pixels mAcc  mean
        over the classes in the labels of the share of right pixels of the class fwIoU IoU weighted with the
        classes' shares of the labels
        """
        counts = self.counts.astype(np.float64)
        right, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        iou = _ratio(right, labelled + predicted - right)
        present = labelled > 0
        total = labelled.sum()
        return {
            "mIoU": _mean(iou[~np.isnan(iou)]),
            "pAcc": float(_ratio(right.sum(), total)),
            "mAcc": _mean(right[present] / labelled[present]),
            "fwIoU": float(_ratio((labelled[present] * iou[present]).sum(), total)),
            "IoU": iou,
        }


def _ratio(part, whole) -> np.ndarray:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
