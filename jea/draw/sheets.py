"""Many pictures on one sheet."""
from __future__ import annotations

import numpy as np


def sheet(images: np.ndarray, columns: int, *, zoom: int = 1, gap: int = 2) -> np.ndarray:
    """Pictures (N, H, W, 3) uint8 row by row on a white sheet, each pixel enlarged to zoom x zoom; (h, w, 3) uint8."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images) or columns < 1:
        raise ValueError(f"sheet takes uint8 (N, H, W, 3) and at least 1 column, got {images.dtype} {images.shape}, "
                         f"{columns}")
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    _, height, width, _ = images.shape
    rows = -(-len(images) // columns)
    out = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = gap + number // columns * (height + gap), gap + number % columns * (width + gap)
        out[top:top + height, left:left + width] = image
    return out
