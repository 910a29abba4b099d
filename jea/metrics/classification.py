"""Classification scores: top-k accuracy and the confusion matrix, over any number of batches."""
from __future__ import annotations

from typing import Dict, List, Sequence, Tuple, Union

import numpy as np

Score = Union[float, np.ndarray]


class ClassificationScores:
    """Counts right answers among the k best, and (label, best class) pairs.

    num_classes: C. topk: the k to count.
    `confusion[i, j]` (int64) is the number of pictures of class i whose best class was j. On a tie the lower class
    index is the better one, as in argmax. A picture with a score that is NaN counts as wrong for every k and does not
    enter the confusion matrix.
    """

    def __init__(self, num_classes: int, topk: Sequence[int] = (1, 5)):
        if num_classes < 1 or not topk or min(topk) < 1:
            raise ValueError(f"num_classes is {num_classes}, topk {tuple(topk)}; expected at least 1 each")
        self.num_classes = num_classes
        self.topk = tuple(topk)
        self.count = 0
        self.right = {k: 0 for k in self.topk}
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self.labelled = np.zeros(num_classes, np.int64)

    def update(self, scores: np.ndarray, labels: np.ndarray) -> None:
        """Count a batch: scores (B, C), higher is better (logits or probabilities), and labels (B,) in [0, C)."""
        scores, labels = np.asarray(scores), np.asarray(labels)
        if scores.ndim != 2 or scores.shape[1] != self.num_classes or labels.shape != scores.shape[:1]:
            raise ValueError(f"scores are {scores.shape}, labels {labels.shape}; expected (B, {self.num_classes}) and "
                             "(B,)")
        if labels.dtype.kind not in "iu":
            raise ValueError(f"labels are {labels.dtype}; expected integers")
        if labels.size and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise ValueError(f"labels from {labels.min()} to {labels.max()}; expected 0 to {self.num_classes - 1}")
        labels = labels.astype(np.int64)
        sound = ~np.isnan(scores).any(1)
        at_label = np.take_along_axis(scores, labels[:, None], 1)
        earlier = np.arange(self.num_classes)[None, :] < labels[:, None]
        rank = ((scores > at_label) | ((scores == at_label) & earlier)).sum(1)  # 0: the best class is the label
        for k in self.topk:
            self.right[k] += int((sound & (rank < k)).sum())
        self.count += len(labels)
        self.labelled += np.bincount(labels, minlength=self.num_classes)
        np.add.at(self.confusion, (labels[sound], scores[sound].argmax(1)), 1)

    def merge(self, other: "ClassificationScores") -> None:
        """Add the counts of another object with the same classes and k."""
        if (other.num_classes, other.topk) != (self.num_classes, self.topk):
            raise ValueError(f"cannot merge {other.num_classes} classes, topk {other.topk} into {self.num_classes}, "
                             f"{self.topk}")
        self.count += other.count
        for k in self.topk:
            self.right[k] += other.right[k]
        self.confusion += other.confusion
        self.labelled += other.labelled

    def scores(self) -> Dict[str, Score]:
        """The scores, in [0, 1]; nan without any picture to judge.

        top<k>      share of pictures whose label is among the k best classes
        mean_class  mean over the classes in the labels of the class's top-1 accuracy
        accuracy    (C,) top-1 accuracy of each class, nan where no picture has it
        confusion   (C, C) int64 counts, [label, best class]
        """
        share = {f"top{k}": self.right[k] / self.count if self.count else float("nan") for k in self.topk}
        accuracy = np.divide(self.confusion.diagonal(), self.labelled, out=np.full(self.num_classes, np.nan),
                             where=self.labelled > 0)
        present = accuracy[self.labelled > 0]
        return {**share, "mean_class": float(present.mean()) if present.size else float("nan"),
                "accuracy": accuracy, "confusion": self.confusion.copy()}

    def worst(self, count: int) -> List[Tuple[int, float, List[Tuple[int, float]]]]:
        """The `count` classes with the lowest accuracy: (class, accuracy, [(class taken instead, share), ...]).

        At most three confusions each, the most frequent first; classes without pictures are left out.
        """
        accuracy = self.scores()["accuracy"]
        order = [int(c) for c in np.argsort(accuracy, kind="stable") if self.labelled[c]][:count]
        found = []
        for c in order:
            others = self.confusion[c].copy()
            others[c] = 0
            best = [int(j) for j in np.argsort(-others, kind="stable")[:3] if others[j]]
            found.append((c, float(accuracy[c]), [(j, float(others[j] / self.labelled[c])) for j in best]))
        return found
