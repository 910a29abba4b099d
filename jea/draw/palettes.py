"""Colours of classes: tables of 256 for label files, and as many as there are classes."""
from __future__ import annotations

import colorsys

import numpy as np


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


def padded_palette(colours) -> np.ndarray:
    """The classes' colours and grey for all further values: (256, 3) uint8."""
    palette = np.full((256, 3), 128, np.uint8)
    palette[:len(colours)] = colours
    return palette


def class_colours(count: int) -> np.ndarray:
    """(count, 3) uint8, neighbours far apart: hues in steps of the golden ratio, three brightnesses in turn."""
    colours = [colorsys.hsv_to_rgb(0.58 + k * 0.6180339887 % 1, (0.75, 0.55, 0.9)[k % 3], (0.85, 0.95, 0.6)[k % 3])
               for k in range(count)]
    return np.rint(255 * np.asarray(colours)).astype(np.uint8).reshape(count, 3)
