"""Masks of boxes, such as 28 x 28 probabilities, as masks of the picture."""
from __future__ import annotations

import numpy as np

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, Support
from jea.ops.detection.nms import _array, _var

SUPPORT = Support("paste_masks", cpu=FLOAT, cuda=FLOAT)

RULES = ("expand", "grid")


def _axis(low, high, cells: int, size: int, grid: bool):
    """The map (size, cells) of a mask's cells to a picture's pixels along one axis, in float32 arithmetic."""
    f = np.float32
    low, high = f(low), f(high)
    result = np.zeros((size, cells + 2), f)
    if grid:
        pixels = np.arange(max(int(np.floor(low)) - 1, 0), min(int(np.ceil(high)) + 1, size))
        with np.errstate(divide="ignore", invalid="ignore"):
            u = (pixels.astype(f) + f(0.5) - low) / (high - low) * f(2) - f(1)
        u[np.isinf(u)] = 0
        place = ((u + f(1)) * f(cells) - f(1)) * f(0.5) + f(1)  # the frame's cell is the first
        sound = (place >= 0) & (place < cells + 1)
        pixels, place = pixels[sound], place[sound]
    else:
        half, centre = (high - low) * f(0.5) * f((cells + 2) / cells), (high + low) * f(0.5)
        begin, stop = int(centre - half), int(centre + half)
        pixels = np.arange(max(begin, 0), min(stop + 1, size))
        step = f(cells + 2) / f(max(stop - begin + 1, 1))
        place = np.maximum(step * ((pixels - begin).astype(f) + f(0.5)) - f(0.5), f(0))
    first = np.minimum(place.astype(np.int64), cells + 1)
    share = np.where(first < cells + 1, place - first.astype(f), f(0))
    result[pixels, first] = 1 - share
    result[pixels, np.minimum(first + 1, cells + 1)] += share
    return result[:, 1:-1]  # the frame is zero


def paste_masks_reference(masks, boxes, size, *, rule: str = "expand", threshold=0.5):
    """paste_masks in numpy: each mask between a map of its rows and one of its columns."""
    out = []
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        rows = _axis(y1, y2, mask.shape[0], size[0], rule == "grid")
        columns = _axis(x1, x2, mask.shape[1], size[1], rule == "grid")
        out.append(rows @ mask @ columns.T)
    values = np.stack(out) if out else np.zeros((0, *size), np.float32)
    if threshold is None:
        return values
    return values >= np.float32(threshold) if rule == "grid" else values > np.float32(threshold)


def paste_masks(masks, boxes, size, *, rule: str = "expand", threshold=0.5, impl: str = "auto"):
    """Resize each mask to its box and put it into a picture of its own; 0 outside.

        "expand"  (torchvision) the mask gets a frame of zeros, the box grows by the same share, its corners are cut to
                  whole pixels, bilinear resize to them; set where the value is above the threshold
        "grid"    (mmdetection, detectron2) the centre of each pixel looks into the mask, bilinear with zeros around it;
        set
                  from the threshold on

    Args:
        masks: float32 (N, h, w).
        boxes: float32 (N, 4), x1 y1 x2 y2 in pixels.
        size: (height, width) of the picture.
        threshold: 0 to 1, or None for the values themselves.
        impl: "auto", "fused" or "ref".
    Returns:
        numpy bool (N, height, width), or float32 without a threshold. No gradient.
    Raises:
        ValueError: shapes that do not agree, an unknown rule, or "fused" where there is no kernel.
    """
    if rule not in RULES:
        raise ValueError(f"paste_masks: rule is {rule!r}; expected {' or '.join(RULES)}")
    count = masks.shape[0]
    if masks.ndim != 3 or tuple(boxes.shape) != (count, 4) or min(size) < 1:
        raise ValueError(f"paste_masks: masks are {tuple(masks.shape)}, boxes {tuple(boxes.shape)}, size "
                         f"{tuple(size)}; expected (N, h, w), (N, 4) and a height and a width of at least 1")
    if count == 0:
        return np.zeros((0, *size), np.float32 if threshold is None else bool)
    if not kernels.use_fused(impl, SUPPORT):
        return paste_masks_reference(_array(masks, np.float32), _array(boxes, np.float32), size, rule=rule,
                                     threshold=threshold)
    dtype, pointer = ("float32", "float") if threshold is None else ("uint8", "unsigned char")
    numbers = {"height": int(size[0]), "width": int(size[1]), "grid": int(rule == "grid"),
               "threshold": -1.0 if threshold is None else float(threshold)}
    with jt.no_grad():
        found = kernels.code((count, int(size[0]), int(size[1])), dtype,
                             [_var(masks, np.float32), _var(boxes, np.float32)], kernel="detection/masks", data=numbers,
                             source=f"""
            const jea::Paste sizes{{in0_shape0, in0_shape1, in0_shape2, (long)data["height"], (long)data["width"],
                                   data["grid"] != 0, (float)data["threshold"]}};
            jea::paste_masks(sizes, in0_p, in1_p, ({pointer}*)out0_p);""").numpy()
    return found if threshold is None else found.view(bool)
