"""Colours, legends and the way of writing that all drawings share."""
from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image

from jea.files import write_bytes

INK, SOFT, GRID, PAPER = (38, 38, 38), (110, 110, 110), (228, 228, 228), (255, 255, 255)
WRONG, VOID = np.array([220, 30, 40]), np.array([150, 150, 150])
LINES = ((31, 98, 168), (214, 96, 22), (38, 135, 84), (150, 60, 140), (110, 110, 110), (180, 140, 20))


def legend_places(names: Sequence[str], font, right: int, left: int) -> tuple[list[tuple[int, int]], int]:
    """Places of a legend's entries, line by line, and the height that they take."""
    places, x, y = [], left, 0
    for name in names:
        wide = 17 + math.ceil(font.getlength(name)) + 16
        if x + wide > right + 16 and x > left:
            x, y = left, y + 20
        places.append((x, y))
        x += wide
    return places, y + 24 if names else 0


def draw_legend(draw, entries: Sequence[tuple[str, tuple]], places, top: int, font) -> None:
    """Draw a swatch and a name for each (name, colour), at `places` below `top`."""
    for (name, colour), (x, y) in zip(entries, places):
        draw.rectangle((x, top + y + 3, x + 11, top + y + 14), colour, SOFT)
        draw.text((x + 17, top + y + 14), name, INK, font, anchor="ls")


def write_reduced(path: str | Path, canvas: Image.Image, scale: int) -> None:
    """Write a drawing `scale` times smaller as a PNG, atomically."""
    buffer = io.BytesIO()
    canvas.resize((canvas.width // scale, canvas.height // scale), Image.Resampling.BOX).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
