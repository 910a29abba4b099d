"""COCO's outlines as masks: polygons by the even-odd rule, run lengths, and many of them in flat arrays.

Work and memory of a picture's label are its pixels and the boxes around its outlines, whose sum is bounded.
"""
from __future__ import annotations

from typing import Sequence

import numpy as np

from jea.data.views.crops import IGNORE

MAX_COVER = 2 ** 30  # pixels of the boxes around one picture's outlines, and rows that their edges cross, together
MAX_SIDE = 2 ** 16  # of a picture
LARGEST = 1e6  # coordinate, in pixels
_CROSSINGS = 2 ** 20  # of edges and rows, at once
_LONGEST_RUN = 2 ** 40


class Outlines:
    """All annotations of a split in flat arrays, which travel to worker processes fast.

    first (n + 1,): parts of picture k are first[k] to first[k + 1]; classes (m,); is_runs (m,): a part is run lengths;
    start (m + 1,): where each part's numbers start, in `runs` (int32) or in `corners` (float32: x0, y0, x1, y1, ...);
    sizes (n, 2): height, width.
    """

    def __init__(self, pictures: Sequence[Sequence[tuple]], sizes: Sequence[tuple[int, int]]):
        parts = [part for picture in pictures for part in picture]
        self.sizes = np.array(sizes, np.int32).reshape(-1, 2)
        self.first = np.cumsum([0, *map(len, pictures)])
        self.classes = np.array([c for c, _, _ in parts], np.uint8)
        self.is_runs = np.array([runs for _, runs, _ in parts], bool)
        lengths = np.array([len(numbers) for _, _, numbers in parts], np.int64)
        # The numbers of both kinds are counted on their own.
        self.start = np.where(self.is_runs, np.cumsum(lengths * self.is_runs),
                              np.cumsum(lengths * ~self.is_runs)) - lengths
        self.count = lengths
        self.runs = np.concatenate([np.asarray(n, np.int32) for _, runs, n in parts if runs] or [np.zeros(0, np.int32)])
        self.corners = np.concatenate([np.asarray(n, np.float32) for _, runs, n in parts if not runs]
                                      or [np.zeros(0, np.float32)])

    def draw(self, place: int) -> np.ndarray:
        """The label (H, W) uint8 of a picture. Where parts of different classes overlap, the pixels are ignored."""
        height, width = self.sizes[place].tolist()
        label = np.zeros((height, width), np.uint8)
        for part in range(self.first[place], self.first[place + 1]):
            start, count = self.start[part], self.count[part]
            if self.is_runs[part]:
                box, mask = (slice(0, height), slice(0, width)), decode_runs(self.runs[start:start + count], height,
                                                                             width)
            else:
                corners = self.corners[start:start + count].reshape(-1, 2)
                box = box_of(corners, height, width)
                mask = fill_polygon(corners, height, width, box)
            shown = label[box]
            clash = mask & (shown != 0) & (shown != self.classes[part])
            shown[mask] = self.classes[part]
            shown[clash] = IGNORE
        return label


def box_of(corners: np.ndarray, height: int, width: int) -> tuple[slice, slice]:
    """The rows and columns that a polygon can reach."""
    (left, top), (right, bottom) = corners.min(0), corners.max(0)
    rows = slice(*np.clip([np.floor(top) - 1, np.ceil(bottom) + 1], 0, height).astype(int).tolist())
    columns = slice(*np.clip([np.floor(left) - 1, np.ceil(right) + 1], 0, width).astype(int).tolist())
    return rows, columns


def fill_polygon(corners: np.ndarray, height: int, width: int, box: tuple[slice, slice] | None = None) -> np.ndarray:
    """The pixels (H, W) bool whose centres lie in a polygon, by the even-odd rule.

    corners: (n, 2) x, y in COCO's units: pixel (row, column) covers [column, column + 1] x [row, row + 1].
    box: (rows, columns), as `box_of` gives them: only these pixels are computed and returned.
    """
    rows, columns = box or (slice(0, height), slice(0, width))
    height, width = rows.stop - rows.start, columns.stop - columns.start
    # Centres become whole numbers; the box begins at 0, 0.
    x0, y0 = np.asarray(corners, np.float64).T - 0.5 - np.array([[columns.start], [rows.start]])
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    # Each edge crosses the rows from `low` to `high` - 1; right of a crossing, inside and outside change places.
    low = np.clip(np.ceil(np.minimum(y0, y1)), 0, height).astype(np.int64)
    high = np.clip(np.ceil(np.maximum(y0, y1)), 0, height).astype(np.int64)
    changes = np.zeros((height, width + 1), bool)
    ends, done, count = np.cumsum(high - low), 0, len(low)
    edge = 0
    while edge < count:
        last = max(edge + 1, int(np.searchsorted(ends, done + _CROSSINGS, side="right")))
        some = np.arange(edge, last)
        counts = high[some] - low[some]
        which = np.repeat(some, counts)
        row = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + low[which]
        x = x0[which] + (row - y0[which]) * (x1[which] - x0[which]) / (y1[which] - y0[which])
        column = np.clip(np.ceil(x), 0, width).astype(np.int64)
        np.logical_xor.at(changes, (row, column), True)
        done, edge = int(ends[last - 1]), last
    return np.logical_xor.accumulate(changes, axis=1)[:, :width]



def decode_runs(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """COCO's run lengths, column by column and starting with those outside: (H, W) bool."""
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def decompress_counts(text: str) -> list[int]:
    """Run lengths of COCO's compressed form: 5 bits per character, from the fourth run on as difference to the last but
    one. ValueError for other characters and for runs of more than 40 bits."""
    counts, number, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise ValueError(f"run lengths with {character!r}, or of more than {_LONGEST_RUN} pixels")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number, shift = 0, 0
    return counts
