"""Pictures beside what a network says of them: overlays, predictions beside labels."""
from __future__ import annotations

from typing import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jea.draw import style

IGNORED = 255  # in a label: the pixel counts for no class


def overlay(image: np.ndarray, label: np.ndarray, palette: np.ndarray, alpha: float = 0.55, *,
            background: int | None = 0) -> np.ndarray:
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
    out[(label != prediction) & (label != IGNORED)] = style.WRONG
    out[label == IGNORED] = style.VOID
    return np.rint(out).astype(np.uint8)


def side_by_side(image: np.ndarray, prediction: np.ndarray, label: np.ndarray | None = None, *,
                 palette: np.ndarray, class_names: Sequence[str], side: int = 320,
                 background: int | None = 0) -> np.ndarray:
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
        entries += [("wrong", tuple(style.WRONG.tolist())), ("ignored", tuple(style.VOID.tolist()))]
    font = ImageFont.load_default(size=13)
    places, legend_height = style.legend_places([name for name, _ in entries], font, canvas_width - gap, gap)

    canvas = Image.new("RGB", (canvas_width, head + size[1] + gap + legend_height), style.PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (title, pixels) in enumerate(panels):
        left = gap + i * (column + gap)
        draw.text((left, head - 4), title, style.INK, font, anchor="ls")
        # A label must not be blurred when it is enlarged.
        method = Image.Resampling.NEAREST if zoom > 1 and i else Image.Resampling.LANCZOS
        canvas.paste(Image.fromarray(pixels).resize(size, method), (left, head))
    top = head + size[1] + gap
    style.draw_legend(draw, entries, places, top, font)
    return np.array(canvas)


def shrunk_size(height: int, width: int, pixels: int) -> tuple[int, int]:
    """(height, width) of a picture's copy of at most so many pixels, in its shape; its own where it has no more."""
    if height * width <= pixels:
        return height, width
    factor = (pixels / (height * width)) ** 0.5
    return max(1, min(pixels, int(height * factor))), max(1, min(pixels, int(width * factor)))


def shrunk(image: np.ndarray, pixels: int) -> np.ndarray:
    """A picture (H, W, 3) uint8, or a copy of at most so many pixels, in its shape."""
    size = shrunk_size(*image.shape[:2], pixels)
    return image if size == image.shape[:2] else \
        np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def resized_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels (H, W) uint8 in another size, nearest neighbour."""
    return labels if labels.shape == size else \
        np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


def _check_size(image: np.ndarray, other: np.ndarray, what: str) -> None:
    if image.ndim != 3 or image.shape[:2] != other.shape:
        raise ValueError(f"picture is {image.shape}, {what} is {other.shape}; expected (H, W, 3) and (H, W)")
