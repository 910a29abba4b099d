"""Picture and label transforms in numpy: pictures are (H, W, 3) float32, labels (H, W) uint8.

The numbers are those of the published training code (EANet, on EMANet's `dataset.py`), which resizes with
`torch.nn.functional.interpolate`: bilinear with aligned corners for pictures, nearest for labels.
"""
from __future__ import annotations

from typing import Optional, Sequence, Tuple

import numpy as np

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
SCALES = tuple(k / 10 for k in range(5, 21))
IGNORE = 255

Size = Tuple[int, int]
Window = Tuple[int, int, int, int]


def normalise(image: np.ndarray) -> np.ndarray:
    """(pixel / 255 - MEAN) / STD per channel, in float32 throughout.

    Takes (..., H, W, 3) uint8 RGB and returns float32 of the same shape.
    """
    if image.dtype != np.uint8 or image.shape[-1:] != (3,):
        raise ValueError(f"normalise takes uint8 pictures (H, W, 3), got {image.dtype} {image.shape}")
    out = image.astype(np.float32)
    out /= np.float32(255)
    out -= MEAN
    out /= STD
    return out


def _check_window(window: Optional[Window], size: Size) -> Window:
    if min(size) < 1:
        raise ValueError(f"cannot resize to {size}: both sides must be at least 1")
    top, left, height, width = window or (0, 0, *size)
    if top < 0 or left < 0 or height < 1 or width < 1 or top + height > size[0] or left + width > size[1]:
        raise ValueError(f"window {window} (top, left, height, width) does not lie in a picture of {size}")
    return top, left, height, width


def _linear_axis(n_in: int, n_out: int, start: int, count: int):
    """Both source positions and the weight of the second, for `count` outputs from `start`.

    The position is a float32 product, as in torch; in float64 the weights differ by up to 3e-5.
    """
    step = np.float32(n_in - 1) / np.float32(n_out - 1) if n_out > 1 else np.float32(0)
    position = np.arange(start, start + count, dtype=np.float32) * step
    first = np.minimum(position.astype(np.intp), n_in - 1)
    return first, np.minimum(first + 1, n_in - 1), position - first.astype(np.float32)


def resize_bilinear(image: np.ndarray, size: Size, *, window: Optional[Window] = None) -> np.ndarray:
    """Bilinear resize with aligned corners: out[i] lies at i * (n_in - 1) / (n_out - 1) of the input.

    image: (H, W, C) float32; size: (h, w). Returns (h, w, C) float32, a new array.
    window: (top, left, height, width); compute only that part of the resized picture, with the same numbers.
    Equals `torch.nn.functional.interpolate(mode="bilinear", align_corners=True)` to float32 rounding.
    """
    if image.ndim != 3 or image.dtype != np.float32:
        raise ValueError(f"resize_bilinear takes float32 (H, W, C), got {image.dtype} {image.shape}")
    top, left, height, width = _check_window(window, size)
    if image.shape[:2] == tuple(size):
        return image[top:top + height, left:left + width].copy()
    y0, y1, wy = _linear_axis(image.shape[0], size[0], top, height)
    x0, x1, wx = _linear_axis(image.shape[1], size[1], left, width)
    offset = x0[0]
    columns = image[:, offset:x1[-1] + 1]
    rows, below = columns[y0], columns[y1]
    below -= rows
    below *= wy[:, None, None]
    rows += below
    out, right = np.take(rows, x0 - offset, axis=1), np.take(rows, x1 - offset, axis=1)
    right -= out
    right *= wx[:, None]
    out += right
    return out


def _nearest_axis(n_in: int, n_out: int, start: int, count: int) -> np.ndarray:
    step = np.float32(n_in) / np.float32(n_out)  # float32 as in torch: 3 * (1 / 3) must round the same way
    position = np.arange(start, start + count, dtype=np.float32) * step
    return np.minimum(position.astype(np.intp), n_in - 1)


def resize_nearest(label: np.ndarray, size: Size, *, window: Optional[Window] = None) -> np.ndarray:
    """Nearest resize, out[i] = in[floor(i * n_in / n_out)], as torch's `mode="nearest"`.

    label: (H, W) of any dtype; size: (h, w); window as in `resize_bilinear`. Returns a new array.
    """
    if label.ndim != 2:
        raise ValueError(f"resize_nearest takes (H, W), got {label.shape}")
    top, left, height, width = _check_window(window, size)
    rows = _nearest_axis(label.shape[0], size[0], top, height)
    columns = _nearest_axis(label.shape[1], size[1], left, width)
    return label[rows[:, None], columns]


def pad_to(array: np.ndarray, size: Size, value: float) -> np.ndarray:
    """Pad (H, W, ...) at the bottom and right with `value` up to size (h, w); a copy only where it pads."""
    height, width = array.shape[:2]
    if size[0] < height or size[1] < width:
        raise ValueError(f"cannot pad ({height}, {width}) to the smaller size {tuple(size)}")
    if (height, width) == tuple(size):
        return array
    out = np.full(tuple(size) + array.shape[2:], value, array.dtype)
    out[:height, :width] = array
    return out


def pad_8n1(n: int, stride: int = 8) -> int:
    """The smallest size >= n that is 1 modulo `stride`, so that the network's grid fits with aligned corners.

    Upstream's `pad_inf`: n + (stride + 1 - n % stride) % stride.
    """
    return n + (stride + 1 - n % stride) % stride


def train_augment(image: np.ndarray, label: np.ndarray, rng: np.random.Generator, *,
                  scales: Sequence[float] = SCALES, crop_size: int = 513) -> Tuple[np.ndarray, np.ndarray]:
    """Random scale, padding, crop and mirror, in upstream's order.

    image: (H, W, 3) float32, normalised; label: (H, W) uint8. One of `scales`, each as likely, gives the size
    (int(H * s), int(W * s)): bilinear for the picture, nearest for the label. Where that is below crop_size,
    the bottom and right are padded: 0 in the picture (the mean colour), 255 in the label. Then a uniformly
    placed crop, then a mirror with probability 1/2. Only the pixels of the crop are computed.
    Returns (crop, crop, 3) float32 and (crop, crop) uint8.
    """
    if image.shape[:2] != label.shape:
        raise ValueError(f"picture is {image.shape[:2]}, label is {label.shape}: they must have one size")
    if not len(scales) or crop_size < 1:
        raise ValueError(f"expected at least one scale and a crop_size >= 1, got {scales} and {crop_size}")
    scale = scales[int(rng.integers(len(scales)))]
    size = tuple(max(1, int(scale * n)) for n in label.shape)
    top, left = (int(rng.integers(max(n, crop_size) - crop_size + 1)) for n in size)
    mirror = rng.random() < 0.5
    window = (top, left, min(crop_size, size[0]), min(crop_size, size[1]))
    image = pad_to(resize_bilinear(image, size, window=window), (crop_size, crop_size), 0)
    label = pad_to(resize_nearest(label, size, window=window), (crop_size, crop_size), IGNORE)
    if mirror:
        image, label = image[:, ::-1], label[:, ::-1]
    return image, label
