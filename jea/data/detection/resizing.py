"""Sizes and resizing of detectors' pictures: torchvision's, mmdetection's and detectron2's differ by a pixel in half of
all cases, and in every pixel's last digits."""
from __future__ import annotations

import numpy as np
from PIL import Image

from jea.errors import DataError, quoted

STYLES = ("torchvision", "mmdet", "detectron2")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MEAN_255, STD_255 = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_f = np.float32


def new_size(height: int, width: int, shortest: int, longest: int, style: str) -> tuple:
    """(height, width) after the resize: the shorter side becomes `shortest`, unless the longer one would pass
    `longest`."""
    if style == "detectron2":
        scale = shortest / min(height, width)
        sides = (shortest, scale * width) if height < width else (scale * height, shortest)
        over = longest / max(sides)
        if over < 1:
            sides = (sides[0] * over, sides[1] * over)
        return tuple(int(side + 0.5) for side in sides)
    if style == "mmdet":
        scale = min(longest / max(height, width), shortest / min(height, width))
        return int(height * scale + 0.5), int(width * scale + 0.5)
    scale = min(shortest / min(height, width), longest / max(height, width))
    return max(int(np.floor(height * scale)), 1), max(int(np.floor(width * scale)), 1)


def prepared(image, size, style: str) -> np.ndarray:
    """A picture (H, W, 3) uint8 resized to `size` and normalised, float32 (3, h, w)."""
    if style == "torchvision":
        pixels = _floats(image, size)
    else:
        pixels = _fixed_point(image, size) if style == "mmdet" else _pillow(image, size)
        pixels = (pixels.astype(_f) - np.array(MEAN_255, _f)) / np.array(STD_255, _f)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class Preparation:
    """How detectors see a user's pictures and those of a test. Arguments as DetectionDataset's, of which others are
    passed over."""

    def __init__(self, *, min_size=800, max_size: int = 1333, resize: str = "torchvision", multiple: int = 32,
                 **others):
        self.min_size = [min_size] if isinstance(min_size, int) else list(min_size)
        if not self.min_size or min(self.min_size) < 1 or max_size < 1:
            raise DataError(f"data.min_size is {quoted(min_size)}, data.max_size {max_size}; expected sides in pixels")
        if resize not in STYLES:
            raise DataError(f"data.resize is {quoted(resize)}; expected {', '.join(STYLES)}")
        if multiple < 1:
            raise DataError(f"data.multiple is {multiple}; expected at least 1")
        self.max_size, self.resize, self.multiple = max_size, resize, multiple

    def prepared(self, image: np.ndarray) -> np.ndarray:
        """A picture (H, W, 3) uint8 as the model takes it in testing, float32 (3, h, w)."""
        size = new_size(*image.shape[:2], self.min_size[-1], self.max_size, self.resize)
        return prepared(image, size, self.resize)


def nearest(masks, size) -> np.ndarray:
    """Masks (N, H, W) at another size: each pixel from floor(i H / h)."""
    rows, columns = (np.minimum((np.arange(new) * (_f(old) / _f(new))).astype(np.int64), old - 1)
                     for old, new in zip(masks.shape[1:], size))
    return masks[:, rows][:, :, columns]


def moved(boxes, old, new) -> np.ndarray:
    """Boxes (N, 4) x1 y1 x2 y2 of a picture of size `old` in one of size `new`, sizes (height, width)."""
    down, along = (_f(n) / _f(o) for n, o in zip(new, old))
    return (boxes.astype(_f) * np.array([along, down, along, down], _f)).astype(_f)


def padded(pictures, multiple: int) -> np.ndarray:
    """Pictures (3, h, w) side by side, with zeros at the right and the bottom up to a multiple of `multiple`."""
    height, width = (-(-max(p.shape[axis] for p in pictures) // multiple) * multiple for axis in (1, 2))
    batch = np.zeros((len(pictures), 3, height, width), _f)
    for picture, place in zip(pictures, batch):
        place[:, :picture.shape[1], :picture.shape[2]] = picture
    return batch


def _taken(first, second) -> tuple:
    """The rows or columns that are looked at, in order, and where among them the first and the second ones are: of a
    large picture that becomes small they are few."""
    taken = np.unique(np.concatenate([first, second]))
    return taken, np.searchsorted(taken, first), np.searchsorted(taken, second)


def _axis(old: int, new: int) -> tuple:
    """Cells and the second one's share for each place of an axis; half-pixel centres, in float32."""
    place = np.maximum((np.arange(new, dtype=_f) + _f(0.5)) * (_f(old) / _f(new)) - _f(0.5), _f(0))
    first = np.minimum(place.astype(np.int64), old - 1)
    second = np.minimum(first + 1, old - 1)
    return first, second, (place - first.astype(_f)).astype(_f)


def _normalised(image) -> np.ndarray:
    return (image.astype(_f) / _f(255) - np.array(MEAN, _f)) / np.array(STD, _f)


def _floats(image, size) -> np.ndarray:
    """Normalise, then bilinear without antialiasing, as torch.nn.functional.interpolate."""
    if image.shape[:2] == tuple(size):
        return _normalised(image)
    left, right, along = _axis(image.shape[1], size[1])
    upper, lower, down = _axis(image.shape[0], size[0])
    columns, left, right = _taken(left, right)
    rows, upper, lower = _taken(upper, lower)
    along, down = along[None, :, None], down[:, None, None]
    pixels = _normalised(image[np.ix_(rows, columns)])
    pixels = pixels[:, left] * (_f(1) - along) + pixels[:, right] * along
    return pixels[upper] * (_f(1) - down) + pixels[lower] * down


def _fixed_axis(old: int, new: int) -> tuple:
    place = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(place).astype(np.int64)
    share = (place - first).astype(_f)
    outside = (first < 0) | (first >= old - 1)
    first, share = np.clip(first, 0, old - 1), np.where(outside, _f(0), share)
    weights = np.rint(np.stack([_f(1) - share, share]) * _f(2048)).astype(np.int64)
    return first, np.minimum(first + 1, old - 1), weights


def _fixed_point(image, size) -> np.ndarray:
    """Bilinear in fixed-point numbers of 11 bits, as OpenCV's INTER_LINEAR on bytes."""
    if image.shape[:2] == tuple(size):
        return image
    upper, lower, down = _fixed_axis(image.shape[0], size[0])
    taken, upper, lower = _taken(upper, lower)
    image = image[taken]
    a, b, (wa, wb) = _fixed_axis(image.shape[1], size[1])
    rows = image[:, a].astype(np.int64) * wa[None, :, None] + image[:, b].astype(np.int64) * wb[None, :, None]
    a, b, (wa, wb) = upper, lower, down
    above, below = (wa[:, None, None] * (rows[a] >> 4)) >> 16, (wb[:, None, None] * (rows[b] >> 4)) >> 16
    return np.clip((above + below + 2) >> 2, 0, 255).astype(np.uint8)


def _pillow(image, size) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.BILINEAR))
