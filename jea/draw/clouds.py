"""Pictures of point clouds from several sides, coloured by class or part. Drawn with numpy and Pillow alone."""
from __future__ import annotations

import math
from typing import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jea.draw import style
from jea.draw.palettes import class_colours

VIEWS = ((30, 25), (120, 25), (30, 80))  # (azimuth, elevation) in degrees; z is up
MAX_DRAWN = 20_000  # points; of a larger cloud every so many-th is drawn
_RIGHT = np.array([200, 205, 212])
_SCALE = 2  # drawn so many times larger and then reduced


def draw_cloud(points: np.ndarray, colours: np.ndarray, *, azimuth: float, elevation: float, side: int = 220
               ) -> np.ndarray:
    """One view, parallel projection, near points over far ones and brighter. Returns (side, side, 3) uint8.

    points: (N, 3), of which the cloud's unit sphere fills the picture; colours: (N, 3) uint8.
    azimuth, elevation: where the eye is, in degrees; z is up.
    """
    if points.ndim != 2 or points.shape[1] != 3 or colours.shape != points.shape:
        raise ValueError(f"points are {points.shape}, colours {colours.shape}; expected (N, 3) for both")
    step = -(-len(points) // MAX_DRAWN)
    points = np.asarray(points, np.float64) - points.mean(0, dtype=np.float64)
    points /= np.sqrt((points ** 2).sum(1).max()) or 1
    points, colours = points[::step], colours[::step]
    a, e = math.radians(azimuth), math.radians(elevation)
    right = np.array([-math.sin(a), math.cos(a), 0])
    to_eye = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    near = points @ to_eye
    size = side * _SCALE
    radius = max(1.0, size * min(0.014, 0.35 / math.sqrt(len(points))))
    reach = int(math.ceil(radius))
    zoom = size / 2 - reach - _SCALE
    column = np.rint(size / 2 + zoom * (points @ right)).astype(np.int64)
    row = np.rint(size / 2 - zoom * (points @ np.cross(to_eye, right))).astype(np.int64)
    offsets = np.arange(-reach, reach + 1)
    dy, dx = (grid[np.add.outer(offsets ** 2, offsets ** 2) <= radius ** 2] for grid in
              np.meshgrid(offsets, offsets, indexing="ij"))
    shade = (0.72 + 0.28 * np.clip(near, -1, 1))[:, None]
    shaded = np.rint(np.clip(colours * shade, 0, 255)).astype(np.uint8)
    canvas = np.full((size * size, 3), style.PAPER, np.uint8)
    order = np.argsort(near, kind="stable")  # far ones first
    pixels = np.clip(row[order, None] + dy, 0, size - 1) * size + np.clip(column[order, None] + dx, 0, size - 1)
    # Of several points on one pixel the last, the nearest, counts.
    pixels = pixels.reshape(-1)[::-1]
    unique, first = np.unique(pixels, return_index=True)
    canvas[unique] = np.repeat(shaded[order], len(dy), axis=0)[::-1][first]
    picture = Image.fromarray(canvas.reshape(size, size, 3)).resize((side, side), Image.Resampling.BOX)
    return np.array(picture)


def cloud_sheet(points: np.ndarray, prediction: np.ndarray, label: np.ndarray | None = None, *,
                names: Sequence[str], titles: Sequence[str] = ("prediction", "label", "errors"),
                views: Sequence[tuple[float, float]] = VIEWS, side: int = 220) -> np.ndarray:
    """Prediction, and where there is a label: label and errors, a column each; the views below each other; a legend.

    points: (N, 3); prediction, label: (N,) indices of classes or parts; names: one per index, of which those that
    occur are shown; titles: of the columns. Returns (h, w, 3) uint8.
    """
    colours = class_colours(len(names))
    columns = [colours[prediction]]
    shown = set(np.unique(prediction).tolist())
    if label is not None:
        columns += [colours[label], np.where((prediction == label)[:, None], _RIGHT, style.WRONG).astype(np.uint8)]
        shown |= set(np.unique(label).tolist())
    entries = [(names[k], tuple(colours[k].tolist())) for k in sorted(shown)]
    if label is not None:
        entries += [("right", tuple(_RIGHT.tolist())), ("wrong", tuple(style.WRONG.tolist()))]
    gap, head = 8, 22
    width = gap + len(columns) * (side + gap)
    font = ImageFont.load_default(size=13)
    places, legend_height = style.legend_places([name for name, _ in entries], font, width - gap, gap)
    canvas = Image.new("RGB", (width, head + len(views) * (side + gap) + legend_height), style.PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (title, column) in enumerate(zip(titles, columns)):
        left = gap + i * (side + gap)
        draw.text((left, head - 5), title, style.INK, font, anchor="ls")
        for j, (azimuth, elevation) in enumerate(views):
            view = draw_cloud(points, column, azimuth=azimuth, elevation=elevation, side=side)
            canvas.paste(Image.fromarray(view), (left, head + j * (side + gap)))
    top = head + len(views) * (side + gap)
    style.draw_legend(draw, entries, places, top, font)
    return np.array(canvas)
