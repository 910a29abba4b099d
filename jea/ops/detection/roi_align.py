"""RoIAlign (He et al., Mask R-CNN) over all levels of a feature pyramid in one call."""
from __future__ import annotations

import math

import numpy as np

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, Support
from jea.ops.detection.nms import _array, _var
from jea.ops.function import Function

SUPPORT = Support("roi_align", cpu=FLOAT, cuda=FLOAT)

MAX_LEVELS = 8  # kLevels in roi_align.h


class _RoiAlign(Function):
    def execute(self, rois, levels, numbers, *features):
        self.rois, self.levels, self.numbers = rois, levels, numbers
        self.shapes = [tuple(f.shape) for f in features]
        inputs = [rois, levels, *features]
        pointers = ", ".join(f"in{2 + k}_p" for k in range(len(features)))
        block, size = numbers["block"], (numbers["out_h"], numbers["out_w"])
        shape = (rois.shape[0], numbers["channels"], *size) if numbers["plain"] else \
            (rois.shape[0], *size, block) if len(self.shapes[0]) == 4 else \
            (rois.shape[0], numbers["channels"] // block, *size, block)
        return kernels.code(shape, "float32", inputs, kernel="detection/roi_align", data=numbers, source=f"""
            const float* const features[] = {{{pointers}}};
            {_SIZES} jea::roi_align(sizes, features, in0_p, in1_p, out0_p, nullptr);""")

    def grad(self, dy):
        pointers = ", ".join(f"out{k}_p" for k in range(len(self.shapes)))
        gradients = kernels.code(
            self.shapes, ["float32"] * len(self.shapes), [self.rois, self.levels, dy], kernel="detection/roi_align",
            data=self.numbers, workspace=2 + 2 * max(int(np.prod(shape)) for shape in self.shapes), source=f"""
            float* const gradients[] = {{{pointers}}};
            {_SIZES} jea::roi_align_backward(sizes, in2_p, in0_p, in1_p, gradients, workspace);""")
        return (None, None, None, *gradients)


_SIZES = """
    jea::RoiAlign sizes{};
    sizes.batch = (long)data["batch"];
    sizes.channels = (long)data["channels"];
    sizes.regions = in0_shape0;
    sizes.out_h = (long)data["out_h"];
    sizes.out_w = (long)data["out_w"];
    sizes.levels = (long)data["levels"];
    sizes.sampling = (long)data["sampling"];
    sizes.aligned = data["aligned"] != 0;
    sizes.block = (long)data["block"];
    sizes.plain = data["plain"] != 0;
""" + "".join(f"""
    if (sizes.levels > {k}) {{
        sizes.heights[{k}] = (long)data["h{k}"];
        sizes.widths[{k}] = (long)data["w{k}"];
        sizes.scales[{k}] = (float)data["s{k}"];
    }}""" for k in range(MAX_LEVELS))


def _maps(low, high, bins, size, sampling, aligned):
    """The map (bins, size) of cells to the means of the samples along one axis, and the number of samples."""
    extent = high - low if aligned else max(high - low, 1.0)
    count = sampling if sampling > 0 else max(int(np.ceil(extent / bins)), 0)
    at = low + np.arange(bins)[:, None] * extent / bins + (np.arange(count) + 0.5) * extent / bins / max(count, 1)
    inside = (at >= -1) & (at <= size)
    at = np.clip(at, 0, size - 1)
    first = np.minimum(at.astype(np.int64), size - 1)
    share = at - first
    result = np.zeros((bins, size))
    rows = np.broadcast_to(np.arange(bins)[:, None], at.shape)
    np.add.at(result, (rows, first), (1 - share) * inside)
    np.add.at(result, (rows, np.minimum(first + 1, size - 1)), share * inside)
    return result, count


def roi_align_reference(features, rois, levels, *, size, scales, sampling=0, aligned=False):
    """roi_align composed of Jittor's own functions: a product of two matrices per region. With gradient."""
    rois, levels = _array(rois, np.float64), _array(levels, np.int64)
    found = []
    for (picture, *corners), level in zip(rois, levels):
        x1, y1, x2, y2 = (c * scales[level] - (0.5 if aligned else 0.0) for c in corners)
        h, w = features[level].shape[2:]
        rows, down = _maps(y1, y2, size[0], h, sampling, aligned)
        columns, along = _maps(x1, x2, size[1], w, sampling, aligned)
        rows = jt.array((rows / max(down * along, 1)).astype(np.float32))
        columns = jt.array(np.ascontiguousarray(columns.T).astype(np.float32))
        plane = features[level][int(picture)]  # C H W
        c = plane.shape[0]
        across = jt.matmul(plane.reshape(c * h, w), columns).reshape(c, h, size[1])
        across = across.transpose(1, 0, 2).reshape(h, c * size[1])
        found.append(jt.matmul(rows, across).reshape(size[0], c, size[1]).transpose(1, 0, 2))
    return jt.stack(found)


# the rank of features, and the axes that all levels share: the batch and the channels
_AXES = {"nchw": (4, 0, 1), "nhwc": (4, 0, 3), "blocked": (5, 0, 1, 4)}


def _to_nchw(x, layout: str):
    if layout == "blocked":
        b, groups, h, w, block = x.shape
        return x.transpose(0, 1, 4, 2, 3).reshape(b, groups * block, h, w)
    return x.transpose(0, 3, 1, 2) if layout == "nhwc" else x


def _from_nchw(x, layout: str, block: int):
    if layout == "blocked":
        b, c, h, w = x.shape
        return x.reshape(b, c // block, block, h, w).transpose(0, 1, 3, 4, 2)
    return x.transpose(0, 2, 3, 1) if layout == "nhwc" else x


def roi_align(features, rois, levels=None, *, size, scales, sampling: int = 0, aligned: bool = False,
              layout: str = "nchw", plain: bool = True, impl: str = "auto"):
    """Pool regions of a feature pyramid to one size: each bin is the mean of a grid of bilinear samples.

    A region x1 y1 x2 y2 becomes x1 scale - off, ... with off = 0.5 if aligned; without, its sides are at least one
    cell. A sample more than one cell outside of the map is 0. The gradient is that of the features, in a fixed order of
    sums.

    Args:
        features: a list of float32, (B, C, H_l, W_l) or as `layout` says.
        rois: (R, 5): picture, x1, y1, x2, y2 in pixels.
        levels: int32 (R,): the level of each region; None where there is one level.
        size: (height, width) of the result in bins.
        scales: cells per pixel, one for each level.
        sampling: samples of a bin along each axis; 0: ceil(side of the region in cells / bins).
        aligned: shift by half a pixel (detectron2, mmdetection) or not (torchvision's detectors).
        layout: "nchw", "nhwc" (B, H_l, W_l, C) or "blocked" (B, C / L, H_l, W_l, L); see jea.nn.formats.
        plain: the result is (R, C, *size) whatever the layout, else it lies as the features do.
        impl: "auto", "fused" or "ref".
    Returns:
        float32 (R, C, *size), or as `plain` says; R of 0 is not possible. Beside it the kernel takes memory that does
        not grow with R.
    Raises:
        ValueError: shapes that do not agree, or "fused" where there is no kernel.
    """
    features = list(features)
    if not 1 <= len(features) <= MAX_LEVELS or len(scales) != len(features):
        raise ValueError(f"roi_align: {len(features)} levels and {len(scales)} scales; expected as many of both, "
                         f"1 to {MAX_LEVELS}")
    shapes = [tuple(f.shape) for f in features]
    if layout not in _AXES:
        raise ValueError(f"roi_align: layout is {layout!r}; expected {', '.join(_AXES)}")
    rank, *axes = _AXES[layout]
    if any(len(shape) != rank or [shape[axis] for axis in axes] != [shapes[0][axis] for axis in axes]
           for shape in shapes):
        raise ValueError(f"roi_align: features are {shapes}; expected {layout} of one B and C")
    count = rois.shape[0]
    if tuple(rois.shape) != (count, 5) or count < 1:
        raise ValueError(f"roi_align: rois are {tuple(rois.shape)}; expected (R, 5), at least one")
    levels = np.zeros(count, np.int32) if levels is None else levels
    if tuple(levels.shape) != (count,):
        raise ValueError(f"roi_align: levels are {tuple(levels.shape)}; expected ({count},)")
    if min(size) < 1 or sampling < 0:
        raise ValueError(f"roi_align: size is {tuple(size)}, sampling {sampling}; expected at least 1 and 0")
    block = 1 if layout == "nchw" else shapes[0][-1]
    if not kernels.use_fused(impl, SUPPORT, *features):
        y = roi_align_reference([_to_nchw(f, layout) for f in features], rois, levels, size=size, scales=scales,
                                sampling=sampling, aligned=aligned)
        return y if plain else _from_nchw(y, layout, block)
    channels = math.prod(shapes[0][axis] for axis in axes[1:])
    numbers = {"batch": shapes[0][0], "channels": channels, "out_h": int(size[0]), "out_w": int(size[1]),
               "levels": len(shapes), "sampling": int(sampling), "aligned": int(aligned), "block": block,
               "plain": int(plain or layout == "nchw")}
    height = 1 if layout == "nhwc" else 2
    for k in range(MAX_LEVELS):
        h, w = shapes[k][height:height + 2] if k < len(shapes) else (0, 0)
        numbers.update({f"h{k}": h, f"w{k}": w, f"s{k}": float(scales[k]) if k < len(shapes) else 0.0})
    return _RoiAlign.apply(_var(rois, np.float32).stop_grad(), _var(levels, np.int32), numbers, *features)
