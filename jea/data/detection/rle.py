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
    points = np.asarray(corners, np.float64).reshape(-1, 2)
    reach = 5.0 * (max(height, width) + 1e6)
    whole = np.trunc(np.clip(5.0 * points + 0.5, -reach, reach)).astype(np.int64)
    x, y = whole[:, 0], whole[:, 1]
    us, vs = [], []
    for j in range(len(x)):
        k = (j + 1) % len(x)
        xs, ys, xe, ye = int(x[j]), int(y[j]), int(x[k]), int(y[k])
        dx, dy = abs(xe - xs), abs(ye - ys)
        flip = (dx >= dy and xs > xe) or (dx < dy and ys > ye)
        if flip:
            xs, xe, ys, ye = xe, xs, ye, ys
        if dx >= dy:
            t = np.arange(dx + 1)
            t = dx - t if flip else t
            us.append(t + xs)
            vs.append(np.trunc(ys + (ye - ys) / dx * t + 0.5).astype(np.int64) if dx else np.array([ys]))
        else:
            t = np.arange(dy + 1)
            t = dy - t if flip else t
            vs.append(t + ys)
            us.append(np.trunc(xs + (xe - xs) / dy * t + 0.5).astype(np.int64))
    u, v = np.concatenate(us), np.concatenate(vs)
    changed = np.flatnonzero(u[1:] != u[:-1]) + 1
    column = (np.where(u[changed] < u[changed - 1], u[changed], u[changed] - 1) + 0.5) / 5 - 0.5
    row = (np.minimum(v[changed], v[changed - 1]) + 0.5) / 5 - 0.5
    kept = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    rows = np.ceil(np.clip(row[kept], 0, height)).astype(np.int64)
    starts = np.sort(np.concatenate([column[kept].astype(np.int64) * height + rows, [height * width]]))
    steps = np.diff(np.concatenate([[0], starts])).tolist()
    runs, place = [steps[0]], 1
    while place < len(steps):  # a run of no pixels joins its neighbours
        if steps[place] > 0:
            runs.append(steps[place])
            place += 1
        else:
            place += 1
            if place < len(steps):
                runs[-1] += steps[place]
                place += 1
    return runs
