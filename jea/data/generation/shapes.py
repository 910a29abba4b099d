"""`plain_shapes`: small synthetic pictures of one plain object each, drawn when asked for; there are no files."""
from __future__ import annotations

import math

import numpy as np

from jea.data.classification.base import ClassificationDataset
from jea.data.dataset import check_split
from jea.data.segmentation.shapes import outline_distance
from jea.errors import DataError

PLAIN_SHAPES = ("disk", "rectangle", "triangle", "star", "ring", "cross")

_COLOURS = np.array([(220, 50, 47), (38, 139, 60), (38, 100, 210), (230, 180, 20), (200, 60, 180), (30, 180, 180)])
_SPLITS = ("train", "val")


class PlainShapes(ClassificationDataset):
    """An upright object in one of six strong colours on a light ground; the class is its outline.

    Picture k of a split is a function of (split, k) alone: place, size and colours vary, classes take turns.
    split: train or val. size: side of the pictures in pixels. num_train, num_val: pictures of the splits.
    """

    num_classes, class_names = len(PLAIN_SHAPES), PLAIN_SHAPES
    root = "memory"

    def __init__(self, *, split: str = "train", size: int = 32, num_train: int = 6000, num_val: int = 3000):
        check_split(split, _SPLITS, "plain_shapes")
        if size < 16 or num_train < 1 or num_val < 1:
            raise DataError(f"size is {size}, num_train {num_train}, num_val {num_val}; expected size >= 16 and at "
                            "least 1 picture in each")
        self.split, self.size = split, size
        self._count = num_train if split == "train" else num_val

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Picture (size, size, 3) uint8 RGB and its class."""
        if not 0 <= index < self._count:
            raise IndexError(f"picture {index} of {self._count}")
        rng = np.random.Generator(np.random.PCG64((_SPLITS.index(self.split), index)))
        label, size = index % self.num_classes, self.size
        ground = 205 + 40 * rng.random() + 10 * (rng.random(3) - 0.5)
        colour = _COLOURS[int(rng.random() * len(_COLOURS))] + 30 * (rng.random(3) - 0.5)
        radius = size * (0.28 + 0.10 * rng.random())
        middle_y, middle_x = (size / 2 + 0.14 * size * (rng.random() - 0.5) - 0.5 for _ in range(2))
        x, y = np.arange(size)[None, :] - middle_x, np.arange(size)[:, None] - middle_y
        # Triangle and star point upwards, the rectangle is wider than high.
        squeeze = 0.6 if PLAIN_SHAPES[label] == "rectangle" else 1.0
        distance = outline_distance(PLAIN_SHAPES[label], x, y, radius, -math.pi / 2, squeeze)
        cover = np.clip(0.5 - distance, 0, 1)[:, :, None]  # the share of each pixel inside the outline
        return np.clip(np.rint(ground + cover * (colour - ground)), 0, 255).astype(np.uint8), label
