"""Overlapping patches by plain loops, and patches to try."""
import numpy as np

SPLITS = [(7, 4, 2), (3, 2, 1), (1, 1, 0), (2, 3, 0)]


def expected(x, kernel, stride, padding):
    """Patches of (B, C, H, W) by slicing, and for every element of them its pixel's index (-1: beyond the border)."""
    wide = [(0, 0), (0, 0), (padding, padding), (padding, padding)]
    padded = np.pad(x, wide)
    index = np.pad(np.arange(x.size).reshape(x.shape), wide, constant_values=-1)
    rows, columns = ((n + 2 * padding - kernel) // stride + 1 for n in x.shape[2:])

    def patches(array):
        return np.stack([array[:, :, r * stride:r * stride + kernel, q * stride:q * stride + kernel].reshape(len(x), -1)
                         for r in range(rows) for q in range(columns)], axis=1)
    return patches(padded), patches(index)
