"""`shape_classes`: a synthetic classification data set, drawn when asked for; there are no files.

One object on a textured ground. A class is an outline and a texture, so neither is enough alone; place, size, angle and
colours are drawn without regard to the class. A mirrored picture has the same class.
"""
from __future__ import annotations

import math

import numpy as np

from jea.data.classification.base import ClassificationDataset
from jea.data.dataset import check_split
from jea.data.segmentation.shapes import ground, new_colour, outline_distance
from jea.errors import DataError

OUTLINES = ("disk", "cross")
TEXTURES = ("plain", "barred", "striped", "checked", "dotted")  # bars lie, stripes stand
SHAPE_CLASSES = tuple(f"{texture} {outline}" for texture in TEXTURES for outline in OUTLINES)

_SPLITS = ("train", "val")


class ShapeClasses(ClassificationDataset):
    """Pictures of one object in 10 classes: picture k of a split is a function of (seed, split, k) alone.

    split: train or val. size: side of the pictures in pixels.
    num_train, num_val: how many pictures the splits have; classes take turns.
    """

    num_classes, class_names = len(SHAPE_CLASSES), SHAPE_CLASSES
    root = "memory"

    def __init__(self, *, split: str = "train", size: int = 48, num_train: int = 5000, num_val: int = 1000,
                 seed: int = 0):
        check_split(split, _SPLITS, "shape_classes")
        if size < 16 or num_train < 1 or num_val < 1 or seed < 0:
            raise DataError(f"size is {size}, num_train {num_train}, num_val {num_val}, seed {seed}; expected size >= "
                            "16, 1 or more pictures in each, and a seed of at least 0")
        self.split, self.size, self.seed = split, size, seed
        self._count = num_train if split == "train" else num_val

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Picture (size, size, 3) uint8 RGB and its class."""
        if not 0 <= index < self._count:
            raise IndexError(f"picture {index} of {self._count}")
        rng = np.random.Generator(np.random.PCG64((self.seed, _SPLITS.index(self.split), index)))
        label = index % self.num_classes
        return _draw(rng, label, self.size), label


def _draw(rng: np.random.Generator, label: int, size: int) -> np.ndarray:
    texture, outline = TEXTURES[label // len(OUTLINES)], OUTLINES[label % len(OUTLINES)]
    colours: list = []
    canvas = ground(rng, size, size, new_colour(rng, colours))
    radius = size * (0.32 + 0.1 * rng.random())
    centre_y, centre_x = (radius + (size - 2 * radius) * rng.random() for _ in range(2))
    angle, squeeze = 2 * math.pi * rng.random(), 0.75 + 0.25 * rng.random()
    x, y = np.arange(size)[None, :] - centre_x, np.arange(size)[:, None] - centre_y
    distance = outline_distance(outline, x, y, radius, angle, squeeze)
    tone = 75 * (1 if rng.random() < 0.5 else -1) + 30 * (rng.random(3) - 0.5)
    colour = 128 + 0.6 * (new_colour(rng, colours) - 128)  # so that the tones do not leave 0 to 255
    surface = colour + tone * _pattern(rng, texture, size)[:, :, None]
    cover = np.clip(0.5 - distance, 0, 1)[:, :, None]  # share of the pixel inside the outline
    canvas += cover * (surface - canvas)
    canvas += 14 * (rng.random(canvas.shape) - 0.5)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _pattern(rng: np.random.Generator, texture: str, size: int) -> np.ndarray:
    """A texture (size, size) in [-1, 1], slightly turned and shifted at random, with a period of 5 to 7 pixels."""
    turn, period = 0.3 * (rng.random() - 0.5), 5 + 2 * rng.random()
    y, x = np.arange(size)[:, None], np.arange(size)[None, :]
    u = 2 * math.pi * ((x * math.cos(turn) + y * math.sin(turn)) / period + rng.random())
    v = 2 * math.pi * ((y * math.cos(turn) - x * math.sin(turn)) / period + rng.random())
    if texture == "plain":
        return np.zeros((size, size))
    if texture == "barred":
        return np.sin(v)
    if texture == "striped":
        return np.sin(u)
    if texture == "checked":
        return np.where(np.sin(u) * np.sin(v) < 0, 1.0, -1.0)
    return np.where(np.cos(u) + np.cos(v) > 0.6, 1.0, -0.5)  # dotted
