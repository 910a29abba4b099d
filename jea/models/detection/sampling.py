"""Which anchors and proposals a training step uses, and what they should say."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jea.models.detection import boxes as box_math
from jea.ops.detection import match_boxes


class Sampler:
    """Draws anchors and proposals at random, from a seed for each picture."""

    def __init__(self, seeds):
        self.generators = [np.random.default_rng([int(seed)]) for seed in seeds]

    def choose(self, kind: str, picture: int, positives, negatives, count: int, share: float) -> tuple:
        """At most `count` of both, at most `share` of them positives; ascending indices.

        kind: "rpn", "roi" or, in a cascade, "roi0", "roi1", "roi2".
        """
        rng = self.generators[picture]
        positives = self._some(rng, positives, int(count * share))
        return positives, self._some(rng, negatives, count - len(positives))

    @staticmethod
    def _some(rng, indices, count: int):
        return indices if len(indices) <= count else np.sort(rng.choice(indices, count, replace=False))


@dataclass
class Truth:
    """What a picture shows: boxes float32 (G, 4) in the batch's pixels, labels int (G,) from 0, masks uint8 (G, H, W)
    or None."""
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None

    def __post_init__(self):
        self.boxes = np.asarray(self.boxes, np.float32).reshape(-1, 4)
        self.labels = np.asarray(self.labels, np.int64).reshape(-1)


@dataclass
class Regions:
    """Proposals that a head trains on: boxes (N, 4), their picture (N,), labels (N,) with -1 for background, the row of
    the picture's truth (N,), -1 for background, the step to it (N, 4), and whether it is itself a truth (N,)."""
    boxes: np.ndarray
    pictures: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    steps: np.ndarray
    is_truth: np.ndarray


def regions_of(picture: int, proposals, truth: Truth, sampler: Sampler, *, kind: str, style, threshold: float,
               low_quality: bool, deviations, count: int, share: float = 0.25) -> Regions:
    """Match a picture's proposals with its ground truth and draw some of them; positives come first."""
    rule = dict(high=threshold, low=threshold, low_quality=style.low_quality if low_quality else None, least=threshold)
    own = np.arange(len(truth.boxes), dtype=np.int32)
    if style.truths_first:
        matches, _ = match_boxes(proposals, truth.boxes, **rule)
        candidates, matches = np.concatenate([truth.boxes, proposals]), np.concatenate([own, matches])
        is_truth = np.arange(len(candidates)) < len(own)
    else:
        candidates = np.concatenate([proposals, truth.boxes])
        matches, _ = match_boxes(candidates, truth.boxes, **rule)
        is_truth = np.arange(len(candidates)) >= len(proposals)
    positives, negatives = sampler.choose(kind, picture, np.flatnonzero(matches >= 0), np.flatnonzero(matches == -1),
                                          count, share)
    chosen = np.concatenate([positives, negatives]).astype(np.int64)
    rows, found = matches[chosen].astype(np.int64), candidates[chosen]
    labels, steps = np.full(len(chosen), -1, np.int64), np.zeros((len(chosen), 4), np.float32)
    positive = rows >= 0
    labels[positive] = truth.labels[rows[positive]]
    steps[positive] = box_math.encode(found[positive], truth.boxes[rows[positive]], deviations)
    return Regions(found, np.full(len(chosen), picture), labels, rows, steps, is_truth[chosen])


def joined(parts) -> Regions:
    """The regions of all pictures, one after the other."""
    return Regions(*(np.concatenate([getattr(part, name) for part in parts])
                     for name in ("boxes", "pictures", "labels", "rows", "steps", "is_truth")))
