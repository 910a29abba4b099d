"""Pictures with words: a caption on them, or a list of likely classes beside them."""
from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jea.draw import style

_GAP, _ROW, _BAR = 8, 24, 120


def captioned(image: np.ndarray, text: str) -> np.ndarray:
    """A picture (H, W, 3) uint8 with a line of text in its upper left corner, in its own size."""
    picture = Image.fromarray(image)
    size = max(10, round(min(image.shape[:2]) / 20))
    font = ImageFont.load_default(size=size)
    draw = ImageDraw.Draw(picture)
    width = int(font.getlength(text)) + size
    draw.rectangle((0, 0, width, round(1.6 * size)), style.INK)
    draw.text((size // 2, round(1.2 * size)), text, style.PAPER, font, anchor="ls")
    return np.array(picture)


def ranked(image: np.ndarray, shares: dict, *, side: int = 320) -> np.ndarray:
    """A picture, and beside it {name: share} as bars in their order; (h, w, 3) uint8. side: the picture's longer
    side."""
    zoom = side / max(image.shape[:2])
    size = max(1, round(image.shape[1] * zoom)), max(1, round(image.shape[0] * zoom))
    font = ImageFont.load_default(size=13)
    texts = [f"{name} {share:.1%}" for name, share in shares.items()]
    right = max(_BAR, *(int(font.getlength(text)) for text in texts)) + 2 * _GAP
    height = max(size[1], 2 * _ROW * len(texts)) + 2 * _GAP
    canvas = Image.new("RGB", (_GAP + size[0] + _GAP + right, height), style.PAPER)
    canvas.paste(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS), (_GAP, _GAP))
    draw, left = ImageDraw.Draw(canvas), size[0] + 2 * _GAP
    for row, (text, share) in enumerate(zip(texts, shares.values())):
        top = _GAP + 2 * _ROW * row
        draw.text((left, top + 14), text, style.INK, font, anchor="ls")
        draw.rectangle((left, top + 20, left + _BAR, top + 28), style.GRID)
        if share > 0:
            draw.rectangle((left, top + 20, left + max(1, round(_BAR * share)), top + 28), style.LINES[0])
    return np.array(canvas)
