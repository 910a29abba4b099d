"""Anchors and box arithmetic in float32 numpy. Boxes are x1 y1 x2 y2; no pixel is added anywhere."""
from __future__ import annotations

import functools

import numpy as np

from jea.models.detection.styles import LARGEST_STEP, Style

RATIOS = (0.5, 1.0, 2.0)  # height / width
_f = np.float32


def cell_anchors(sizes, style: Style) -> np.ndarray:
    """The anchors around one point, (ratios x sizes, 4): ratios outside, sizes inside."""
    high = np.sqrt(np.asarray(RATIOS, _f))
    wide = _f(1) / high
    sizes = np.asarray(sizes, _f)
    w, h = ((side[:, None] * sizes).reshape(-1) for side in (wide, high))
    if style.rounded_anchors:
        return np.round(np.stack([-w, -h, w, h], 1) / _f(2))
    return np.stack([-w, -h, w, h], 1) * _f(0.5)


def rpn_sizes(levels: int = 5) -> list:
    """Sides of the RPN's anchors on P2, P3, ...: 32, 64, ..."""
    return [(32 * 2 ** level,) for level in range(levels)]


def retina_sizes(style: Style, levels: int = 5) -> list:
    """Sides of RetinaNet's anchors on P3, P4, ...: three octaves' thirds each."""
    if style.rounded_anchors:
        return [tuple(int(32 * 2 ** level * 2 ** (third / 3)) for third in range(3)) for level in range(levels)]
    return [tuple(_f(8 * 2 ** level) * _f(4 * 2 ** (third / 3)) for third in range(3)) for level in range(levels)]


@functools.lru_cache(maxsize=32)
def anchors(sizes: tuple, grids: tuple, padded: tuple, first_stride: int, style: Style) -> tuple:
    """The anchors of each level, ((H W A, 4), ...): rows of the grid outside, anchors of a cell inside.

    Args:
        sizes: of each level's anchors, a tuple of tuples. grids: (height, width) of each level.
        padded: (height, width) of the batch. first_stride: of the first level, in pixels.
    """
    found = []
    for level, (height, width) in enumerate(grids):
        stride = first_stride * 2 ** level
        down, along = (stride, stride) if style.fixed_strides else (padded[0] // height, padded[1] // width)
        y, x = np.meshgrid(np.arange(height) * down, np.arange(width) * along, indexing="ij")
        shifts = np.stack([x, y, x, y], -1).reshape(-1, 1, 4).astype(_f)
        level_anchors = (shifts + cell_anchors(sizes[level], style)).reshape(-1, 4)
        level_anchors.setflags(write=False)
        found.append(level_anchors)
    return tuple(found)


def trained_anchors(all_anchors, grids, size, first_stride: int, style: Style) -> np.ndarray:
    """Which of all levels' anchors a picture of `size` (height, width) trains, bool (A,)."""
    kept = np.ones(sum(map(len, all_anchors)), bool)
    if style.own_cells:
        own = [-(-side // 32) * 32 for side in size]
        kept &= within(grids, own, [len(a) // (h * w) for a, (h, w) in zip(all_anchors, grids)], first_stride)
    if style.border is not None:
        boxes, border = np.concatenate(all_anchors), style.border
        kept &= ((boxes[:, 0] >= -border) & (boxes[:, 1] >= -border) & (boxes[:, 2] < size[1] + border)
                 & (boxes[:, 3] < size[0] + border))
    return kept


def within(grids, size, per_cell, first_stride: int) -> np.ndarray:
    """Which anchors stand in grid cells that begin within a padded picture of `size` (height, width), bool (A,)."""
    parts = []
    for level, ((height, width), count) in enumerate(zip(grids, per_cell)):
        stride = first_stride * 2 ** level
        cells = np.zeros((height, width, count), bool)
        cells[:-(-size[0] // stride), :-(-size[1] // stride)] = True
        parts.append(cells.reshape(-1))
    return np.concatenate(parts)


def encode(boxes, truths, deviations) -> np.ndarray:
    """The steps from boxes to truths, (N, 4): (gx - px) / pw / s, ..., log(gw / pw) / s, with s the deviations."""
    size, wanted = boxes[:, 2:] - boxes[:, :2], truths[:, 2:] - truths[:, :2]
    centre, goal = boxes[:, :2] + _f(0.5) * size, truths[:, :2] + _f(0.5) * wanted
    steps = np.concatenate([(goal - centre) / size, np.log(wanted / size)], 1)
    return (steps / np.asarray(deviations, _f)).astype(_f)


def decode(boxes, steps, deviations, style: Style) -> np.ndarray:
    """Boxes moved by steps: (N, 4) with (N, K, 4) give (N, K, 4)."""
    steps = steps * np.asarray(deviations, _f) if style.clamp_both else \
        steps / (_f(1) / np.asarray(deviations, np.float64)).astype(_f)
    size = boxes[:, None, 2:] - boxes[:, None, :2]
    centre = boxes[:, None, :2] + _f(0.5) * size
    growth = np.minimum(steps[..., 2:], _f(LARGEST_STEP))
    if style.clamp_both:
        growth = np.maximum(growth, _f(-LARGEST_STEP))
    centre = steps[..., :2] * size + centre
    half = _f(0.5) * (np.exp(growth) * size)
    return np.concatenate([centre - half, centre + half], -1)


def clip(boxes, size) -> np.ndarray:
    """Boxes (..., 4) inside of a picture of `size` (height, width)."""
    height, width = size
    return np.clip(boxes, _f(0), np.array([width, height, width, height], _f))


def large_enough(boxes, smallest, exclusive: bool) -> np.ndarray:
    """Which boxes have sides of at least `smallest` (exclusive: above it); None: all."""
    if smallest is None:
        return np.ones(len(boxes), bool)
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides > _f(smallest)).all(1) if exclusive else (sides >= _f(smallest)).all(1)


def levels_of(boxes, style: Style, levels: int = 4) -> np.ndarray:
    """The level of the pyramid that a box is pooled from, int32 (N,): 0 for P2."""
    sides = boxes[:, 2:] - boxes[:, :2]
    side = np.sqrt(np.maximum(sides[:, 0] * sides[:, 1], _f(0)))
    with np.errstate(divide="ignore"):
        level = np.floor(_f(4) + np.log2(side / _f(224)) + _f(1e-6)) - 2 if style.level_top else \
            np.floor(np.log2(side / _f(56) + _f(1e-6)))
    return np.clip(level, 0, levels - 1).astype(np.int32)


def sigmoid(x) -> np.ndarray:
    """1 / (1 + e^-x) in float32."""
    with np.errstate(over="ignore"):
        return _f(1) / (_f(1) + np.exp(-x))


def softmax(x) -> np.ndarray:
    """Over the last axis, in float32."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def best_first(values, count: int) -> np.ndarray:
    """The indices of the `count` largest, falling; of equals the first index first."""
    if 0 < count < len(values):
        limit = np.partition(values, len(values) - count)[len(values) - count]
        candidates = np.flatnonzero(values >= limit)
    else:
        candidates = np.arange(len(values))
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]
