"""Farthest and nearest points by plain loops."""
import numpy as np


def farthest(points, m, skip=True):
    """float64, one cloud at a time."""
    chosen = np.zeros((len(points), m), int)
    for row, p in zip(chosen, points.astype(np.float64)):
        nearest = np.full(len(p), np.inf)
        if skip:
            nearest[(p * p).sum(-1) <= 1e-3] = -1
        for j in range(1, m):
            nearest = np.minimum(nearest, ((p - p[row[j - 1]]) ** 2).sum(-1))
            row[j] = np.argmax(nearest)
    return chosen


def nearest(query, points, k):
    squares = ((query[:, :, None].astype(np.float64) - points[:, None]) ** 2).sum(-1)
    return np.argsort(squares, axis=-1, kind="stable")[..., :k], np.sort(squares, axis=-1)[..., :k]
