"""Point clouds: sampling of surfaces, normalisation, augmentation."""
from __future__ import annotations

import math

import numpy as np

_AT_ONCE = 2 ** 16  # triangles whose areas are computed together


def sample_surface(vertices: np.ndarray, triangles: np.ndarray, n: int, rng: np.random.Generator
                   ) -> tuple[np.ndarray, np.ndarray]:
    """n points, uniform over the area of a mesh: (n, 3) float32, and the triangle of each (n,).

    vertices: (V, 3); triangles: (T, 3) indices. p = (1 - sqrt(u)) a + sqrt(u) (1 - v) b + sqrt(u) v c.
    Raises ValueError for a surface without area.
    """
    vertices, area = np.asarray(vertices, np.float64), np.empty(len(triangles))
    for start in range(0, len(triangles), _AT_ONCE):
        a, b, c = (vertices[triangles[start:start + _AT_ONCE, k]] for k in range(3))
        area[start:start + _AT_ONCE] = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    total = np.cumsum(area)
    if not len(total) or not 0 < total[-1] < math.inf:
        raise ValueError("the surface has no area; expected faces of at least three different corners")
    chosen = np.minimum(np.searchsorted(total, rng.random(n) * total[-1], side="right"), len(total) - 1)
    u, v = np.sqrt(rng.random(n))[:, None], rng.random(n)[:, None]
    a, b, c = (vertices[triangles[chosen, k]] for k in range(3))
    points = (1 - u) * a + u * (1 - v) * b + u * v * c
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
