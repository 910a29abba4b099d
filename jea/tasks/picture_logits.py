"""The logits of one whole picture: several scales, mirrored, in one piece or in sliding windows, in bounded memory."""
from __future__ import annotations

from typing import Sequence

import numpy as np

from jea._jittor import jt
from jea.data.views.crops import fit_size, normalise, pad_8n1
from jea.nn.mode import evaluating
from jea.ops import resize_bilinear

BLOCK_BYTES = 64 * 2 ** 20  # of logits at the picture's size that exist at one time; classes are computed in blocks


class PictureLogits:
    """Summed logits at every `stride`-th row and column of a picture, and at its last ones.

    values: (C, h, w) float32. rows (h,), columns (w,): places in the picture. Between them values are interpolated.
    """

    def __init__(self, classes: int, size: tuple[int, int], stride: int):
        self.size = size
        self.rows, self.columns = (np.unique([*range(0, n, stride), n - 1]) for n in size)
        self.values = np.zeros((classes, len(self.rows), len(self.columns)), np.float32)

    def stretch(self, size: tuple[int, int]) -> PictureLogits:
        """Make these the logits of a picture of another size, of which this one was a smaller copy: corners on
        corners."""
        self.rows, self.columns = (places * ((new - 1) / max(old - 1, 1))
                                   for places, old, new in zip((self.rows, self.columns), self.size, size))
        self.size = size
        return self

    def full(self) -> np.ndarray:
        """The logits of all pixels, (C, H, W) float32."""
        return self._rows(0, self.size[0])

    def argmax(self) -> np.ndarray:
        """The class of each pixel, (H, W) uint8; on a tie the first."""
        height, width = self.size
        step = max(1, BLOCK_BYTES // (4 * len(self.values) * width))
        return np.concatenate([self._rows(top, min(top + step, height)).argmax(0).astype(np.uint8)
                               for top in range(0, height, step)])

    def _rows(self, top: int, bottom: int) -> np.ndarray:
        """Logits of the rows from `top` to `bottom`, (C, bottom - top, W)."""
        values = _interpolate(self.values, self.rows, np.arange(top, bottom), axis=1)
        return _interpolate(values, self.columns, np.arange(self.size[1]), axis=2)


def _interpolate(values: np.ndarray, known: np.ndarray, wanted: np.ndarray, *, axis: int) -> np.ndarray:
    """Linear interpolation along an axis whose entries lie at `known`, at the places `wanted`."""
    first = np.searchsorted(known, wanted, side="right") - 1
    if (known[first] == wanted).all():
        whole = len(first) == len(known) and (first == np.arange(len(known))).all()
        return values if whole else np.take(values, first, axis)
    second = np.minimum(first + 1, len(known) - 1)
    weight = ((wanted - known[first]) / np.maximum(known[second] - known[first], 1)).astype(np.float32)
    weight = weight.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    out, other = np.take(values, first, axis), np.take(values, second, axis)
    other -= out
    other *= weight
    out += other
    return out


def picture_logits(network, image: np.ndarray, **options) -> PictureLogits:
    """Run a network over a picture (H, W, 3) uint8 RGB; see `logits_of_pictures`."""
    return logits_of_pictures(network, [image], **options)[0]


def logits_of_pictures(network, images: Sequence[np.ndarray], *, scales: Sequence[float] = (1.0,), flip: bool = False,
                       fit: Sequence[int] | None = None, window: int | None = None, window_stride: int = 1,
                       stride: int = 1, probabilities: bool = False) -> list[PictureLogits]:
    """Run a network over pictures of one size, together.

    Each normalised picture is resized to each scale, cut into windows, each of them padded at the right and bottom with
    the mean colour to a size of 8n + 1 (16n + 1 at output stride 16), run and cropped; the logits of overlapping
    windows are averaged, resized to the picture's size and added up; then all scales again mirrored.

    Args:
        network: has num_classes, output_stride and low_logits.
        images: (H, W, 3) uint8 RGB.
        scales, flip: see above.
        fit: (longer, shorter) side that the picture is fitted into at scale 1; default: its own size.
        window, window_stride: side of the windows and the steps between them, the last one shifted back to end with the
            picture; None: the picture in one piece.
        stride: of the PictureLogits that collects the sum.
        probabilities: add the softmax over the classes instead of the logits, as mmsegmentation and JSeg do.
    """
    x = np.stack([normalise(image).transpose(2, 0, 1) for image in images])
    size = x.shape[2:]
    totals = [PictureLogits(network.num_classes, size, stride) for _ in images]
    with evaluating(network):
        for mirrored in (False, True) if flip else (False,):
            source = jt.array(np.ascontiguousarray(x[..., ::-1]) if mirrored else x)
            columns = size[1] - 1 - totals[0].columns if mirrored else totals[0].columns
            for scale in scales:
                if fit is None:
                    scaled = tuple(max(1, int(scale * n)) for n in size)
                else:
                    scaled = fit_size(size, [max(1, int(scale * n)) for n in fit])
                pixels = resize_bilinear(source, scaled).numpy()
                boxes = window_boxes(scaled, window, window_stride)
                low = [_low_logits(network, pixels, box) for box in boxes]
                for total, own in zip(totals, _each_picture(low, len(totals))):
                    part = np.zeros_like(total.values) if probabilities else total.values
                    _add(part, own, boxes, network.output_stride, scaled, size, total.rows, columns)
                    if probabilities:
                        part -= part.max(0)
                        np.exp(part, out=part)
                        part /= part.sum(0)
                        total.values += part
    return totals


def _each_picture(low: list, count: int):
    """The windows' logits (1, C, h, w) of each picture, given those of all (B, C, h, w)."""
    if count == 1:
        yield low
        return
    low = [values.numpy() for values in low]
    for k in range(count):
        yield [jt.array(values[k:k + 1]) for values in low]


def window_boxes(size: tuple[int, int], window: int | None, stride: int) -> list:
    """[(top, left, height, width), ...] that cover a picture of this size; one box where `window` is None."""
    if window is None:
        return [(0, 0, *size)]
    starts = [[min(k * stride, max(n - window, 0)) for k in range(max(n - window + stride - 1, 0) // stride + 1)]
              for n in size]
    return [(top, left, min(window, size[0]), min(window, size[1])) for top in starts[0] for left in starts[1]]


def _padded(box, output_stride: int) -> tuple[int, int]:
    return pad_8n1(box[2], output_stride), pad_8n1(box[3], output_stride)


def _low_logits(network, pixels: np.ndarray, box):
    """The network's own, coarse logits of a window; a Var (B, C, h, w) that is computed."""
    top, left, height, width = box
    padded = np.zeros((len(pixels), 3, *_padded(box, network.output_stride)), np.float32)
    padded[:, :, :height, :width] = pixels[:, :, top:top + height, left:left + width]
    low = network.low_logits(jt.array(padded))
    low.sync()  # else the activations of all windows would exist at once
    return low


def _add(total: np.ndarray, low: list, boxes: list, output_stride: int, scaled, size, rows, columns) -> None:
    """Add the windows' logits at the picture's rows and columns, a block of classes at a time."""
    largest = max(size[0] * size[1], scaled[0] * scaled[1], *(np.prod(_padded(box, output_stride)) for box in boxes))
    block = max(1, int(BLOCK_BYTES // (4 * largest)))
    count = np.zeros(scaled, np.float32)
    for top, left, height, width in boxes:
        count[top:top + height, left:left + width] += 1
    for first in range(0, len(total), block):
        canvas = None
        for values, box in zip(low, boxes):
            top, left, height, width = box
            values = values if block >= len(total) else values[:, first:first + block]
            values = resize_bilinear(values, _padded(box, output_stride)).numpy()[:, :, :height, :width]
            if len(boxes) == 1:
                canvas = values
                break
            canvas = np.zeros((1, values.shape[1], *scaled), np.float32) if canvas is None else canvas
            canvas[:, :, top:top + height, left:left + width] += values
        if len(boxes) > 1:
            canvas /= count
        if tuple(scaled) != tuple(size):
            canvas = resize_bilinear(jt.array(np.ascontiguousarray(canvas)), size).numpy()
        full = canvas[0]
        if len(rows) < size[0]:
            full = full[:, rows]
        if len(columns) < size[1]:
            full = full[:, :, columns]
        elif size[1] > 1 and columns[0] > columns[-1]:
            full = full[:, :, ::-1]
        total[first:first + block] += full
