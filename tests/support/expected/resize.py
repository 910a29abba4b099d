"""Bilinear interpolation as matrices in float64, and sizes to try."""
import numpy as np

# (H, W) -> (H', W'): single rows and columns, enlarging, shrinking, both, the real one
CASES = [((1, 1), (3, 5)), ((4, 5), (1, 1)), ((1, 6), (4, 3)), ((7, 1), (2, 9)), ((5, 7), (9, 13)), ((9, 13), (4, 6)),
         ((6, 5), (3, 11)), ((2, 2), (5, 5)), ((65, 65), (513, 513))]


def weights(size, out):
    """(out, size) interpolation matrix of one axis."""
    matrix = np.zeros((out, size))
    for i in range(out):
        position = i * (size - 1) / (out - 1) if out > 1 else 0.0
        low = min(int(np.floor(position)), size - 1)
        matrix[i, low] += 1 - (position - low)
        matrix[i, min(low + 1, size - 1)] += position - low
    return matrix
