"""COCO's run lengths: masks column by column, and polygons as its own tools draw them.

A mask (H, W) read column by column is a list of runs, the first of zeros. As text (in results and in compressed files)
each number is written in groups of five bits, from the fourth on as the difference to the one before last.
"""
from __future__ import annotations

import numpy as np

from jea.errors import DataError


def mask_of_runs(runs, height: int, width: int) -> np.ndarray:
    """Runs -> bool (height, width); they must add up to its pixels."""
    runs = np.asarray(runs, np.int64)
    ends = np.cumsum(runs)
    flat = np.zeros(height * width, bool)
    for start, end in zip(ends[0::2], ends[1::2]):
        flat[start:end] = True
    return flat.reshape(width, height).T


def runs_of_mask(mask) -> list:
    """Bool (H, W) -> runs, the first of zeros."""
    flat = np.asarray(mask, bool).T.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], edges, [flat.size]])
    runs = np.diff(bounds).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def text_of_runs(runs) -> str:
    """Runs -> COCO's compressed text."""
    letters = []
    for place, run in enumerate(runs):
        value = run - (runs[place - 2] if place > 2 else 0)
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            letters.append(chr(bits + 32 * more + 48))
    return "".join(letters)


def runs_of_text(text: str, pixels: int) -> list:
    """COCO's compressed text -> runs that add up to `pixels`.

    DataError, after at most one pass over the text, for what does not.
    """
    runs, value, shift, total = [], 0, 0, 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 35:
            raise DataError(f"{letter!r} is no letter of a run length" if shift <= 35 else "a run length does not end")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        total += value
        if value < 0 or total > pixels:
            raise DataError(f"run lengths of {total if value >= 0 else value} pixels in a picture of {pixels}")
        runs.append(value)
        value = shift = 0
    if shift or total != pixels:
        raise DataError(f"run lengths of {total} pixels in a picture of {pixels}")
    return runs


def runs_of_polygon(corners, height: int, width: int) -> list:
    """Runs of a polygon x0, y0, x1, y1, ...: the outline is walked in fifths of a pixel (maskApi's rule)."""
    ends = np.append(toggles_of_polygon(corners, height, width), height * width)
    return np.diff(ends, prepend=0).tolist()


_AT_ONCE = 1 << 18  # crossings of columns that are worked on at a time


def toggles_of_polygon(corners, height: int, width: int) -> np.ndarray:
    """Where runs of a polygon begin and end, ascending and below height * width.

    The outline is walked in fifths of a pixel, along the longer axis of each edge. Of that walk only the steps count
    that cross the middle of a column of the picture, and only those are made: an edge costs as many as it crosses, were
    its ends a million pixels away.
    """
    points = np.asarray(corners, np.float64).reshape(-1, 2)
    reach = 5.0 * (max(height, width) + 1e6)
    whole = np.trunc(np.clip(5.0 * points + 0.5, -reach, reach)).astype(np.int64)
    start, end = whole, np.roll(whole, -1, 0)
    size = np.abs(end - start)
    across = size[:, 0] >= size[:, 1]  # walked along x
    flip = np.where(across, start[:, 0] > end[:, 0], start[:, 1] > end[:, 1])[:, None]
    start, end = np.where(flip, end, start), np.where(flip, start, end)
    # Column j is crossed between 5 j + 2 and 5 j + 3.
    low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    first = np.maximum(-((2 - low) // 5), 0)
    count = np.maximum(np.minimum((high - 3) // 5, width - 1) - first + 1, 0)
    found, cuts = np.zeros(0, np.int64), np.cumsum(count)
    for begin, stop in _chunks(cuts):
        edge = np.repeat(np.arange(begin, stop), count[begin:stop])
        before = cuts[edge] - count[edge]  # crossings of earlier edges
        column = first[edge] + np.arange(len(edge)) + before[:1] - before
        row = np.empty(len(edge))
        for walked, rows_of in ((True, _rows_along_x), (False, _rows_along_y)):
            own = np.flatnonzero(across[edge] == walked)
            row[own] = rows_of(start[edge[own]], end[edge[own]], column[own])
        rows = np.ceil(np.clip((row + 0.5) / 5 - 0.5, 0, height)).astype(np.int64)
        places, times = np.unique(np.concatenate([found, column * height + rows]), return_counts=True)
        found = places[times % 2 == 1]  # two at one place undo each other
    return found[found < height * width]


def _chunks(cuts):
    """Ranges of edges, of at most _AT_ONCE crossings or one edge each; cuts: sums of the crossings."""
    begin = 0
    while begin < len(cuts):
        limit = (cuts[begin - 1] if begin else 0) + _AT_ONCE
        stop = max(int(np.searchsorted(cuts, limit, side="right")), begin + 1)
        yield begin, stop
        begin = stop


def _rows_along_x(start, end, column):
    """The row, in fifths, at which edges that are walked along x cross the middle of columns."""
    slope = (end[:, 1] - start[:, 1]) / np.maximum(end[:, 0] - start[:, 0], 1)
    t = 5 * column + 3 - start[:, 0]
    return np.minimum(*(np.trunc(start[:, 1] + slope * at + 0.5) for at in (t - 1, t)))


def _rows_along_y(start, end, column):
    """The same of edges that are walked along y: the step before the first one that is across."""
    slope = (end[:, 0] - start[:, 0]) / np.maximum(end[:, 1] - start[:, 1], 1)
    rises = slope > 0
    goal = np.where(rises, 5 * column + 3, 5 * column + 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.floor((5 * column + 2.5 - start[:, 0]) / slope) - 1
    for _ in range(3):  # the estimate is at most two steps early
        x = np.trunc(start[:, 0] + slope * t + 0.5)
        t += np.where(rises, x < goal, x > goal)
    return start[:, 1] + t - 1
