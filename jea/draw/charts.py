"""Bars, confusion matrices and curves as PNG files, drawn with Pillow alone."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jea.draw import style

Series = Mapping[str, "tuple[Sequence[float], Sequence[float]]"]


def bars_png(path: str | Path, values: Mapping[str, float], *, title: str, colours: np.ndarray) -> None:
    """Draw a horizontal bar per name, of a length from 0 to 1, and write them as a PNG, atomically.

    values: {class: IoU}; a value of nan gets no bar but a dash. colours: (n, 3) uint8, a row per name.
    """
    scale, line, head, foot = 2, 20, 40, 34
    font, large = ImageFont.load_default(size=13 * scale), ImageFont.load_default(size=17 * scale)
    left = 16 * scale + math.ceil(max((font.getlength(name) for name in values), default=0))
    long, bottom = 520 * scale, (head + line * len(values)) * scale
    canvas = Image.new("RGB", (left + long + 76 * scale, bottom + foot * scale), style.PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((left, 26 * scale), title, style.INK, large, anchor="ls")
    for tick in range(0, 11, 2):
        x = left + long * tick / 10
        draw.line((x, head * scale, x, bottom), style.GRID, scale)
        draw.text((x, bottom + 6 * scale), f"{tick / 10:.1f}", style.SOFT, font, anchor="ma")
    for row, (name, value) in enumerate(values.items()):
        top = (head + line * row) * scale
        middle, end = top + line * scale / 2, left
        draw.text((left - 8 * scale, middle), name, style.INK, font, anchor="rm")
        if math.isfinite(value):
            end = left + long * value
            draw.rectangle((left, top + 4 * scale, end, top + (line - 4) * scale), tuple(map(int, colours[row])),
                           style.SOFT)
        text = f"{value:.3f}" if math.isfinite(value) else "-"
        draw.text((end + 6 * scale, middle), text, style.INK, font, anchor="lm")
    draw.line((left, head * scale, left, bottom), style.SOFT, scale)
    style.write_reduced(path, canvas, scale)


def confusion_png(path: str | Path, shares: np.ndarray, names: Sequence[str]) -> None:
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
    canvas = Image.new("RGB", (edge + 24 + n * cell + 10, edge + 24 + n * cell + 10), style.PAPER)
    draw = ImageDraw.Draw(canvas)
    start = edge + 24
    draw.text((start, 16), "predicted", style.SOFT, font, anchor="ls")
    draw.text((8, start - 6), "label", style.SOFT, font, anchor="ls")
    for i, name in enumerate(names):
        draw.text((start - 6, start + (i + 0.5) * cell), name, style.INK, font, anchor="rm")
        tag = Image.new("RGB", (edge, 16), style.PAPER)
        ImageDraw.Draw(tag).text((2, 8), name, style.INK, font, anchor="lm")
        canvas.paste(tag.rotate(90, expand=True), (start + i * cell + (cell - 16) // 2, start - edge - 2))
    for row, column in np.ndindex(n, n):
        share, x, y = float(shares[row, column]), start + column * cell, start + row * cell
        if not math.isfinite(share):
            continue
        colour = tuple(round(255 + (ink - 255) * share) for ink in style.LINES[0])
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), colour)
        if n <= 30 and share >= 0.005:
            ink = style.PAPER if share > 0.5 else style.INK
            draw.text((x + cell / 2, y + cell / 2), f"{100 * share:.0f}", ink, small, anchor="mm")
    draw.rectangle((start - 1, start - 1, start + n * cell, start + n * cell), outline=style.SOFT)
    style.write_reduced(path, canvas, 1)


def curve_png(path: str | Path, panels: Mapping[str, Series], *, title: str, xlabel: str) -> None:
    """Draw line plots over one x axis, one above the other, and write them as a PNG, atomically.

    panels: {"loss": {"train": (xs, ys)}, "mIoU": {"val": (xs, ys)}}: a panel per entry, titled with its key.
    Points that are not finite are left out; a panel may be empty.
    """
    scale = 2  # Pillow's lines have no antialiasing: draw twice the size and reduce
    width, panel_height, head, foot = 900, 250, 44, 44
    lines = {name: _finite(series) for name, series in panels.items()}
    xs = np.concatenate([x for series in lines.values() for x, _ in series.values()] or [np.zeros(0)])
    x_ticks = _ticks(xs, 8)
    canvas = Image.new("RGB", (width * scale, (head + panel_height * len(panels) + foot) * scale), style.PAPER)
    draw = ImageDraw.Draw(canvas)
    small, large = ImageFont.load_default(size=13 * scale), ImageFont.load_default(size=17 * scale)
    left, right = 76 * scale, (width - 24) * scale
    draw.text((left, 30 * scale), title, style.INK, large, anchor="ls")
    for i, (name, series) in enumerate(lines.items()):
        top, bottom = (head + panel_height * i + 26) * scale, (head + panel_height * (i + 1) - 10) * scale
        y_ticks = _ticks(np.concatenate([y for _, y in series.values()] or [np.zeros(0)]), 5)

        def place(x, y, top=top, bottom=bottom, y_ticks=y_ticks):
            return (left + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (right - left),
                    bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top))

        draw.text((left, top - 8 * scale), name, style.INK, small, anchor="ls")
        for y in y_ticks:
            _, py = place(x_ticks[0], y)
            draw.line((left, py, right, py), style.GRID, scale)
            draw.text((left - 8 * scale, py), _number(y, y_ticks), style.SOFT, small, anchor="rm")
        for x in x_ticks:
            px, _ = place(x, y_ticks[0])
            draw.line((px, top, px, bottom), style.GRID, scale)
            if i == len(lines) - 1:
                draw.text((px, bottom + 8 * scale), _number(x, x_ticks), style.SOFT, small, anchor="ma")
        draw.line((left, top, left, bottom, right, bottom), style.SOFT, scale)
        _draw_series(draw, series, place, small, right, top - 8 * scale, scale)
    draw.text((right, canvas.height - 10 * scale), xlabel, style.SOFT, small, anchor="rs")
    style.write_reduced(path, canvas, scale)


def _draw_series(draw, series: Series, place, font, legend_right: float, legend_y: float, scale: int) -> None:
    colours = [style.LINES[i % len(style.LINES)] for i in range(len(series))]
    for colour, (xs, ys) in zip(colours, series.values()):
        points = [place(x, y) for x, y in zip(xs, ys)]
        if len(points) > 1:
            draw.line(points, colour, 2 * scale, joint="curve")
        if len(points) <= 40:
            for px, py in points:
                r = 3 * scale
                draw.ellipse((px - r, py - r, px + r, py + r), colour)
    for colour, name in reversed(list(zip(colours, series))):
        draw.text((legend_right, legend_y), name, style.INK, font, anchor="rs")
        legend_right -= font.getlength(name) + 6 * scale
        y = legend_y - 5 * scale
        draw.line((legend_right - 22 * scale, y, legend_right, y), colour, 3 * scale)
        legend_right -= 40 * scale


def _finite(series: Series) -> dict[str, tuple[np.ndarray, np.ndarray]]:
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
