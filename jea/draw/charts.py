"""Pictures for people to look at: overlays, predictions beside labels, curves. Drawn with Pillow alone."""
from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jea.data.views.crops import IGNORE
from jea.files import write_bytes

_INK, _SOFT, _GRID, _PAPER = (38, 38, 38), (110, 110, 110), (228, 228, 228), (255, 255, 255)
_WRONG, _VOID = np.array([220, 30, 40]), np.array([150, 150, 150])
_LINES = ((31, 98, 168), (214, 96, 22), (38, 135, 84), (150, 60, 140), (110, 110, 110), (180, 140, 20))

Series = Mapping[str, Tuple[Sequence[float], Sequence[float]]]


def overlay(image: np.ndarray, label: np.ndarray, palette: np.ndarray, alpha: float = 0.55, *,
            background: Optional[int] = 0) -> np.ndarray:
    """Lay the classes' colours over a picture; the class `background` stays clear.

    image: (H, W, 3) uint8; label: (H, W) indices; palette: (256, 3) uint8; alpha: the colour's weight.
    Returns (H, W, 3) uint8.
    """
    _check_size(image, label, "label")
    mixed = (1 - alpha) * image + alpha * palette[label]
    mixed = np.rint(mixed).astype(np.uint8)
    return mixed if background is None else np.where(label[:, :, None] == background, image, mixed)


def _errors(image: np.ndarray, prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The faded grey picture, wrong pixels red, ignored ones grey."""
    grey = image.mean(axis=2, keepdims=True)
    out = np.repeat(0.45 * grey + 0.55 * 255, 3, axis=2)
    out[(label != prediction) & (label != IGNORE)] = _WRONG
    out[label == IGNORE] = _VOID
    return np.rint(out).astype(np.uint8)


def side_by_side(image: np.ndarray, prediction: np.ndarray, label: Optional[np.ndarray] = None, *,
                 palette: np.ndarray, class_names: Sequence[str], side: int = 320,
                 background: Optional[int] = 0) -> np.ndarray:
    """Picture, prediction, and where there is a label: label and errors; below, a legend of the classes.

    image: (H, W, 3) uint8; prediction, label: (H, W) indices, 255 in the label = ignored.
    palette: (256, 3) uint8; class_names: one per class, of which those that occur are shown.
    side: length of the longer side of each panel, in pixels. background: the class that stays clear, or None.
    Returns (h, w, 3) uint8.
    """
    _check_size(image, prediction, "prediction")
    panels = [("picture", image), ("prediction", overlay(image, prediction, palette, background=background))]
    shown = set(np.unique(prediction).tolist())
    if label is not None:
        _check_size(image, label, "label")
        panels += [("label", overlay(image, label, palette, background=background)),
                   ("errors", _errors(image, prediction, label))]
        shown |= set(np.unique(label).tolist())
    height, width = image.shape[:2]
    zoom = side / max(height, width)
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    column = max(size[0], 90)  # a very narrow picture still gets a readable title
    gap, head = 8, 22
    canvas_width = gap + len(panels) * (column + gap)

    entries = [(class_names[i], tuple(int(v) for v in palette[i])) for i in sorted(shown)
               if i != background and i < len(class_names)]
    if label is not None:
        entries += [("wrong", tuple(_WRONG.tolist())), ("ignored", tuple(_VOID.tolist()))]
    font = ImageFont.load_default(size=13)
    places, legend_height = _flow([name for name, _ in entries], font, canvas_width - gap, gap)

    canvas = Image.new("RGB", (canvas_width, head + size[1] + gap + legend_height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (title, pixels) in enumerate(panels):
        left = gap + i * (column + gap)
        draw.text((left, head - 4), title, _INK, font, anchor="ls")
        # A label must not be blurred when it is enlarged.
        method = Image.Resampling.NEAREST if zoom > 1 and i else Image.Resampling.LANCZOS
        canvas.paste(Image.fromarray(pixels).resize(size, method), (left, head))
    top = head + size[1] + gap
    for (name, colour), (x, y) in zip(entries, places):
        draw.rectangle((x, top + y + 3, x + 11, top + y + 14), colour, _SOFT)
        draw.text((x + 17, top + y + 14), name, _INK, font, anchor="ls")
    return np.array(canvas)


def _flow(names: Sequence[str], font, right: int, left: int) -> Tuple[List[Tuple[int, int]], int]:
    """Places of the legend's entries, line by line, and the height that they take."""
    places, x, y = [], left, 0
    for name in names:
        wide = 17 + math.ceil(font.getlength(name)) + 16
        if x + wide > right + 16 and x > left:
            x, y = left, y + 20
        places.append((x, y))
        x += wide
    return places, y + 24 if names else 0


def _check_size(image: np.ndarray, other: np.ndarray, what: str) -> None:
    if image.ndim != 3 or image.shape[:2] != other.shape:
        raise ValueError(f"picture is {image.shape}, {what} is {other.shape}; expected (H, W, 3) and (H, W)")


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


def bars_png(path: Union[str, Path], values: Mapping[str, float], *, title: str, colours: np.ndarray) -> None:
    """Draw a horizontal bar per name, of a length from 0 to 1, and write them as a PNG, atomically.

    values: {class: IoU}; a value of nan gets no bar but a dash. colours: (n, 3) uint8, a row per name.
    """
    scale, line, head, foot = 2, 20, 40, 34
    font, large = ImageFont.load_default(size=13 * scale), ImageFont.load_default(size=17 * scale)
    left = 16 * scale + math.ceil(max((font.getlength(name) for name in values), default=0))
    long, bottom = 520 * scale, (head + line * len(values)) * scale
    canvas = Image.new("RGB", (left + long + 76 * scale, bottom + foot * scale), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((left, 26 * scale), title, _INK, large, anchor="ls")
    for tick in range(0, 11, 2):
        x = left + long * tick / 10
        draw.line((x, head * scale, x, bottom), _GRID, scale)
        draw.text((x, bottom + 6 * scale), f"{tick / 10:.1f}", _SOFT, font, anchor="ma")
    for row, (name, value) in enumerate(values.items()):
        top = (head + line * row) * scale
        middle, end = top + line * scale / 2, left
        draw.text((left - 8 * scale, middle), name, _INK, font, anchor="rm")
        if math.isfinite(value):
            end = left + long * value
            draw.rectangle((left, top + 4 * scale, end, top + (line - 4) * scale), tuple(map(int, colours[row])), _SOFT)
        text = f"{value:.3f}" if math.isfinite(value) else "-"
        draw.text((end + 6 * scale, middle), text, _INK, font, anchor="lm")
    draw.line((left, head * scale, left, bottom), _SOFT, scale)
    _write_reduced(path, canvas, scale)


def confusion_png(path: Union[str, Path], shares: np.ndarray, names: Sequence[str]) -> None:
    """Draw a confusion matrix as a PNG, atomically: a row per class of the labels, a column per predicted class.

    shares: (n, n), what part of each class was predicted as which; rows of nan stay empty. The darker, the more; up to
    30 classes the cells carry percent.
    """
    n = len(names)
    if shares.shape != (n, n):
        raise ValueError(f"shares are {shares.shape} for {n} names; expected ({n}, {n})")
    cell = 34 if n <= 30 else 12
    font = ImageFont.load_default(size=12 if n <= 30 else 9)
    small = ImageFont.load_default(size=11)
    edge = 14 + math.ceil(max(font.getlength(name) for name in names))
    canvas = Image.new("RGB", (edge + 24 + n * cell + 10, edge + 24 + n * cell + 10), _PAPER)
    draw = ImageDraw.Draw(canvas)
    start = edge + 24
    draw.text((start, 16), "predicted", _SOFT, font, anchor="ls")
    draw.text((8, start - 6), "label", _SOFT, font, anchor="ls")
    for i, name in enumerate(names):
        draw.text((start - 6, start + (i + 0.5) * cell), name, _INK, font, anchor="rm")
        tag = Image.new("RGB", (edge, 16), _PAPER)
        ImageDraw.Draw(tag).text((2, 8), name, _INK, font, anchor="lm")
        canvas.paste(tag.rotate(90, expand=True), (start + i * cell + (cell - 16) // 2, start - edge - 2))
    for row, column in np.ndindex(n, n):
        share, x, y = float(shares[row, column]), start + column * cell, start + row * cell
        if not math.isfinite(share):
            continue
        colour = tuple(round(255 + (ink - 255) * share) for ink in _LINES[0])
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), colour)
        if n <= 30 and share >= 0.005:
            ink = _PAPER if share > 0.5 else _INK
            draw.text((x + cell / 2, y + cell / 2), f"{100 * share:.0f}", ink, small, anchor="mm")
    draw.rectangle((start - 1, start - 1, start + n * cell, start + n * cell), outline=_SOFT)
    _write_reduced(path, canvas, 1)


def _write_reduced(path: Union[str, Path], canvas: Image.Image, scale: int) -> None:
    buffer = io.BytesIO()
    canvas.resize((canvas.width // scale, canvas.height // scale), Image.Resampling.BOX).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def curve_png(path: Union[str, Path], panels: Mapping[str, Series], *, title: str, xlabel: str) -> None:
    """Draw line plots over one x axis, one above the other, and write them as a PNG, atomically.

    panels: {"loss": {"train": (xs, ys)}, "mIoU": {"val": (xs, ys)}}: a panel per entry, titled with its key.
    Points that are not finite are left out; a panel may be empty.
    """
    scale = 2  # Pillow's lines have no antialiasing: draw twice the size and reduce
    width, panel_height, head, foot = 900, 250, 44, 44
    lines = {name: _finite(series) for name, series in panels.items()}
    xs = np.concatenate([x for series in lines.values() for x, _ in series.values()] or [np.zeros(0)])
    x_ticks = _ticks(xs, 8)
    canvas = Image.new("RGB", (width * scale, (head + panel_height * len(panels) + foot) * scale), _PAPER)
    draw = ImageDraw.Draw(canvas)
    small, large = ImageFont.load_default(size=13 * scale), ImageFont.load_default(size=17 * scale)
    left, right = 76 * scale, (width - 24) * scale
    draw.text((left, 30 * scale), title, _INK, large, anchor="ls")
    for i, (name, series) in enumerate(lines.items()):
        top, bottom = (head + panel_height * i + 26) * scale, (head + panel_height * (i + 1) - 10) * scale
        y_ticks = _ticks(np.concatenate([y for _, y in series.values()] or [np.zeros(0)]), 5)

        def place(x, y, top=top, bottom=bottom, y_ticks=y_ticks):
            return (left + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (right - left),
                    bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top))

        draw.text((left, top - 8 * scale), name, _INK, small, anchor="ls")
        for y in y_ticks:
            _, py = place(x_ticks[0], y)
            draw.line((left, py, right, py), _GRID, scale)
            draw.text((left - 8 * scale, py), _number(y, y_ticks), _SOFT, small, anchor="rm")
        for x in x_ticks:
            px, _ = place(x, y_ticks[0])
            draw.line((px, top, px, bottom), _GRID, scale)
            if i == len(lines) - 1:
                draw.text((px, bottom + 8 * scale), _number(x, x_ticks), _SOFT, small, anchor="ma")
        draw.line((left, top, left, bottom, right, bottom), _SOFT, scale)
        _draw_series(draw, series, place, small, right, top - 8 * scale, scale)
    draw.text((right, canvas.height - 10 * scale), xlabel, _SOFT, small, anchor="rs")
    _write_reduced(path, canvas, scale)


def _draw_series(draw, series: Series, place, font, legend_right: float, legend_y: float, scale: int) -> None:
    colours = [_LINES[i % len(_LINES)] for i in range(len(series))]
    for colour, (xs, ys) in zip(colours, series.values()):
        points = [place(x, y) for x, y in zip(xs, ys)]
        if len(points) > 1:
            draw.line(points, colour, 2 * scale, joint="curve")
        if len(points) <= 40:
            for px, py in points:
                r = 3 * scale
                draw.ellipse((px - r, py - r, px + r, py + r), colour)
    for colour, name in reversed(list(zip(colours, series))):
        draw.text((legend_right, legend_y), name, _INK, font, anchor="rs")
        legend_right -= font.getlength(name) + 6 * scale
        y = legend_y - 5 * scale
        draw.line((legend_right - 22 * scale, y, legend_right, y), colour, 3 * scale)
        legend_right -= 40 * scale


def _finite(series: Series) -> Dict[str, Tuple[np.ndarray, np.ndarray]]:
    out = {}
    for name, (xs, ys) in series.items():
        xs, ys = np.asarray(xs, np.float64), np.asarray(ys, np.float64)
        if xs.shape != ys.shape or xs.ndim != 1:
            raise ValueError(f"series {name}: {xs.shape} xs, {ys.shape} ys; expected two lists of one length")
        keep = np.isfinite(xs) & np.isfinite(ys)
        out[name] = xs[keep], ys[keep]
    return out


def _ticks(values: np.ndarray, about: int) -> np.ndarray:
    """At least two round numbers, evenly spaced, whose range holds all values."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    return step * np.arange(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)


def _number(value: float, ticks: np.ndarray) -> str:
    if max(abs(ticks[0]), abs(ticks[-1])) >= 1e6:
        return f"{value:g}"
    step = ticks[1] - ticks[0]
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
