"""Point clouds: sampling of surfaces, augmentation, and what the data sets share."""
from __future__ import annotations

import math
from typing import Dict, Optional, Sequence, Tuple

import numpy as np

from jea.errors import DataError


def sample_surface(vertices: np.ndarray, triangles: np.ndarray, n: int, rng: np.random.Generator
                   ) -> Tuple[np.ndarray, np.ndarray]:
    """n points, uniform over the area of a mesh: (n, 3) float32, and the triangle of each (n,).

    vertices: (V, 3); triangles: (T, 3) indices. p = (1 - sqrt(u)) a + sqrt(u) (1 - v) b + sqrt(u) v c.
    Raises ValueError for a surface without area.
    """
    a, b, c = (np.asarray(vertices, np.float64)[triangles[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    total = np.cumsum(area)
    if not len(total) or not 0 < total[-1] < math.inf:
        raise ValueError("the surface has no area; expected faces of at least three different corners")
    chosen = np.minimum(np.searchsorted(total, rng.random(n) * total[-1], side="right"), len(total) - 1)
    u, v = np.sqrt(rng.random(n))[:, None], rng.random(n)[:, None]
    points = (1 - u) * a[chosen] + u * (1 - v) * b[chosen] + u * v * c[chosen]
    return points.astype(np.float32), chosen


def normalise_cloud(points: np.ndarray) -> np.ndarray:
    """Into the unit sphere: minus the mean, divided by the largest distance from it. (N, 3) -> (N, 3) float32.

    A cloud whose points all coincide becomes zeros.
    """
    centred = points.astype(np.float64) - points.mean(0, dtype=np.float64)
    radius = np.sqrt((centred ** 2).sum(1).max())
    return (centred / (radius if radius > 0 else 1)).astype(np.float32)


def choose(count: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """n of `count` indices in random order; where there are fewer, each first once and then some again."""
    order = rng.permutation(count)
    return order[:n] if n <= count else np.concatenate([order, rng.integers(count, size=n - count)])


# -- augmentation ----------------------------------------------------------------------------------------------------

def dropped(count: int, rng: np.random.Generator, most: float) -> np.ndarray:
    """Random point dropout as indices (count,): with a ratio from U(0, most), each point becomes point 0.

    The number of points stays; a maximum over them does not see copies.
    """
    ratio = rng.random() * most
    index = np.arange(count)
    index[rng.random(count) <= ratio] = 0
    return index


def scaled(points: np.ndarray, rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """Anisotropic scaling: each axis times its own factor from U(low, high)."""
    return points * rng.uniform(low, high, 3).astype(np.float32)


def shifted(points: np.ndarray, rng: np.random.Generator, most: float) -> np.ndarray:
    """Each axis plus its own offset from U(-most, most)."""
    return points + rng.uniform(-most, most, 3).astype(np.float32)


def jittered(points: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Each coordinate plus N(0, sigma), cut off at 5 sigma."""
    return points + (sigma * np.clip(rng.standard_normal(points.shape), -5, 5)).astype(np.float32)


class CloudDataset:
    """What the point-cloud data sets share. A data set defines `__len__` and `cloud`.

    num_points: points of a sample.
    dropout: up to this share of the points becomes copies of the first; published recipe 0.875.
    scale: range of each axis' factor. shift: largest offset along each axis, in radii of the cloud.
    jitter: standard deviation of each coordinate's noise.
    """

    what = "clouds"  # what messages call the samples, which are pictures elsewhere
    num_classes: int  # of the shapes (categories)
    class_names: Tuple[str, ...]
    part_names: Optional[Tuple[str, ...]] = None
    parts: Optional[Tuple[Tuple[int, ...], ...]] = None  # of each category, for segmentation

    def __init__(self, *, num_points: int, dropout: float, scale: Sequence[float], shift: float, jitter: float):
        if num_points < 1:
            raise DataError(f"num_points is {num_points}; expected at least 1")
        if not 0 <= dropout <= 1 or shift < 0 or jitter < 0 or len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise DataError(f"dropout {dropout}, scale {list(scale)}, shift {shift}, jitter {jitter}; expected dropout "
                            "from 0 to 1, scale [low, high] above 0, shift and jitter of at least 0")
        self.num_points = num_points
        self.dropout, self.scale, self.shift, self.jitter = dropout, tuple(scale), shift, jitter

    def cloud(self, index: int, rng: Optional[np.random.Generator] = None):
        """(points (num_points, 3) float32, category int, parts (num_points,) int32 or None, id str).

        rng: for data sets that choose the points; None: always the same ones.
        """
        raise NotImplementedError

    def load(self, index: int) -> Tuple[np.ndarray, int]:
        """(points (num_points, 3) float32, category), as the classification data sets give them."""
        return self.cloud(index)[:2]

    def train_sample(self, index: int, rng: np.random.Generator) -> Dict[str, np.ndarray]:
        """An augmented cloud: {"points": (3, num_points) float32, "category": () int32, and with parts
        "parts": (num_points,) int32}. In upstream's order: dropout, scale, shift, shuffle; then jitter."""
        points, category, parts, _ = self.cloud(index, rng)
        kept = dropped(len(points), rng, self.dropout)
        points = shifted(scaled(points[kept], rng, *self.scale), rng, self.shift)
        order = rng.permutation(len(points))
        points = jittered(points[order], rng, self.jitter)
        sample = {"points": np.ascontiguousarray(points.T), "category": np.asarray(category, np.int32)}
        return sample if parts is None else dict(sample, parts=parts[kept][order])

    def test_sample(self, index: int) -> Dict[str, object]:
        """{"id": str, "points": (3, num_points) float32, "category": int, "parts": (num_points,) int32 or None}."""
        points, category, parts, id = self.cloud(index)
        return {"id": id, "points": np.ascontiguousarray(points.T), "category": category, "parts": parts}
