"""Picture and label transforms in numpy: pictures are (H, W, 3) float32, labels (H, W) uint8.

The numbers are those of the published training code (EANet, on EMANet's `dataset.py`), which resizes with
`torch.nn.functional.interpolate`: bilinear with aligned corners for pictures, nearest for labels.
"""
from __future__ import annotations

from typing import Callable, Sequence

import numpy as np

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
SCALES = tuple(k / 10 for k in range(5, 21))
IGNORE = 255

Size = tuple[int, int]
Window = tuple[int, int, int, int]


def normalise(image: np.ndarray) -> np.ndarray:
    """(pixel / 255 - MEAN) / STD per channel, in float32 throughout.

    Takes (..., H, W, 3) uint8 RGB and returns float32 of the same shape.
    """
    if image.dtype != np.uint8 or image.shape[-1:] != (3,):
        raise ValueError(f"normalise takes uint8 pictures (H, W, 3), got {image.dtype} {image.shape}")
    return standardise(image.astype(np.float32))


def denormalise(image: np.ndarray) -> np.ndarray:
    """(3, H, W) float32, normalised -> the picture (H, W, 3) uint8."""
    pixels = (image.transpose(1, 2, 0) * STD + MEAN) * np.float32(255)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def standardise(image: np.ndarray) -> np.ndarray:
    """What `normalise` does, in place: (..., 3) float32 with values from 0 to 255; returns it."""
    image /= np.float32(255)
    image -= MEAN
    image /= STD
    return image


def _check_window(window: Window | None, size: Size) -> Window:
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


def resize_bilinear(image: np.ndarray, size: Size, *, window: Window | None = None) -> np.ndarray:
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


def resize_nearest(label: np.ndarray, size: Size, *, window: Window | None = None) -> np.ndarray:
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


def fit_size(size: Size, limits: Sequence[float]) -> Size:
    """The largest (h, w) of the same shape whose longer side is <= max(limits) and shorter side <= min(limits)."""
    factor = min(max(limits) / max(size), min(limits) / min(size))
    return tuple(max(1, int(n * factor + 0.5)) for n in size)


def train_augment(image: np.ndarray, label: np.ndarray, rng: np.random.Generator, *,
                  scales: Sequence[float] = SCALES, crop_size: int = 513,
                  scale_range: Sequence[float] | None = None, fit: Sequence[int] | None = None,
                  max_class_share: float = 1.0,
                  finish: Callable[[np.ndarray], np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Random scale, padding, crop and mirror, in upstream's order.

    image: (H, W, 3) float32, normalised; label: (H, W) uint8. One of `scales`, each as likely, gives the size
    (int(H * s), int(W * s)): bilinear for the picture, nearest for the label. Where that is below crop_size,
    the bottom and right are padded: 0 in the picture (the mean colour), 255 in the label. Then a uniformly
    placed crop, then a mirror with probability 1/2. Only the pixels of the crop are computed.
    Returns (crop, crop, 3) float32 and (crop, crop) uint8.

    What mmsegmentation and JSeg do besides:
    scale_range: (low, high): the factor is uniform between them, instead of one of `scales`.
    fit: (longer, shorter) side: the size is that of `fit_size` for the factor times these, not for the factor alone.
    max_class_share: below 1, a place is drawn again (10 times at most) while the crop has only one class besides void,
        or one class has this share or more of the pixels that are not void.
    finish: applied to the crop of the picture before it is padded; then `image` need not be normalised yet.
    """
    if image.shape[:2] != label.shape:
        raise ValueError(f"picture is {image.shape[:2]}, label is {label.shape}: they must have one size")
    if not len(scales) or crop_size < 1:
        raise ValueError(f"expected at least one scale and a crop_size >= 1, got {scales} and {crop_size}")
    scale = scales[int(rng.integers(len(scales)))] if scale_range is None else rng.uniform(*scale_range)
    if fit is None:
        size = tuple(max(1, int(scale * n)) for n in label.shape)
    else:
        size = fit_size(label.shape, [max(1, int(scale * n)) for n in fit])
    for attempt in range(11):
        top, left = (int(rng.integers(max(n, crop_size) - crop_size + 1)) for n in size)
        window = (top, left, min(crop_size, size[0]), min(crop_size, size[1]))
        cropped = resize_nearest(label, size, window=window)
        if max_class_share >= 1 or _is_mixed(cropped, max_class_share):
            break
    mirror = rng.random() < 0.5
    image = resize_bilinear(image, size, window=window)
    if finish is not None:
        image = finish(image)
    image, label = pad_to(image, (crop_size, crop_size), 0), pad_to(cropped, (crop_size, crop_size), IGNORE)
    if mirror:
        image, label = image[:, ::-1], label[:, ::-1]
    return image, label


def _is_mixed(label: np.ndarray, share: float) -> bool:
    """Two or more classes, none of which has `share` of the pixels that are not void."""
    counts = np.bincount(label.reshape(-1), minlength=IGNORE + 1)[:IGNORE]
    return np.count_nonzero(counts) > 1 and counts.max() < share * counts.sum()


def distort_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random colours as in SSD and mmsegmentation: each of four changes with probability 1/2.

    image: (H, W, 3) float32 RGB with values from 0 to 255; returns such a picture. In order: brightness + U(-32, 32);
    contrast * U(0.5, 1.5), here or at the end with equal chances; saturation (of HSV) * U(0.5, 1.5); hue + U(-36, 36)
    degrees. Values are clipped after each. Unlike there, nothing is rounded to 8 bits between the steps.
    """
    if rng.random() < 0.5:
        image = np.clip(image + np.float32(rng.uniform(-32, 32)), 0, 255)
    contrast_first = rng.random() < 0.5

    def contrast(image):
        if rng.random() < 0.5:
            image = np.clip(image * np.float32(rng.uniform(0.5, 1.5)), 0, 255)
        return image
    if contrast_first:
        image = contrast(image)
    if rng.random() < 0.5:
        image = scale_saturation(image, rng.uniform(0.5, 1.5))
    if rng.random() < 0.5:
        image = shift_hue(image, rng.uniform(-36, 36))
    return image if contrast_first else contrast(image)


def scale_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """HSV's saturation times `factor`, at most 1; hue and value stay. (H, W, 3) float32 RGB of any range >= 0."""
    value = image.max(2, keepdims=True)
    chroma = value - image.min(2, keepdims=True)
    # S' = min(factor S, 1) with S = chroma / value, and every channel's distance to the value grows as S does.
    limit = np.divide(value, chroma, out=np.ones_like(value), where=chroma > 0)
    return value - (value - image) * np.minimum(np.float32(factor), limit)


def shift_hue(image: np.ndarray, degrees: float) -> np.ndarray:
    """HSV's hue turned by `degrees`; saturation and value stay. (H, W, 3) float32 RGB of any range >= 0."""
    red, green, blue = np.moveaxis(image, 2, 0)
    value = image.max(2)
    chroma = value - image.min(2)
    safe = np.where(chroma > 0, chroma, np.float32(1))
    hue = np.where(value == red, (green - blue) / safe,
                   np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4))  # in sixths of a turn
    hue += np.float32(degrees / 60)
    out = np.empty_like(image)
    for channel, offset in enumerate((5, 3, 1)):
        k = (hue + offset) % 6
        out[:, :, channel] = value - chroma * np.clip(np.minimum(k, 4 - k), 0, 1)
    return out
