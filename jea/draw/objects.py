"""Pictures with boxes, masks, classes and scores, found ones beside those that are there."""
from __future__ import annotations

from typing import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jea.draw.palettes import class_colours

_GAP, _HEAD = 8, 22


def drawn_objects(image: np.ndarray, boxes, labels, *, names: Sequence[str], scores=None, masks=None,
                  zoom: float = 1.0) -> Image.Image:
    """A picture (H, W, 3) uint8 with the outline, the class and perhaps the score and the mask of each object. Masks of
    another size are stretched over it."""
    colours = class_colours(max(len(names), 1))
    canvas = image.astype(np.float32)
    if masks is not None:
        for mask, label in zip(masks, labels):
            mask = enlarged(mask, image.shape[:2])
            canvas[mask] = np.float32(0.5) * canvas[mask] + np.float32(0.5) * colours[label].astype(np.float32)
    picture = Image.fromarray(np.rint(canvas).astype(np.uint8))
    size = max(1, round(picture.width * zoom)), max(1, round(picture.height * zoom))
    picture, font = picture.resize(size), ImageFont.load_default()
    draw = ImageDraw.Draw(picture)
    for place, (box, label) in enumerate(zip(np.asarray(boxes) * zoom, labels)):
        colour = tuple(int(v) for v in colours[label])
        x1, y1, x2, y2 = (float(v) for v in box)
        draw.rectangle([x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)], outline=colour, width=2)
        text = f"{names[label]}" + (f" {scores[place]:.2f}" if scores is not None else "")
        width = font.getlength(text) + 4
        left, top = max(0.0, min(x1, size[0] - width)), max(0.0, y1 - 12)
        draw.rectangle([left, top, left + width, top + 12], fill=colour)
        draw.text((left + 2, top), text, fill=(255, 255, 255) if sum(colour) < 380 else (0, 0, 0), font=font)
    return picture


def enlarged(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (h, w) bool in another size (height, width): each pixel the nearest one of the mask."""
    if mask.shape == tuple(size):
        return mask
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, mask.shape))
    return mask[np.ix_(rows, columns)]


def beside_truth(image: np.ndarray, found: dict, truth: dict | None, *, names: Sequence[str],
                 side: int = 360) -> np.ndarray:
    """Picture and detections, and where there is a ground truth: that, and what was missed and what was not there.

    found: boxes, labels, scores, perhaps masks; truth: boxes, labels, perhaps masks. Returns (h, w, 3) uint8.
    """
    zoom = side / max(image.shape[:2])
    panels = [("found", drawn_objects(image, found["boxes"], found["labels"], names=names, scores=found["scores"],
                                      masks=found.get("masks"), zoom=zoom))]
    if truth is not None:
        panels.append(("there", drawn_objects(image, truth["boxes"], truth["labels"], names=names,
                                              masks=truth.get("masks"), zoom=zoom)))
        missed, wrong = unmatched(found, truth)
        boxes = np.concatenate([truth["boxes"][missed], found["boxes"][wrong]])
        labels = np.concatenate([truth["labels"][missed], found["labels"][wrong]]).astype(int)
        grey = np.repeat(0.45 * image.mean(2, keepdims=True) + 140, 3, 2).astype(np.uint8)
        panels.append((f"{len(missed)} missed, {len(wrong)} wrong", drawn_objects(grey, boxes, labels, names=names,
                                                                                  zoom=zoom)))
    width, height = panels[0][1].size
    column = max(width, 90)
    canvas = Image.new("RGB", (_GAP + len(panels) * (column + _GAP), height + _HEAD + _GAP), (255, 255, 255))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for place, (title, panel) in enumerate(panels):
        left = _GAP + place * (column + _GAP)
        draw.text((left, 6), title, fill=(38, 38, 38), font=font)
        canvas.paste(panel, (left, _HEAD))
    return np.asarray(canvas)


def unmatched(found: dict, truth: dict, overlap: float = 0.5) -> tuple:
    """(rows of the truth without a detection of their class, rows of the detections without a truth), best scores
    first."""
    left, wrong = list(range(len(truth["boxes"]))), []
    for row, (box, label) in enumerate(zip(found["boxes"], found["labels"])):
        best, at = overlap, None
        for candidate in left:
            other = truth["boxes"][candidate]
            corner = np.maximum(box[:2], other[:2])
            inter = float(np.prod(np.maximum(np.minimum(box[2:], other[2:]) - corner, 0)))
            whole = float(np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2])) - inter
            if truth["labels"][candidate] == label and whole > 0 and inter / whole >= best:
                best, at = inter / whole, candidate
        if at is None:
            wrong.append(row)
        else:
            left.remove(at)
    return np.array(left, int), np.array(wrong, int)
