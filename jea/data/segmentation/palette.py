"""The colour map and the class names of PASCAL VOC."""
from __future__ import annotations

import numpy as np

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)


def voc_palette() -> np.ndarray:
    """The 256 colours of VOC label files, (256, 3) uint8.

    Bits 0, 1, 2 of the index are the top bits of red, green, blue; bits 3, 4, 5 the next ones, and so on.
    """
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            bit = 3 * level + channel
            palette[:, channel] |= ((index >> bit & 1) << (7 - level)).astype(np.uint8)
    return palette


def colour_to_index(image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Turn a colour-coded label (H, W, 3) uint8 into class indices (H, W) uint8, exactly.

    palette: (n, 3) uint8, n <= 256; the first entry of equal colours counts. A colour that is not in it is a
    ValueError that names the colour and its first position.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"colour_to_index takes uint8 (H, W, 3), got {image.dtype} {image.shape}")
    weights = np.array([65536, 256, 1])
    codes, first = np.unique(palette.astype(np.int64) @ weights, return_index=True)
    pixels = image.astype(np.int64) @ weights
    place = np.minimum(np.searchsorted(codes, pixels), len(codes) - 1)
    wrong = codes[place] != pixels
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        colour = tuple(int(v) for v in image[row, column])
        raise ValueError(f"colour {colour} at row {row}, column {column} is not in the palette of "
                         f"{len(palette)} colours")
    return first[place].astype(np.uint8)
