"""What the point-cloud data sets share."""
from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from jea.data.dataset import Dataset, Examined
from jea.data.views.clouds import dropped, jittered, scaled, shifted
from jea.errors import DataError, quoted


class PointCloudDataset(Dataset):
    """What the point-cloud data sets share. A data set defines `__len__` and `cloud`.

    num_points: points of a sample.
    dropout: up to this share of the points becomes copies of the first; published recipe 0.875.
    scale: range of each axis' factor. shift: largest offset along each axis, in radii of the cloud.
    jitter: standard deviation of each coordinate's noise.
    """

    part_names: Sequence[str] | None = None
    parts: Sequence[Sequence[int]] | None = None  # of each category, for segmentation
    what, unit = "clouds", "cloud"

    def __init__(self, *, num_points: int, dropout: float, scale: Sequence[float], shift: float, jitter: float):
        if num_points < 1:
            raise DataError(f"num_points is {num_points}; expected at least 1")
        if not 0 <= dropout <= 1 or shift < 0 or jitter < 0 or len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise DataError(f"dropout {dropout}, scale {quoted(list(scale))}, shift {shift}, jitter {jitter}; expected "
                            "dropout from 0 to 1, scale [low, high] above 0, shift and jitter of at least 0")
        self.num_points = num_points
        self.dropout, self.scale, self.shift, self.jitter = dropout, tuple(scale), shift, jitter

    def cloud(self, index: int, rng: np.random.Generator | None = None):
        """(points (num_points, 3) float32, category int, parts (num_points,) int32 or None, id str).

        rng: for data sets that choose the points; None: always the same ones.
        """
        raise self._lacks("clouds", "cloud(index, rng)")

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """(points (num_points, 3) float32, category), as the classification data sets give them."""
        return self.cloud(index)[:2]

    def label_counts(self, index: int) -> np.ndarray | None:
        counts = np.zeros(self.num_classes, np.int64)
        counts[self.load(index)[1]] = 1
        return counts

    def part_counts(self, index: int) -> np.ndarray | None:
        """How many points of a cloud are of each part; None where it has no parts."""
        parts = self.cloud(index)[2]
        return None if parts is None else np.bincount(parts, minlength=len(self.part_names or ()))

    def examine(self, index: int) -> Examined:
        found = super().examine(index)
        if self.part_names:
            found.parts = found.attempt(self.part_counts, index)
        return found

    def train_sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """An augmented cloud: {"points": (3, num_points) float32, "category": () int32, and with parts
        "parts": (num_points,) int32}. In upstream's order: dropout, scale, shift, shuffle; then jitter."""
        points, category, parts, _ = self.cloud(index, rng)
        kept = dropped(len(points), rng, self.dropout)
        points = shifted(scaled(points[kept], rng, *self.scale), rng, self.shift)
        order = rng.permutation(len(points))
        points = jittered(points[order], rng, self.jitter)
        sample = {"points": np.ascontiguousarray(points.T), "category": np.asarray(category, np.int32)}
        return sample if parts is None else dict(sample, parts=parts[kept][order])

    def test_sample(self, index: int) -> dict[str, Any]:
        """{"id": str, "points": (3, num_points) float32, "category": int, "parts": (num_points,) int32 or None}."""
        points, category, parts, id = self.cloud(index)
        return {"id": id, "points": np.ascontiguousarray(points.T), "category": category, "parts": parts}
